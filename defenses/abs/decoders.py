"""Trained decoders made fast for inference: values and derivatives in z, nothing else.

Batch normalisation is folded into the weights in float64. Activations are (K, N, F): K classes evaluated together, N
images, F features in the order height, width, channel (`features`). On small images every transposed convolution is a
matrix and all classes are one batched product; on large ones each class has its convolutions, in channels-last order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.abs.vae import Decoder

DENSE_PIXELS = 64
"""Up to this many pixels, the zeros in a transposed convolution's matrix cost less than separate classes do."""
LOG2_E = math.log2(math.e)
BLOCK = 4
"""Edge, in pixels, of the output blocks of `SubPixel`."""


def features(images: Tensor) -> Tensor:
    """Images (N, C, H, W) as rows (N, H W C)."""
    return images.permute(0, 2, 3, 1).flatten(1)


def images(rows: Tensor, size: int) -> Tensor:
    """Rows (..., N, H W C) as images (..., N, C, H, W) of ``size`` squared pixels: a channels-last view."""
    return rows.reshape(*rows.shape[:-1], size, size, -1).movedim(-1, -3)


class Layer(Protocol):
    """An affine map of K classes."""

    def forward(self, a: Tensor) -> Tensor:
        """Its value (K, N, F') at ``a`` (K, N, F)."""

    def backward(self, cotangent: Tensor) -> Tensor:
        """The product (K, N, F) of a cotangent (K, N, F') with its Jacobian."""


class Dense:
    """K matrices ``weight`` (K, F, F') and biases (K, 1, F')."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    @classmethod
    def of_convolution(cls, layer: Transposed) -> Self:
        """The matrix of a transposed convolution: row f is the image of the f-th unit vector."""
        units = torch.eye(layer.size**2 * len(layer.weight), device=layer.weight.device)
        matrix = features(F.conv_transpose2d(images(units, layer.size), layer.weight, None, layer.stride))
        return cls(matrix[None], layer.bias.repeat(layer.output_size**2)[None, None])

    @classmethod
    def stack(cls, layers: Sequence[Dense]) -> Self:
        """Layers of several classes as one."""
        return cls(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))

    def forward(self, a: Tensor) -> Tensor:
        """See `Layer`."""
        return torch.baddbmm(self.bias, a, self.weight)

    def backward(self, cotangent: Tensor) -> Tensor:
        """See `Layer`."""
        return torch.bmm(cotangent, self.weight.mT)


class Transposed:
    """One class's transposed convolution: weight (C, C', k, k), bias (C',), inputs of ``size`` squared pixels."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, size: int) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias, self.stride, self.size = bias, stride, size
        self.output_size = (size - 1) * stride + weight.shape[2]

    def forward(self, a: Tensor) -> Tensor:
        """See `Layer`."""
        return features(F.conv_transpose2d(images(a[0], self.size), self.weight, self.bias, self.stride))[None]

    def backward(self, cotangent: Tensor) -> Tensor:
        """See `Layer`."""
        return features(F.conv2d(images(cotangent[0], self.output_size), self.weight, None, self.stride))[None]


class SubPixel(Transposed):
    """A `Transposed` of stride 1 as a convolution of stride `BLOCK` whose channels are the pixels of an output block
    (Shi et al. 2016): several times faster where few channels come out."""

    def __init__(self, layer: Transposed) -> None:
        super().__init__(layer.weight, layer.bias, 1, layer.size)
        channels, maps, kernel, _ = self.weight.shape
        window = kernel + BLOCK - 1
        # Pixel BLOCK i + a of the output sees pixel BLOCK i + p - (kernel - 1) of the input through the weight at
        # a - p + (kernel - 1).
        blocks = self.weight.new_zeros(maps, BLOCK, BLOCK, channels, window, window)
        for a in range(BLOCK):
            for b in range(BLOCK):
                blocks[:, a, b, :, a : a + kernel, b : b + kernel] = self.weight.flip(2, 3).transpose(0, 1)
        self.block_weight = blocks.flatten(0, 2).contiguous(memory_format=torch.channels_last)
        self.block_bias = self.bias.repeat_interleave(BLOCK**2)
        self.padding = kernel - 1

    def forward(self, a: Tensor) -> Tensor:
        """See `Layer`."""
        blocks = F.conv2d(images(a[0], self.size), self.block_weight, self.block_bias, BLOCK, self.padding)
        return features(F.pixel_shuffle(blocks, BLOCK))[None]


class FoldedDecoder:
    """K decoders G_c(z) = sigmoid(affine(elu(... elu(affine(z))))), and the gradient of the energy in z."""

    def __init__(self, first: Dense, *others: Layer) -> None:
        self.layers: tuple[Layer, ...] = (first, *others)
        self.classes = len(first.weight)

    def decode(self, z: Tensor) -> Tensor:
        """Images as rows (K, N, D), in (0, 1), of latents (K, N, L)."""
        return self._activations(z)[-1]

    def energy(self, x: Tensor, z: Tensor, variance: float) -> tuple[Tensor, Tensor]:
        """||x - G(z)||^2 + variance ||z||^2, (K, N), and its derivative in z, (K, N, L), at ``z`` (K, N, L) for images
        as rows ``x`` (N, D)."""
        *hidden, decoded = self._activations(z)
        error = decoded - x
        cotangent = torch.ops.aten.sigmoid_backward(error, decoded).mul_(2)
        for layer, activation in zip(self.layers[:0:-1], reversed(hidden), strict=True):
            # ELU's derivative from its output: 1 above zero, output + 1 below.
            cotangent = torch.ops.aten.elu_backward(layer.backward(cotangent), 1, 1, 1, True, activation)
        return energy(error, z, variance), self.layers[0].backward(cotangent).add_(z, alpha=2 * variance)

    def _activations(self, z: Tensor) -> list[Tensor]:
        *hidden, last = self.layers
        activations: list[Tensor] = []
        for layer in hidden:
            z = elu_(layer.forward(z))
            activations.append(z)
        return [*activations, last.forward(z).sigmoid_()]


def energy(error: Tensor, z: Tensor, variance: float) -> Tensor:
    """||x - G(z)||^2 + variance ||z||^2, (K, N), from the error x - G(z), (K, N, D), at ``z`` (K, N, L)."""
    return error.square().sum(2).add_(z.square().sum(2), alpha=variance)


def elu_(x: Tensor) -> Tensor:
    """ELU in place, by torch's vectorised power of two: ``F.elu_`` takes twice as long."""
    return torch.maximum(x, x.mul(LOG2_E).clamp_max_(0).exp2_().sub_(1), out=x)


def fold(decoder: Decoder) -> tuple[list[FoldedDecoder], list[FoldedDecoder]]:
    """The decoders of all classes, in evaluation mode, folded: each alone, and in groups to evaluate together."""
    affine = [_affine_layers(decoder, c) for c in range(decoder.classes)]
    output = affine[0][-1].output_size
    if output**2 <= DENSE_PIXELS:
        dense = [[Dense.of_convolution(layer) for layer in layers] for layers in affine]
        together = FoldedDecoder(*(Dense.stack(of_classes) for of_classes in zip(*dense, strict=True)))
        return [FoldedDecoder(*layers) for layers in dense], [together]
    single = []
    for first, *middle, last in affine:
        blocks = last.stride == 1 and output % BLOCK == 0
        single.append(FoldedDecoder(Dense.of_convolution(first), *middle, SubPixel(last) if blocks else last))
    return single, single


def _affine_layers(decoder: Decoder, c: int) -> list[Transposed]:
    """The layers of class ``c``, each with the batch normalisation that follows it."""

    def of_class(tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        return tensor.detach().double().chunk(decoder.classes)[c]

    layers: list[Transposed] = []
    for convolution, normalisation in zip(decoder.convolutions, [*decoder.normalisations, None], strict=True):
        assert isinstance(convolution, nn.ConvTranspose2d)
        weight, bias = of_class(convolution.weight), of_class(convolution.bias)
        if isinstance(normalisation, nn.BatchNorm2d):
            scale = of_class(normalisation.weight) / (of_class(normalisation.running_var) + normalisation.eps).sqrt()
            weight = weight * scale[:, None, None]
            bias = (bias - of_class(normalisation.running_mean)) * scale + of_class(normalisation.bias)
        size = layers[-1].output_size if layers else 1
        layers.append(Transposed(weight.float(), bias.float(), convolution.stride[0], size))
    return layers
