"""The convolutional baselines of Schott et al. 2019 (appendix A.7): CNN, and Binary CNN on binarized inputs.

``cnn_gaussian`` is the same CNN trained with Gaussian noise, the base of the smoothed classifiers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import defense
from bench.datasets.dataset import Dataset
from bench.datasets.split import Split
from bench.training.trainer import Share, Trainer

CITATION = "Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on MNIST"
THRESHOLD = 0.5
"""Intensity at which Binary CNN binarizes: a pixel at or above it becomes 1 (section 3)."""

Layer = tuple[int, int, int]
"""Feature maps, kernel size and stride of a convolution without padding."""
LAYERS: dict[int, tuple[Layer, ...]] = {
    28: ((20, 5, 1), (70, 4, 2), (256, 3, 2), (10, 5, 1)),
    8: ((20, 3, 1), (70, 2, 2), (128, 2, 1), (10, 2, 1)),
}
"""Layers by image size: the paper's at 28x28, and our own at 8x8. Both nets end in 1x1 maps."""
EPOCHS = {28: 10, 8: 30}
WEIGHT_PENALTY = 2e-4
"""Weight of the convolutions' squared weights in the loss. Without this term, the MNIST net ends at 99.05 %, below the
paper's."""
NOISE = 0.2
"""Standard deviation of the training noise of ``cnn_gaussian``, as in Ju & Wagner 2020 (section 4.3) on MNIST."""


def binarize(x: Tensor) -> Tensor:
    """Returns 1 where ``x`` >= `THRESHOLD` and 0 elsewhere, with the derivative of the identity.

    Schott et al. attack and train binarized models with this straight-through estimator (Bengio et al. 2013).
    """
    bits = (x.detach() >= THRESHOLD).to(x.dtype)
    return bits + (x - x.detach())


class ConvolutionalNet(nn.Module):
    """Four convolutions with ELU, including the last ("all layers"). All but the last have batch normalization.

    Args:
        dataset: gives the number of channels and the image size (a key of `LAYERS`).
        binary: binarize the input, also in training (section 6).
        noise: standard deviation of the noise added in training.
    """

    def __init__(self, dataset: Dataset, *, binary: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        self.binary, self.noise = binary, noise
        self.size = dataset.shape[1]
        layers = LAYERS[self.size]
        maps = [dataset.shape[0], *(layer[0] for layer in layers)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride)
            for (before, after), (_, kernel, stride) in zip(pairwise(maps), layers, strict=True)
        )
        self.normalisations = nn.ModuleList(nn.BatchNorm2d(width) for width in maps[1:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, C, H, W), each at least -1, the infimum of ELU."""
        if self.binary:
            x = binarize(x)
        *hidden, last = self.convolutions
        for convolution, normalisation in zip(hidden, self.normalisations, strict=True):
            x = F.elu(normalisation(convolution(x)))
        return F.elu(last(x)).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, C, H, W)."""
        output: Tensor = self(x)
        return output

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Minimizes the cross-entropy and the squared weights by Adam."""

        def loss(x: Tensor, y: Tensor, done: Share) -> Tensor:
            loss = F.cross_entropy(self(x + self.noise * torch.randn_like(x) if self.noise else x), y)
            squares = (cast(nn.Conv2d, layer).weight.square().sum() for layer in self.convolutions)
            return loss + WEIGHT_PENALTY * sum(squares, torch.zeros((), device=x.device))

        trainer.initialize(self)
        trainer.minimize(
            self.parameters(),
            loss,
            data,
            epochs=EPOCHS[self.size],
            batch_size=64,
            learning_rate=2e-3,
            recordable=True,
        )


@defense("cnn", datasets=["digits", "mnist", "fashion_mnist"], citation=CITATION, version=3)
def cnn(dataset: Dataset) -> ConvolutionalNet:
    """A plain CNN."""
    return ConvolutionalNet(dataset)


@defense(
    "cnn_gaussian",
    datasets=["digits", "mnist", "fashion_mnist"],
    citation=f"{CITATION}; trained with noise as by Ju & Wagner 2020, E-ABS",
    version=2,
)
def cnn_gaussian(dataset: Dataset) -> ConvolutionalNet:
    """The plain CNN, trained with Gaussian noise."""
    return ConvolutionalNet(dataset, noise=NOISE)


@defense(
    "binary_cnn",
    datasets=["digits", "mnist", "fashion_mnist"],
    citation=CITATION,
    binarization_threshold=THRESHOLD,
    version=3,
)
def binary_cnn(dataset: Dataset) -> ConvolutionalNet:
    """The plain CNN on binarized inputs."""
    return ConvolutionalNet(dataset, binary=True)
