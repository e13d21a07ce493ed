"""The networks of E-ABS (Ju & Wagner 2020, section 4.3 and Table 9), and what Algorithm 1 minimises over them.

Where the paper is silent: the slope of Leaky ReLU is torch's, dropout keeps nine of ten, the discriminator ends in one
more linear layer, and the target of a reconstruction is the augmented image.
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
"""Weight of the discriminator's term, or of the divergence (section 3.2)."""
GAMMA = 10.0
"""Weight of the discriminative loss (section 3.2)."""


@dataclass(frozen=True)
class Architecture:
    """Layer sizes, as a row of Table 9 gives them.

    Attributes:
        latent: dimension L of the latent space.
        encoder: convolutions.
        decoder: transposed convolutions from 1x1 to the image.
        discriminator: neurons of its two layers.
    """

    latent: int
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    discriminator: tuple[int, int]


class Encoder(nn.Module):
    """q(z|x): convolutions with batch normalisation and Leaky ReLU, dropout, and two parallel linear layers."""

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
    """The encoder's convolutions, from images (N, C, H, W) to rows; the paper's CNN has the same."""
    maps = [channels, *(layer[0] for layer in architecture.encoder)]
    layers: list[nn.Module] = []
    for (before, after), (_, kernel, stride, padding) in zip(pairwise(maps), architecture.encoder, strict=True):
        layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.BatchNorm2d(after), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Dropout(DROPOUT), nn.Flatten())


def output_width(architecture: Architecture, size: int) -> int:
    """Features that `convolutions` make of images of ``size`` squared pixels."""
    for _, kernel, stride, padding in architecture.encoder:
        size = (size + 2 * padding - kernel) // stride + 1
    return architecture.encoder[-1][0] * size**2


class Decoder(nn.Module):
    """G_k(z): a linear layer, dropout, and transposed convolutions, all but the last with batch normalisation and
    ReLU, the last with a sigmoid."""

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
    """D(z), the probability that a latent was drawn from the prior, as a logit."""

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
    """K decoders, with one encoder for all classes or one for each, and discriminators on the latents or none.

    Args:
        architecture: layer sizes.
        classes: their number K.
        shape: of an image, (C, H, W).
        adversarial: latents are matched to the prior by discriminators, otherwise by the divergence of a VAE (A).
        discriminative: the encoder is shared and the discriminative loss is minimised too (D).
        noise: standard deviation of the noise that training images are augmented with.
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
        """The encoders' and decoders' loss (eq. 5), a mean over rows, for images (N, C, H, W) of classes (N,); with so
        many ``rivals`` in place of all classes that are not the image's, if a number is given.

        With one encoder for each class it is the sum over classes c of eq. 3, for images (N, K, C, H, W) of class c
        at [:, c].
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
        # The rivals' exponentials, divided by their share, sum up to those of all other classes on average.
        logits = (-costs - math.log(share)).scatter(1, y[:, None], -own[:, None])
        return (own + penalty + GAMMA * F.cross_entropy(logits, y, reduction="none")).mean()

    def _costs(self, x: Tensor, z: Tensor) -> Tensor:
        """c(x, G_k(z)) (N, K) of images (N, C, H, W) and their latents (N, L)."""
        return torch.stack([cost(x, decoder(z)) for decoder in self.decoders], 1)

    def _drawn_costs(self, x: Tensor, z: Tensor, y: Tensor, rivals: int) -> tuple[Tensor, float]:
        """`_costs` of the classes ``y`` (N,) and some rivals, infinite of the others; and the rivals' share."""
        drawn, share = self._with_rivals(y, rivals)
        classes, rows = drawn.T.nonzero(as_tuple=True)
        of_classes = torch.split(rows, drawn.sum(0).tolist())
        costs = [cost(x[own], decoder(z[own])) for own, decoder in zip(of_classes, self.decoders, strict=True)]
        return torch.full(drawn.shape, torch.inf, device=x.device).index_put((rows, classes), torch.cat(costs)), share

    def _with_rivals(self, y: Tensor, rivals: int) -> tuple[Tensor, float]:
        """True (N, K) at the classes ``y`` (N,) and at ``rivals`` others, drawn at random; and their share of the
        others."""
        classes = len(self.decoders)
        rivals = min(rivals, classes - 1)
        order = torch.rand(len(y), classes, device=y.device).scatter(1, y[:, None], 2.0)
        drawn = torch.zeros_like(order, dtype=torch.bool).scatter(1, order.topk(1 + rivals).indices, True)
        return drawn, rivals / (classes - 1)

    def discriminator_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The discriminators' loss for the same images: they tell draws from the prior and encoded images apart. That
        of one class sees images of the other classes too (section 4.4)."""
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
        """Latents that encoder ``c`` draws for images of another class; in evaluation mode, so that they leave no trace
        in its batch normalisation."""
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
        """Latents drawn from q(z|x) by encoder ``c``, and what keeps them near the prior: -beta log D(z), or
        beta KL[q(z|x) || N(0, 1)]."""
        mean, log_variance = self.encoders[c](x)
        z = sample(mean, log_variance)
        if self.adversarial:
            return z, BETA * F.softplus(-self.discriminators[c](z))
        return z, BETA * 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)


def sample(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw from the normal distribution, by the reparameterisation trick."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def cost(x: Tensor, reconstruction: Tensor) -> Tensor:
    """c(x, G(z)) = ||x - G(z)||^2, (N,)."""
    return (x - reconstruction).float().square().flatten(1).sum(1)
