"""beta-VAC, the beta-variational classifier (Maggipinto, Terzi & Susto 2020).

A small perceptron classifies the latent of a variational autoencoder. The paper detects adversarial examples by the
reconstruction error.

The paper prints equation 5 with a plus sign before beta. That is a misprint: it would reward a divergence far from the
capacity C. Equation 4, whose divergence term it replaces, has a minus sign. `BetaVariationalClassifier.loss` takes
equation 5 with a minus sign.

The paper does not specify widths, batch normalization, the number of Monte Carlo samples (here 1), p(x|z) or beta (see
`BETA`). Here p(x|z) is normal with variance 1, the first of two choices in section 2. The Bernoulli log-likelihood is
so much larger that classification suffers.

Three choices differ from the paper. Training takes 16 epochs of Adam instead of 60 epochs of SGD with momentum, too
many for a CPU. There is no weight decay. The capacity C is larger (see `Setting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import defense
from bench.datasets.dataset import Dataset
from bench.datasets.split import Split
from bench.training.trainer import Share, Trainer

CITATION = "Maggipinto, Terzi & Susto 2020, beta-Variational Classifiers Under Attack"
LATENT = 100
"""Dimension L of the latent space (section 5)."""
HIDDEN = 64
"""Neurons of each of the classifier's two hidden layers (section 5)."""
BETA = 0.1
"""Weight of the divergence's distance to C. The paper calls values "usually around 1000" for beta-VAEs and does not
give its own. With beta = 10 the divergence reaches C before the decoder and the classifier can use it. The divergence
does so by shifting the latents of all images alike. Such latents carry no information, and accuracy on digits is at
chance."""

Layer = tuple[int, int, int, int]
"""Feature maps, kernel size, stride and padding of a convolution."""


@dataclass(frozen=True)
class Setting:
    """Networks and schedule at one image size.

    Attributes:
        layers: the encoder's convolutions without the last one. The kernel of the last one covers its whole input.
        epochs: number of training epochs.
        capacity: target C of the divergence at the end of training, in nats. The paper's best values are 1 on MNIST and
            10 on Fashion-MNIST. One nat is less than log 10, the information in the class.
        batch_size: images per training step.
        learning_rate: learning rate of Adam in training.
    """

    layers: tuple[Layer, ...]
    epochs: int
    capacity: float
    batch_size: int = 64
    learning_rate: float = 2e-3

    def last_size(self, size: int) -> int:
        """Returns the height of the maps that ``layers`` compute from images of ``size`` x ``size`` pixels."""
        for _, kernel, stride, padding in self.layers:
            size = (size + 2 * padding - kernel) // stride + 1
        return size


SETTINGS: dict[int, Setting] = {
    28: Setting(((32, 3, 1, 1), (32, 3, 2, 1), (64, 3, 1, 1), (64, 3, 2, 1)), epochs=16, capacity=50.0),
    8: Setting(((16, 3, 1, 1), (16, 3, 2, 1), (32, 3, 1, 1), (32, 3, 2, 1)), epochs=60, capacity=10.0),
}
"""Settings by image size. As in the All-CNN (Springenberg et al. 2014), strided 3x3 convolutions replace pooling. The
nets are shallower and narrower than the All-CNN, so that a CPU can train them."""


class Encoder(nn.Module):
    """q(z|x): convolutions with batch normalization and ReLU, then a plain convolution to 1x1."""

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
    """D(z), the mean of p(x|z): the encoder's convolutions transposed and in reverse order, then a sigmoid."""

    def __init__(self, setting: Setting, shape: tuple[int, int, int]) -> None:
        super().__init__()
        maps = [shape[0], *(layer[0] for layer in setting.layers)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(LATENT, maps[-1], setting.last_size(shape[1]))]
        for (after, before), (_, kernel, stride, padding) in reversed(
            list(zip(pairwise(maps), setting.layers, strict=True))
        ):
            # A strided convolution maps several sizes to the same one. This output padding restores the largest.
            transposed = nn.ConvTranspose2d(before, after, kernel, stride, padding, output_padding=stride - 1)
            layers += [nn.BatchNorm2d(before), nn.ReLU(), transposed]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) in (0, 1) of latents (N, L)."""
        return torch.sigmoid(self.layers(z[:, :, None, None]))


class BetaVariationalClassifier(nn.Module):
    """An encoder, a decoder and a classifier of latents.

    Args:
        dataset: gives the number of classes and the image size (a key of `SETTINGS`).
        l1: strength of the l1 regularization of the classifier's weights (section 6.3), not of its biases.
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
        """Reconstructions D(z) (N, C, H, W) of images (N, C, H, W), with z the mean of q(z|x)."""
        mean, _ = self.encoder(x)
        image: Tensor = self.decoder(mean)
        return image

    def detection_score(self, x: Tensor) -> Tensor:
        """Mean squared error per pixel between images (N, C, H, W) and their reconstructions by `decoded`, (N,)."""
        return (x - self.decoded(x)).square().flatten(1).mean(1)

    def loss(self, x: Tensor, y: Tensor, done: Share) -> Tensor:
        """Loss of images (N, C, H, W) with labels (N,): minus equation 5 with its sign corrected, plus regularization.

        Equation 5 gives the mean over rows of beta |KL[q(z|x) || N(0, 1)] - C| + ||x - D(z)||^2 / 2 - log p(y|z), with
        one sample z ~ q(z|x). The capacity C depends on ``done``, the share of training that is over.
        """
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
        """Sum of the absolute values of the classifier's weights, a scalar tensor ()."""
        layers = [layer for layer in self.classifier if isinstance(layer, nn.Linear)]
        return torch.stack([layer.weight.abs().sum() for layer in layers]).sum()

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Minimizes the loss by Adam, for encoder, decoder and classifier together."""
        trainer.initialize(self)
        trainer.minimize(
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
    """Capacity C at the share ``done`` of training: it grows linearly from 0 to its final value (section 2)."""
    return setting.capacity * done


@defense("beta_vac", datasets=["digits", "mnist", "fashion_mnist"], citation=CITATION, version=2)
def beta_vac(dataset: Dataset, *, l1: float = 0.0) -> BetaVariationalClassifier:
    """The beta-variational classifier. By default without l1 regularization, as the paper advises against it."""
    return BetaVariationalClassifier(dataset, l1=l1)
