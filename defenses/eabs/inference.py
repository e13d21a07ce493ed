"""Inference of E-ABS and its ablations: folded decoders, starting points, and the discriminators' penalty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.abs.decoders import Dense, FoldedLayers, Transposed, folded
from defenses.abs.energies import Discriminators, Energy
from defenses.abs.starts import PRIOR_SEED
from defenses.eabs.networks import BETA, Decoder, Discriminator

SLOPE = 0.01
"""Negative slope of Leaky ReLU."""


class DiscriminatorPenalty:
    """The penalty -beta log D_c(z), with one discriminator per class or one for all classes.

    Args:
        discriminators: K discriminators, or one. Their weights are copied.
    """

    def __init__(self, discriminators: Sequence[Discriminator]) -> None:
        layers = [list(discriminator.layers) for discriminator in discriminators]
        self.layers = [_stack(list(of_classes)) for of_classes in zip(*layers, strict=True)]
        matrices, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        self._packed = Discriminators.of(matrices, biases, BETA, SLOPE)

    def of(self, classes: slice) -> DiscriminatorPenalty:
        """Returns the penalty of a range of classes."""
        if len(self.layers[0].weight) == 1:
            return self
        part = DiscriminatorPenalty.__new__(DiscriminatorPenalty)
        part.layers = [Dense(layer.weight[classes], layer.bias[classes]) for layer in self.layers]
        part._packed = self._packed.part(classes)
        return part

    def add_value(self, energies: Tensor, z: Tensor) -> None:
        """See `defenses.abs.decoders.Penalty`."""
        _, logits = self._run(z)
        energies.add_(F.softplus(-logits)[..., 0], alpha=BETA)

    def add_gradient(self, gradient: Tensor, z: Tensor) -> None:
        """See `defenses.abs.decoders.Penalty`."""
        activations, logits = self._run(z)
        *hidden, last = self.layers
        cotangent = -BETA * torch.sigmoid(-logits) @ last.weight.mT
        for layer, activation in zip(reversed(hidden), reversed(activations), strict=True):
            cotangent = torch.where(activation > 0, cotangent, SLOPE * cotangent) @ layer.weight.mT
        gradient.add_(cotangent)

    def for_kernel(self) -> Energy:
        """See `defenses.abs.decoders.Penalty`."""
        return Energy(discriminators=self._packed)

    def _run(self, z: Tensor) -> tuple[list[Tensor], Tensor]:
        """Activations of the hidden layers, and the logits (K, N, 1)."""
        *hidden, last = self.layers
        activations = []
        for layer in hidden:
            z = F.leaky_relu(z @ layer.weight + layer.bias, SLOPE)
            activations.append(z)
        return activations, z @ last.weight + last.bias


def _stack(layers: Sequence[nn.Module]) -> Dense:
    pairs = []
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        pairs.append((layer.weight.detach().T, layer.bias.detach()[None]))
    weights, biases = zip(*pairs, strict=True)
    return Dense(torch.stack(weights), torch.stack(biases))


def folded_layers(decoder: Decoder) -> FoldedLayers:
    """Returns a decoder's layers, with batch normalization folded in and the linear layer merged into the first."""
    layers: list[Transposed] = []
    for convolution, normalisation in zip(decoder.convolutions, [*decoder.normalisations, None], strict=True):
        assert isinstance(convolution, nn.ConvTranspose2d)
        layers.append(folded(convolution, normalisation, layers[-1].output_size if layers else 1))
    first = Dense.of_convolution(layers[0]).after(decoder.linear.weight.detach(), decoder.linear.bias.detach())
    return [first, *layers[1:]]


def prior_distributions(count: int, latent: int) -> tuple[Tensor, Tensor]:
    """Draws the parameters (count, 2 L) of ``count`` distributions, and one latent (count, L) from each distribution.

    The means come from N(0, 1). The log-deviations are 0.
    """
    generator = np.random.Generator(np.random.Philox(PRIOR_SEED))
    means, noise = torch.from_numpy(generator.standard_normal((2, count, latent), np.float32))
    return torch.cat([means, torch.zeros_like(means)], 1), means + noise
