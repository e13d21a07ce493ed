"""beta-VAC, the beta-variational classifier (Maggipinto, Terzi & Susto 2020): a variational autoencoder whose latent a
small perceptron classifies. Its reconstruction error is the paper's detector of adversarials.

Equation 5 of the paper is printed with a plus sign before beta, which would reward latents for being far from the
capacity C. That is a misprint: equation 4, whose divergence it replaces, has a minus sign, and so has what is minimised
here (see `BetaVariationalClassifier.loss`).

Where the paper is silent: widths, batch normalisation, one Monte Carlo sample, p(x|z) is normal with variance 1 (the
first of the two choices that section 2 names; the Bernoulli's likelihood is so much larger that classification
suffers), and beta, see `BETA`. Where it is not followed: Adam for 16 epochs in place of SGD with momentum for 60, which
is out of reach of a CPU, no weight decay, and C, see `Setting`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import defense
from bench.datasets import Dataset, Split
from bench.training import Share, Trainer

CITATION = "Maggipinto, Terzi & Susto 2020, beta-Variational Classifiers Under Attack"
LATENT = 100
"""Dimension L of the latent space (section 5)."""
HIDDEN = 64
"""Neurons of each of the classifier's two hidden layers (section 5)."""
BETA = 0.1
"""Weight of the divergence's distance to C. The paper says of beta-VAEs "usually around 1000", and does not give its
own. At 10 already, the divergence reaches C before decoder and classifier can use it, by moving the latents of all
images alike, which says nothing about them: digits are then classified at chance."""

Layer = tuple[int, int, int, int]
"""Feature maps, kernel size, stride and padding of a convolution."""


@dataclass(frozen=True)
class Setting:
    """Networks and schedule at one image size.

    Attributes:
        layers: the encoder's convolutions but for the last, which sees all of its maps at once.
        epochs: of training.
        capacity: the value C, in nats, that the divergence is drawn to at the end of training. The paper's best are 1
            on MNIST and 10 on Fashion-MNIST; one nat is less than the log 10 that naming the class takes.
        batch_size: of training.
        learning_rate: Adam's in training.
    """

    layers: tuple[Layer, ...]
    epochs: int
    capacity: float
    batch_size: int = 64
    learning_rate: float = 2e-3

    def last_size(self, size: int) -> int:
        """Height of the maps that ``layers`` make of images of ``size`` squared pixels."""
        for _, kernel, stride, padding in self.layers:
            size = (size + 2 * padding - kernel) // stride + 1
        return size


SETTINGS: dict[int, Setting] = {
    28: Setting(((32, 3, 1, 1), (32, 3, 2, 1), (64, 3, 1, 1), (64, 3, 2, 1)), epochs=16, capacity=50.0),
    8: Setting(((16, 3, 1, 1), (16, 3, 2, 1), (32, 3, 1, 1), (32, 3, 2, 1)), epochs=60, capacity=10.0),
}
"""By image size. As in the All-CNN (Springenberg et al. 2014), 3x3 convolutions stride where others pool; there are
fewer and narrower ones than in that net, as a CPU can train them."""


class Encoder(nn.Module):
    """q(z|x): convolutions with batch normalisation and ReLU, and a last one to 1x1 without."""

    def __init__(self, setting: Setting, shape: tuple[int, int, int]) -> None:
        super().__init__()
        maps = [shape[0], *(layer[0] for layer in setting.layers)]
        layers: list[nn.Module] = []
        for (before, after), (_, kernel, stride, padding) in zip(pairwise(maps), setting.layers, strict=True):
            layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(maps[-1], 2 * LATENT, setting.last_size(shape[1])))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances, both (N, L), of the latents of images (N, C, H, W)."""
        mean, log_variance = self.layers(x).flatten(1).chunk(2, dim=1)
        return mean, log_variance


class Decoder(nn.Module):
    """D(z), the mean of p(x|z): the encoder's convolutions transposed, in reverse order, and a sigmoid."""

    def __init__(self, setting: Setting, shape: tuple[int, int, int]) -> None:
        super().__init__()
        maps = [shape[0], *(layer[0] for layer in setting.layers)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(LATENT, maps[-1], setting.last_size(shape[1]))]
        for (after, before), (_, kernel, stride, padding) in reversed(
            list(zip(pairwise(maps), setting.layers, strict=True))
        ):
            # Of the sizes that the convolution maps to the same one, the output padding chooses the largest.
            transposed = nn.ConvTranspose2d(before, after, kernel, stride, padding, output_padding=stride - 1)
            layers += [nn.BatchNorm2d(before), nn.ReLU(), transposed]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) in (0, 1) of latents (N, L)."""
        return torch.sigmoid(self.layers(z[:, :, None, None]))


class BetaVariationalClassifier(nn.Module):
    """An encoder, a decoder, and a classifier of latents.

    Args:
        dataset: gives classes and image size (one of `SETTINGS`).
        l1: strength of the l1 regularisation of the classifier's weights (section 6.3); biases are not regularised.
    """

    def __init__(self, dataset: Dataset, *, l1: float = 0.0) -> None:
        super().__init__()
        self.l1 = l1
        self.setting = SETTINGS[dataset.shape[1]]
        self.encoder = Encoder(self.setting, dataset.shape)
        self.decoder = Decoder(self.setting, dataset.shape)
        self.classifier = nn.Sequential(
            nn.Linear(LATENT, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, dataset.classes),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """See `logits`."""
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W), at the mean of q(z|x)."""
        mean, _ = self.encoder(x)
        output: Tensor = self.classifier(mean)
        return output

    def decoded(self, x: Tensor) -> Tensor:
        """D(z) (N, C, H, W) at the mean z of q(z|x), of images (N, C, H, W)."""
        mean, _ = self.encoder(x)
        image: Tensor = self.decoder(mean)
        return image

    def detection_score(self, x: Tensor) -> Tensor:
        """The mean over pixels of (x - `decoded`)^2, (N,), of images (N, C, H, W)."""
        return (x - self.decoded(x)).square().flatten(1).mean(1)

    def loss(self, x: Tensor, y: Tensor, done: Share) -> Tensor:
        """Minus equation 5, its sign corrected, when the share ``done`` of training is over: the mean over rows of
        beta |KL[q(z|x) || N(0, 1)] - C| + ||x - D(z)||^2 / 2 - log p(y|z) with one z ~ q(z|x), plus the
        regularisation, for images (N, C, H, W) of classes (N,)."""
        # In mixed precision the networks return bfloat16, too coarse for sums over latents and pixels.
        mean, log_variance = (parameters.float() for parameters in self.encoder(x))
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        excess = (divergence - capacity(self.setting, done)).abs()
        error = 0.5 * (x - self.decoder(z)).float().square().flatten(1).sum(1)
        surprise = F.cross_entropy(self.classifier(z).float(), y, reduction="none")
        bound: Tensor = (BETA * excess + error + surprise).mean()
        return bound + self.l1 * self.weight_norm() if self.l1 else bound

    def weight_norm(self) -> Tensor:
        """The sum of the absolute values of the classifier's weights, ()."""
        layers = [layer for layer in self.classifier if isinstance(layer, nn.Linear)]
        return torch.stack([layer.weight.abs().sum() for layer in layers]).sum()

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Minimises the loss by Adam; encoder, decoder and classifier together."""
        trainer.initialise(self)
        trainer.minimise(
            self.parameters(),
            self.loss,
            data,
            epochs=self.setting.epochs,
            batch_size=self.setting.batch_size,
            learning_rate=self.setting.learning_rate,
            mixed_precision=True,
            recordable=True,
        )


def capacity(setting: Setting, done: Share) -> Share:
    """C when the share ``done`` of training is over: from 0 to its final value linearly (section 2)."""
    return setting.capacity * done


@defense("beta_vac", datasets=["digits", "mnist", "fashion_mnist"], citation=CITATION, version=2)
def beta_vac(dataset: Dataset, *, l1: float = 0.0) -> BetaVariationalClassifier:
    """The beta-variational classifier; by default without l1 regularisation, which the paper advises against."""
    return BetaVariationalClassifier(dataset, l1=l1)
