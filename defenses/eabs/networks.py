"""The networks of E-ABS (Ju & Wagner 2020, section 4.3 and Table 9), and the losses of Algorithm 1.

Four details are missing in the paper. Leaky ReLU has torch's default slope. Dropout has probability 0.1. The
discriminator ends in one more linear layer. The target of a reconstruction is the augmented image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = tuple[int, int, int, int]
"""Feature maps, kernel size, stride and padding of a (transposed) convolution."""
DROPOUT = 0.1
BETA = 1.0
"""Weight beta of the discriminator's term or of the divergence (section 3.2)."""
GAMMA = 10.0
"""Weight gamma of the discriminative loss (section 3.2)."""


@dataclass(frozen=True)
class Architecture:
    """Layer sizes, as in a row of Table 9.

    Attributes:
        latent: dimension L of the latent space.
        encoder: convolutions of the encoder.
        decoder: transposed convolutions from 1x1 to the image.
        discriminator: numbers of neurons in the two hidden layers of the discriminator.
    """

    latent: int
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    discriminator: tuple[int, int]


class Encoder(nn.Module):
    """q(z|x): convolutions with batch normalization and Leaky ReLU, then dropout and two parallel linear layers."""

    def __init__(self, architecture: Architecture, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.features = convolutions(architecture, shape[0])
        width = output_width(architecture, shape[1])
        self.mean = nn.Linear(width, architecture.latent)
        self.log_variance = nn.Linear(width, architecture.latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances, both (N, L), of the latents of images (N, C, H, W)."""
        hidden = self.features(x)
        return self.mean(hidden).float(), self.log_variance(hidden).float()


def convolutions(architecture: Architecture, channels: int) -> nn.Sequential:
    """Builds the encoder's convolutions, from images (N, C, H, W) to rows. The paper's CNN shares this architecture."""
    maps = [channels, *(layer[0] for layer in architecture.encoder)]
    layers: list[nn.Module] = []
    for (before, after), (_, kernel, stride, padding) in zip(pairwise(maps), architecture.encoder, strict=True):
        layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.BatchNorm2d(after), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Dropout(DROPOUT), nn.Flatten())


def output_width(architecture: Architecture, size: int) -> int:
    """Number of features that `convolutions` computes from an image of ``size`` x ``size`` pixels."""
    for _, kernel, stride, padding in architecture.encoder:
        size = (size + 2 * padding - kernel) // stride + 1
    return architecture.encoder[-1][0] * size**2


class Decoder(nn.Module):
    """G_k(z): a linear layer, dropout and transposed convolutions.

    All convolutions but the last have batch normalization and ReLU. The last has a sigmoid.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        maps = [architecture.decoder[0][0], *(layer[0] for layer in architecture.decoder)]
        self.linear = nn.Linear(architecture.latent, maps[0])
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(before, after, kernel, stride, padding)
            for (before, after), (_, kernel, stride, padding) in zip(pairwise(maps), architecture.decoder, strict=True)
        )
        self.normalisations = nn.ModuleList(nn.BatchNorm2d(width) for width in maps[1:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) in (0, 1) of latents (N, L)."""
        *hidden, last = self.convolutions
        x = F.dropout(self.linear(z), DROPOUT, self.training)[:, :, None, None]
        for convolution, normalisation in zip(hidden, self.normalisations, strict=True):
            x = F.relu(normalisation(convolution(x)))
        return torch.sigmoid(last(x))


class Discriminator(nn.Module):
    """D(z): the probability that a latent was drawn from the prior, returned as a logit."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        first, second = architecture.discriminator
        self.layers = nn.ModuleList(
            [nn.Linear(architecture.latent, first), nn.Linear(first, second), nn.Linear(second, 1)]
        )

    def forward(self, z: Tensor) -> Tensor:
        """Logits (N,) of latents (N, L)."""
        *hidden, last = self.layers
        for layer in hidden:
            z = F.leaky_relu(layer(z))
        output: Tensor = last(z)
        return output[:, 0].float()


class Autoencoders(nn.Module):
    """K decoders, with encoders and optional discriminators on the latents.

    Args:
        architecture: layer sizes.
        classes: number K of classes.
        shape: image shape (C, H, W).
        adversarial: match latents to the prior by discriminators (A), otherwise by the divergence of a VAE.
        discriminative: share one encoder and also minimize the discriminative loss (D), otherwise one encoder per
            class.
        noise: standard deviation of the noise added to training images.
    """

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        shape: tuple[int, int, int],
        *,
        adversarial: bool,
        discriminative: bool,
        noise: float,
    ) -> None:
        super().__init__()
        self.adversarial, self.discriminative, self.noise = adversarial, discriminative, noise
        encoders = 1 if discriminative else classes
        self.encoders = nn.ModuleList(Encoder(architecture, shape) for _ in range(encoders))
        self.decoders = nn.ModuleList(Decoder(architecture) for _ in range(classes))
        discriminators = encoders if adversarial else 0
        self.discriminators = nn.ModuleList(Discriminator(architecture) for _ in range(discriminators))
        self.to(memory_format=torch.channels_last)

    def loss(self, x: Tensor, y: Tensor, *, rivals: int | None = None) -> Tensor:
        """Loss of encoders and decoders (eq. 5), a mean over rows, for images (N, C, H, W) of classes (N,).

        If ``rivals`` is given, this number of random other classes stands for all other classes. With one encoder per
        class, the loss is the sum of eq. 3 over classes c. The images then have shape (N, K, C, H, W), with class c at
        [:, c].
        """
        x = self._augmented(x)
        if not self.discriminative:
            losses = []
            for c, decoder in enumerate(self.decoders):
                z, penalty = self._encoded(c, x[:, c])
                losses.append(cost(x[:, c], decoder(z)) + penalty)
            return torch.stack(losses).sum(0).mean()
        z, penalty = self._encoded(0, x)
        if rivals is None:
            costs, share = self._costs(x, z), 1.0
        else:
            costs, share = self._drawn_costs(x, z, y, rivals)
        own = costs.gather(1, y[:, None])[:, 0]
        # Divided by the rivals' share, the sum of their exponentials is an unbiased estimate of the sum over all other
        # classes.
        logits = (-costs - math.log(share)).scatter(1, y[:, None], -own[:, None])
        return (own + penalty + GAMMA * F.cross_entropy(logits, y, reduction="none")).mean()

    def _costs(self, x: Tensor, z: Tensor) -> Tensor:
        """Costs c(x, G_k(z)), (N, K), of images (N, C, H, W) and their latents (N, L)."""
        return torch.stack([cost(x, decoder(z)) for decoder in self.decoders], 1)

    def _drawn_costs(self, x: Tensor, z: Tensor, y: Tensor, rivals: int) -> tuple[Tensor, float]:
        """Costs (N, K) of the classes ``y`` (N,) and of drawn rivals, infinite elsewhere, and the rivals' share."""
        drawn, share = self._with_rivals(y, rivals)
        classes, rows = drawn.T.nonzero(as_tuple=True)
        of_classes = torch.split(rows, drawn.sum(0).tolist())
        costs = [cost(x[own], decoder(z[own])) for own, decoder in zip(of_classes, self.decoders, strict=True)]
        return torch.full(drawn.shape, torch.inf, device=x.device).index_put((rows, classes), torch.cat(costs)), share

    def _with_rivals(self, y: Tensor, rivals: int) -> tuple[Tensor, float]:
        """Draws ``rivals`` random other classes for each image with class ``y`` (N,).

        Returns a mask (N, K), true at the image's class and at its rivals, and the rivals' share of all other classes.
        """
        classes = len(self.decoders)
        rivals = min(rivals, classes - 1)
        order = torch.rand(len(y), classes, device=y.device).scatter(1, y[:, None], 2.0)
        drawn = torch.zeros_like(order, dtype=torch.bool).scatter(1, order.topk(1 + rivals).indices, True)
        return drawn, rivals / (classes - 1)

    def discriminator_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of the discriminators for the images of `loss`.

        A discriminator separates draws from the prior and encoded images. The discriminator of one class also sees
        images of other classes (section 4.4).
        """
        x = self._augmented(x)
        losses = []
        for c, discriminator in enumerate(self.discriminators):
            own = x if self.discriminative else x[:, c]
            with torch.no_grad():
                z = sample(*self.encoders[c](own))
                if not self.discriminative:
                    z = torch.cat([z, self._out_of_distribution(c, x, y)])
            prior = torch.randn_like(z)
            # softplus(-l) = -log D, softplus(l) = -log (1 - D).
            losses.append((F.softplus(-discriminator(prior)) + F.softplus(discriminator(z))).mean())
        return BETA * torch.stack(losses).sum()

    def _out_of_distribution(self, c: int, x: Tensor, y: Tensor) -> Tensor:
        """Latents that encoder ``c`` draws for images of another class.

        The encoder runs in evaluation mode, so that these images do not change its batch normalization.
        """
        encoder, classes = self.encoders[c], x.shape[1]
        mode = encoder.training
        encoder.eval()
        other = (c + 1 + y[:1] % (classes - 1)) % classes
        z = sample(*encoder(x.index_select(1, other)[:, 0]))
        encoder.train(mode)
        return z

    def _augmented(self, x: Tensor) -> Tensor:
        return x + self.noise * torch.randn_like(x)

    def _encoded(self, c: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (N, L) drawn from q(z|x) of encoder ``c``, and the penalty (N,) that keeps them near the prior.

        The penalty is -beta log D(z) or beta KL[q(z|x) || N(0, 1)].
        """
        mean, log_variance = self.encoders[c](x)
        z = sample(mean, log_variance)
        if self.adversarial:
            return z, BETA * F.softplus(-self.discriminators[c](z))
        return z, BETA * 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)


def sample(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Draws from the normal distribution by the reparameterization trick."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def cost(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Cost c(x, G(z)) = ||x - G(z)||^2, (N,)."""
    return (x - reconstruction).float().square().flatten(1).sum(1)
