"""Trained decoders made fast for inference, with values and derivatives only in the latent z.

Batch normalization is folded into the weights in float64. Activations have shape (K, N, F) for K classes evaluated
together, N images and F features. The features are in the order height, width, channel (see `features`). On small
images, every transposed convolution is a matrix, and all classes form one batched product. On large images, each class
has its own convolutions, in channels-last order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.abs.built import Kernel
from defenses.abs.compiled import CompiledDecoders, Convolution, Shape
from defenses.abs.energies import Energy

DENSE_PIXELS = 64
"""Largest number of output pixels for which classes are evaluated together. Up to this number, the zeros in the matrix
of a transposed convolution cost less than separate classes."""
LOG2_E = math.log2(math.e)
BLOCK = 4
"""Edge length of the output blocks of `SubPixel`, in pixels."""


def features(images: Tensor) -> Tensor:
    """Returns images (N, C, H, W) as rows (N, H W C)."""
    return images.permute(0, 2, 3, 1).flatten(1)


def images(rows: Tensor, size: int) -> Tensor:
    """Returns rows (..., N, H W C) as images (..., N, C, H, W) of ``size`` x ``size`` pixels, a channels-last view."""
    return rows.reshape(*rows.shape[:-1], size, size, -1).movedim(-1, -3)


class Layer(Protocol):
    """An affine map of K classes."""

    def forward(self, a: Tensor) -> Tensor:
        """Returns the value (K, N, F') at ``a`` (K, N, F)."""

    def backward(self, cotangent: Tensor) -> Tensor:
        """Returns the product (K, N, F) of a cotangent (K, N, F') with the Jacobian of the map."""


class Dense:
    """A linear layer of K classes: matrices ``weight`` (K, F, F') and biases (K, 1, F')."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    @classmethod
    def of_convolution(cls, layer: Transposed) -> Self:
        """Returns a transposed convolution as a matrix. Row f is the image of the f-th unit vector."""
        units = torch.eye(layer.size**2 * len(layer.weight)).to(layer.weight)
        x = images(units, layer.size)
        matrix = features(F.conv_transpose2d(x, layer.weight, None, layer.stride, layer.padding))
        return cls(matrix[None], layer.bias.repeat(layer.output_size**2)[None, None])

    def after(self, weight: Tensor, bias: Tensor) -> Self:
        """Returns the composition of this layer of one class with a preceding linear layer.

        The preceding layer has ``weight`` (F, L) and ``bias`` (F,).
        """
        return type(self)(weight.T @ self.weight, bias @ self.weight + self.bias)

    def scaled(self, weight: float, bias: float) -> Self:
        """Returns this layer with its weight and its bias each multiplied by a number."""
        return type(self)(weight * self.weight, bias * self.bias)

    @classmethod
    def stack(cls, layers: Sequence[Dense]) -> Self:
        """Returns the layers of several classes as one layer."""
        return cls(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))

    def forward(self, a: Tensor) -> Tensor:
        """See `Layer`."""
        return torch.baddbmm(self.bias, a, self.weight)

    def backward(self, cotangent: Tensor) -> Tensor:
        """See `Layer`."""
        return torch.bmm(cotangent, self.weight.mT)


class Transposed:
    """The transposed convolution of one class: weight (C, C', k, k), bias (C',), ``size`` x ``size`` input pixels."""

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
    """A `Transposed` of stride 1 as a convolution of stride `BLOCK` (Shi et al. 2016).

    The channels of the convolution are the pixels of an output block. This form is several times faster for few
    output channels.
    """

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
    """An activation that works in place, and its vector-Jacobian product.

    Attributes:
        name: a key of `defenses.abs.compiled.ACTIVATIONS`.
        forward: maps pre-activations to the output.
        backward: maps a cotangent and the output to the product of the cotangent and the derivative.
        scale: factor by which the pre-activations and outputs of both functions are multiplied.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0


class Penalty(Protocol):
    """The term that the energy adds to the squared error."""

    def add_value(self, energies: Tensor, z: Tensor) -> None:
        """Adds the penalty at latents ``z`` (K, N, L) to ``energies`` (K, N), in place."""

    def add_gradient(self, gradient: Tensor, z: Tensor) -> None:
        """Adds the penalty's derivative at latents ``z`` (K, N, L) to ``gradient`` (K, N, L), in place."""

    def for_kernel(self) -> Energy:
        """Returns the penalty as the kernel knows it."""


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
        """Errors G(z) - x, (K, N, D), and the derivative in z of ||G(z) - x||^2 + penalty(z), (K, N, L).

        The latents ``z`` are (K, N, L). The images are rows ``x``, (N, D) or (K, N, D). Each pixel's error counts only
        where it exceeds ``slack`` (N, 1).
        """
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
    """Returns the part of the error that exceeds ``slack`` in absolute value, with the error's sign.

    Without slack it returns the error itself.
    """
    return error if slack is None else error - error.clamp(-slack, slack)


def _elu(x: Tensor) -> Tensor:
    """Computes ELU by torch's vectorized power of two, in half the time of ``F.elu_``. The scale saves one pass.

    Where autograd follows, it uses torch's own ELU.
    """
    if x.requires_grad:
        elu: Tensor = torch.ops.aten.elu(x, LOG2_E, 1, 1 / LOG2_E)
        return elu
    below = x.clamp_max(0).exp2_().mul_(LOG2_E).sub_(LOG2_E)
    return torch.maximum(x, below, out=x)


def _elu_backward(cotangent: Tensor, output: Tensor) -> Tensor:
    # In terms of the output, the derivative is 1 above zero and output / LOG2_E + 1 below.
    product: Tensor = torch.ops.aten.elu_backward(cotangent, LOG2_E, 1, 1 / LOG2_E, True, output)
    return product


def _relu_backward(cotangent: Tensor, output: Tensor) -> Tensor:
    product: Tensor = torch.ops.aten.threshold_backward(cotangent, output, 0)
    return product


ELU = Activation("elu", _elu, _elu_backward, LOG2_E)
RELU = Activation("relu", torch.relu_, _relu_backward)

FoldedLayers = Sequence[Dense | Transposed]
"""The affine layers of the decoder of one class. The first layer is dense."""


def evaluated_together(
    classes: Sequence[FoldedLayers], activation: Activation
) -> tuple[list[FoldedDecoder], list[FoldedDecoder]]:
    """Returns the decoders of all classes twice: one per class, and in groups that are evaluated together."""
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


def compiled(classes: Sequence[FoldedLayers], activation: Activation, kernel: Kernel) -> CompiledDecoders | None:
    """Returns the decoders of all classes for the kernel; None if it has no room for them."""
    first, *others = classes[0]
    layers = [layer for layer in others if isinstance(layer, Transposed)]
    if len(layers) < len(others) or not layers:
        return None
    sizes = [Convolution(layer.weight.shape[1], layer.weight.shape[2], layer.stride, layer.padding) for layer in layers]
    shape = Shape(first.weight.shape[1], activation.name, layers[0].size, layers[0].weight.shape[0], sizes)
    if not shape.fits():
        return None
    weights = [[part.flatten() for layer in of_class for part in (layer.weight, layer.bias)] for of_class in classes]
    return CompiledDecoders(shape, torch.stack([torch.cat(parts) for parts in weights]), kernel)


def _scaled(layers: FoldedLayers, scale: float) -> FoldedLayers:
    """Returns the layers with all hidden activations multiplied by ``scale``."""
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
    """Returns a transposed convolution on ``size`` x ``size`` pixels, merged with the batch normalization that follows.

    If the convolution has one group for each of ``classes`` classes, the result is the part of class ``c``.
    """

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
