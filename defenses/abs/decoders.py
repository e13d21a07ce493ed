"""Trained decoders made fast for inference: values and derivatives in z, nothing else.

Batch normalisation is folded into the weights in float64. Activations are (K, N, F): K classes evaluated together, N
images, F features in the order height, width, channel (`features`). On small images every transposed convolution is a
matrix and all classes are one batched product; on large ones each class has its convolutions, in channels-last order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        x = images(units, layer.size)
        matrix = features(F.conv_transpose2d(x, layer.weight, None, layer.stride, layer.padding))
        return cls(matrix[None], layer.bias.repeat(layer.output_size**2)[None, None])

    def after(self, weight: Tensor, bias: Tensor) -> Self:
        """This layer of one class after the linear layer with ``weight`` (F, L) and ``bias`` (F,), as one."""
        return type(self)(weight.T @ self.weight, bias @ self.weight + self.bias)

    def scaled(self, weight: float, bias: float) -> Self:
        """This layer with its weight and its bias times a number each."""
        return type(self)(weight * self.weight, bias * self.bias)

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

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int, size: int) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias, self.stride, self.padding, self.size = bias, stride, padding, size
        self.output_size = (size - 1) * stride + weight.shape[2] - 2 * padding

    def scaled(self, weight: float, bias: float) -> Self:
        """See `Dense.scaled`."""
        return type(self)(weight * self.weight, bias * self.bias, self.stride, self.padding, self.size)

    def forward(self, a: Tensor) -> Tensor:
        """See `Layer`."""
        x = images(a[0], self.size)
        return features(F.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding))[None]

    def backward(self, cotangent: Tensor) -> Tensor:
        """See `Layer`."""
        y = images(cotangent[0], self.output_size)
        return features(F.conv2d(y, self.weight, None, self.stride, self.padding))[None]


class SubPixel(Transposed):
    """A `Transposed` of stride 1 as a convolution of stride `BLOCK` whose channels are the pixels of an output block
    (Shi et al. 2016): several times faster where few channels come out."""

    def __init__(self, layer: Transposed) -> None:
        super().__init__(layer.weight, layer.bias, 1, 0, layer.size)
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
        self.block_padding = kernel - 1

    def forward(self, a: Tensor) -> Tensor:
        """See `Layer`."""
        blocks = F.conv2d(images(a[0], self.size), self.block_weight, self.block_bias, BLOCK, self.block_padding)
        # ``F.pixel_shuffle`` is slower.
        count, side = len(blocks), blocks.shape[2]
        pixels = blocks.permute(0, 2, 3, 1).reshape(count, side, side, -1, BLOCK, BLOCK).permute(0, 1, 4, 2, 5, 3)
        return pixels.flatten(1)[None]


@dataclass(frozen=True)
class Activation:
    """An activation, in place, and its derivative's product with a cotangent, from the activation's output.

    Attributes:
        forward: maps pre-activations to the output.
        backward: maps a cotangent and the output to the product.
        scale: both take pre-activations and give outputs times this number.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0


class Penalty(Protocol):
    """What the energy has besides the squared error."""

    def add_value(self, energies: Tensor, z: Tensor) -> None:
        """Adds its value at latents ``z`` (K, N, L) to ``energies`` (K, N), in place."""

    def add_gradient(self, gradient: Tensor, z: Tensor) -> None:
        """Adds its derivative at latents ``z`` (K, N, L) to ``gradient`` (K, N, L), in place."""


class FoldedDecoder:
    """K decoders G_c(z) = sigmoid(affine(activation(... activation(affine(z))))), and the energy's gradient in z."""

    def __init__(self, activation: Activation, first: Dense, *others: Layer) -> None:
        self.activation = activation
        self.layers: tuple[Layer, ...] = (first, *others)
        self.classes = len(first.weight)

    def decode(self, z: Tensor) -> Tensor:
        """Images as rows (K, N, D), in (0, 1), of latents (K, N, L)."""
        return self._activations(z)[-1]

    def differentiate(
        self, x: Tensor, z: Tensor, penalty: Penalty, slack: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The error G(z) - x, (K, N, D), and the derivative in z, (K, N, L), of ||G(z) - x||^2 + penalty(z), at ``z``
        (K, N, L) for images as rows ``x`` (N, D) or (K, N, D); only what exceeds ``slack`` (N, 1) of each pixel's error
        is one."""
        *hidden, decoded = self._activations(z)
        error = excess(decoded - x, slack)
        cotangent = torch.ops.aten.sigmoid_backward(error, decoded).mul_(2)
        for layer, activated in zip(self.layers[:0:-1], reversed(hidden), strict=True):
            cotangent = self.activation.backward(layer.backward(cotangent), activated)
        gradient = self.layers[0].backward(cotangent)
        penalty.add_gradient(gradient, z)
        return error, gradient

    def _activations(self, z: Tensor) -> list[Tensor]:
        *hidden, last = self.layers
        activations: list[Tensor] = []
        for layer in hidden:
            z = self.activation.forward(layer.forward(z))
            activations.append(z)
        return [*activations, last.forward(z).sigmoid_()]


def excess(error: Tensor, slack: Tensor | None) -> Tensor:
    """What exceeds ``slack`` in absolute value, with the error's sign; the error itself without slack."""
    return error if slack is None else error - error.clamp(-slack, slack)


def _elu(x: Tensor) -> Tensor:
    """By torch's vectorised power of two, which spares one pass in this scale: ``F.elu_`` takes twice as long."""
    below = x.clamp_max(0).exp2_().mul_(LOG2_E).sub_(LOG2_E)
    return torch.maximum(x, below, out=x)


def _elu_backward(cotangent: Tensor, output: Tensor) -> Tensor:
    # The derivative from the output: 1 above zero, output / LOG2_E + 1 below.
    product: Tensor = torch.ops.aten.elu_backward(cotangent, LOG2_E, 1, 1 / LOG2_E, True, output)
    return product


def _relu_backward(cotangent: Tensor, output: Tensor) -> Tensor:
    product: Tensor = torch.ops.aten.threshold_backward(cotangent, output, 0)
    return product


ELU = Activation(_elu, _elu_backward, LOG2_E)
RELU = Activation(torch.relu_, _relu_backward)

FoldedLayers = Sequence[Dense | Transposed]
"""The affine layers of one class's decoder, of which the first is dense."""


def evaluated_together(
    classes: Sequence[FoldedLayers], activation: Activation
) -> tuple[list[FoldedDecoder], list[FoldedDecoder]]:
    """The decoders of all classes: each alone, and in groups to evaluate together."""
    classes = [_scaled(layers, activation.scale) for layers in classes]
    last = classes[0][-1]
    assert isinstance(last, Transposed)
    if last.output_size**2 <= DENSE_PIXELS:
        dense = [
            [layer if isinstance(layer, Dense) else Dense.of_convolution(layer) for layer in layers]
            for layers in classes
        ]
        together = FoldedDecoder(activation, *(Dense.stack(of_classes) for of_classes in zip(*dense, strict=True)))
        return [FoldedDecoder(activation, *layers) for layers in dense], [together]
    single = []
    for first, *others in classes:
        assert isinstance(first, Dense)
        single.append(FoldedDecoder(activation, first, *(_tuned(layer) for layer in others)))
    return single, single


def _scaled(layers: FoldedLayers, scale: float) -> FoldedLayers:
    """The layers with all hidden activations times ``scale``."""
    first, *middle, last = layers
    return [first.scaled(scale, scale), *(layer.scaled(1.0, scale) for layer in middle), last.scaled(1 / scale, 1.0)]


def _tuned(layer: Dense | Transposed) -> Layer:
    if isinstance(layer, Transposed) and _pays_in_blocks(layer):
        return SubPixel(layer)
    return layer


def _pays_in_blocks(layer: Transposed) -> bool:
    return (layer.stride, layer.padding, layer.output_size % BLOCK, layer.weight.shape[1]) == (1, 0, 0, 1)


def folded(
    convolution: nn.ConvTranspose2d, normalisation: nn.Module | None, size: int, c: int = 0, classes: int = 1
) -> Transposed:
    """A transposed convolution on ``size`` squared pixels with the batch normalisation that follows it: that of class
    ``c`` where the convolution has groups for ``classes``."""

    def of_class(tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        return tensor.detach().double().chunk(classes)[c]

    weight, bias = of_class(convolution.weight), of_class(convolution.bias)
    if isinstance(normalisation, nn.BatchNorm2d):
        scale = of_class(normalisation.weight) / (of_class(normalisation.running_var) + normalisation.eps).sqrt()
        weight = weight * scale[:, None, None]
        bias = (bias - of_class(normalisation.running_mean)) * scale + of_class(normalisation.bias)
    padding = convolution.padding[0]
    assert isinstance(padding, int)
    return Transposed(weight.float(), bias.float(), convolution.stride[0], padding, size)
