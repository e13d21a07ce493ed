"""The variational autoencoders of ABS, one per class (Schott et al. 2019, section 3 and appendix A.7).

The K classes are groups of the same convolutions. Classes share the calls, but no weights. Weight tensors hold the
classes one after the other along their first dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.training.trainer import Share, ramp

Layer = tuple[int, int, int]
"""Feature maps, kernel size and stride of a (transposed) convolution without padding."""


@dataclass(frozen=True)
class Architecture:
    """Layer sizes of one class's VAE.

    Attributes:
        latent: dimension L of the latent space.
        encoder: convolutions from the image to 1x1. The last has 2 L maps, first means and then log-variances.
        decoder: transposed convolutions from 1x1 to the image.
    """

    latent: int
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]


class Encoder(nn.Module):
    """q(z|x, c): convolutions, with batch normalization and ELU after all but the last."""

    def __init__(self, architecture: Architecture, classes: int, channels: int) -> None:
        super().__init__()
        self.classes = classes
        maps = [classes * width for width in (channels, *(layer[0] for layer in architecture.encoder))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, groups=classes)
            for (before, after), (_, kernel, stride) in zip(pairwise(maps), architecture.encoder, strict=True)
        )
        self.normalisations = nn.ModuleList(nn.BatchNorm2d(width) for width in maps[1:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances, both (N, K, L), of the latents of images (N, K, C, H, W), one image per class."""
        x = x.flatten(1, 2)
        *hidden, last = self.convolutions
        for convolution, normalisation in zip(hidden, self.normalisations, strict=True):
            x = F.elu(normalisation(convolution(x)))
        parameters: Tensor = last(x).reshape(len(x), self.classes, -1)
        mean, log_variance = parameters.chunk(2, dim=2)
        return mean, log_variance


class Decoder(nn.Module):
    """G_c(z), the mean of p(x|z, c): batch normalization and ELU after all layers but the last, then a sigmoid."""

    def __init__(self, architecture: Architecture, classes: int) -> None:
        super().__init__()
        self.classes = classes
        maps = [classes * width for width in (architecture.latent, *(layer[0] for layer in architecture.decoder))]
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(before, after, kernel, stride, groups=classes)
            for (before, after), (_, kernel, stride) in zip(pairwise(maps), architecture.decoder, strict=True)
        )
        self.normalisations = nn.ModuleList(nn.BatchNorm2d(width) for width in maps[1:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, K, C, H, W) in (0, 1) of latents (N, K, L)."""
        *hidden, last = self.convolutions
        x = z.flatten(1)[:, :, None, None]
        for convolution, normalisation in zip(hidden, self.normalisations, strict=True):
            x = F.elu(normalisation(convolution(x)))
        output: Tensor = torch.sigmoid(last(x))
        return output.reshape(len(z), self.classes, -1, *output.shape[2:])


class VAEs(nn.Module):
    """Encoders and decoders of all classes, trained together."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def loss(self, x: Tensor, variance: float, kl_weight: Tensor | float) -> Tensor:
        """Loss of images (N, K, C, H, W), with class c at [:, c]: a mean over rows of a sum over classes.

        Each term is ||x - G_c(z)||^2 + 2 variance kl_weight KL[q(z|x, c) || N(0, 1)], with z ~ q(z|x, c). Up to a
        constant, this is minus the evidence lower bound with a weighted divergence, times 2 variance. Here
        ``variance`` is the likelihood's variance.
        """
        mean, log_variance = self.encoder(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
        error = (x - self.decoder(z)).square()
        loss: Tensor = (error.sum() + 2 * variance * kl_weight * divergence.sum()) / len(x)
        return loss


def kl_weight(done: Share) -> Share:
    """Weight of the divergence at the share ``done`` of training: it falls linearly from 10 to 1 over the first half.

    The paper says "gradually decreased from a factor of 10 to 1 over 50 epochs".
    """
    return 10 - 9 * ramp(done, 0.5)


def side_by_side(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Arranges images (M, C, H, W) as (R, K, C, H, W), with the images of class c at [:, c].

    R is the size of the largest class. Smaller classes repeat from their first image.
    """
    of_class = [(labels == c).nonzero()[:, 0] for c in range(classes)]
    rows = torch.arange(max(len(indices) for indices in of_class), device=images.device)
    return torch.stack([images[indices[rows % len(indices)]] for indices in of_class], dim=1)
