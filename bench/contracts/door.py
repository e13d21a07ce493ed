"""The door between a defense and everything that queries it.

A defense gets copies of the images and may overwrite them. Its outputs are copied too, so it may reuse its own tensors.
Outputs become float32 tensors (decisions int64) of the expected shape on the images' device. Non-finite rows pass
through. The caller decides what to do with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.errors import DefenseFault
from bench.contracts.protocols import (
    Defense,
    HasDecision,
    HasDecodedImage,
    HasDetectionScore,
    HasInputGradient,
    HasReconstruction,
    HasUnrolledGradient,
    VectorJacobian,
)
from bench.contracts.streams import RowStreams, Streams

NO_DRAWS = Streams(0, (), "deterministic").rows(torch.arange(0))
"""Placeholder for the random streams of a deterministic defense, which draws nothing."""


def drawn_logits(defense: Defense, x: Tensor, rng: RowStreams) -> Tensor:
    """Returns logits (N, K), float32, of images (N, C, H, W). A randomized defense makes one draw.

    The logits are differentiable in ``x`` if the defense's logits are.

    Raises:
        DefenseFault: when the defense's output cannot be read as logits.
    """
    return _logits(defense.logits(*_arguments(defense, x, rng)), x)


def mean_logits(defense: Defense, x: Tensor, rng: RowStreams, draws: int) -> Tensor:
    """Returns logits (N, K) of images (N, C, H, W). Those of a randomized defense are averages over ``draws`` draws."""
    passes = draws if defense.card.randomized else 1
    return _mean([drawn_logits(defense, x, rng) for _ in range(passes)])


def linearize(
    defense: Defense, x: Tensor, rng: RowStreams, draws: int, *, unrolled: bool = False
) -> tuple[Tensor, VectorJacobian]:
    """Returns the logits (N, K) at ``x`` (N, C, H, W), averaged as in `mean_logits`, and their vector-Jacobian product.

    With ``unrolled``, derivatives also go through the defense's own optimization.

    Raises:
        DefenseFault: when the defense's output cannot be read as logits, or has no derivative.
    """
    if unrolled:
        assert isinstance(defense, HasUnrolledGradient)
        at_draw = defense.unrolled_gradient
    elif isinstance(defense, HasInputGradient):
        at_draw = defense.input_gradient
    else:
        return differentiated(lambda leaf: mean_logits(defense, leaf, rng, draws), x)
    passes = draws if defense.card.randomized else 1
    drawn = [at_draw(*_arguments(defense, x, rng)) for _ in range(passes)]

    def vector_jacobian(cotangent: Tensor) -> Tensor:
        return _mean([_owned(product(cotangent.clone()), x, "its gradients", x.shape) for _, product in drawn])

    return _mean([_logits(logits, x) for logits, _ in drawn]), vector_jacobian


def decisions(defense: HasDecision, x: Tensor) -> Tensor:
    """Returns the classes (N,) int64 that a defense predicts for images (N, C, H, W)."""
    return _owned(defense.decide(x.clone()), x, "its decisions", x.shape[:1], torch.int64)


def reconstructions(defense: HasReconstruction, x: Tensor, y: Tensor) -> Tensor:
    """Returns the reconstructions (N, C, H, W) of images ``x`` under the classes ``y`` (N,)."""
    return _owned(defense.reconstruct(x.clone(), y.clone()), x, "its reconstructions", x.shape)


def decoded_images(defense: HasDecodedImage, x: Tensor) -> Tensor:
    """Returns the reconstructions (N, C, H, W) of images ``x`` by a defense's autoencoder."""
    return _owned(defense.decoded(x.clone()), x, "its decoded images", x.shape)


def detection_scores(defense: HasDetectionScore, x: Tensor) -> Tensor:
    """Returns the detection scores (N,) of images (N, C, H, W). The scores are differentiable in ``x``."""
    return _owned(defense.detection_score(x.clone()), x, "its detection scores", x.shape[:1])


def differentiated(logits_at: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, VectorJacobian]:
    """Returns the logits (N, K) of a function at ``x`` (N, C, H, W), and autograd's vector-Jacobian product.

    Raises:
        DefenseFault: when the logits have no derivative.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = logits_at(leaf)
    if not logits.requires_grad:
        raise DefenseFault('the logits have no gradient; declare access="score"')

    def vector_jacobian(cotangent: Tensor) -> Tensor:
        gradient = torch.autograd.grad(logits, leaf, cotangent, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(x) if gradient is None else gradient

    return logits.detach(), vector_jacobian


def _arguments(defense: Defense, x: Tensor, rng: RowStreams) -> tuple[Any, ...]:
    # The copy of a tensor that requires a gradient is no leaf, so torch lets the defense write on it.
    return (x.clone(), rng) if defense.card.randomized else (x.clone(),)


def _mean(drawn: list[Tensor]) -> Tensor:
    return drawn[0] if len(drawn) == 1 else torch.stack(drawn).mean(0)


def _logits(output: object, x: Tensor) -> Tensor:
    logits = _owned(output, x, "its logits")
    if logits.dim() != 2 or len(logits) != len(x):
        raise DefenseFault(f"its logits have shape {tuple(logits.shape)}; {len(x)} images need ({len(x)}, classes)")
    return logits


def _owned(
    output: object, x: Tensor, what: str, shape: torch.Size | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns a copy of a defense's output as one real tensor, on the device of the images ``x``.

    Raises:
        DefenseFault: when the output is not one real tensor, or has another shape than ``shape``.
    """
    tensor = _tensor(output)
    if tensor is None or tensor.is_complex():
        found = type(output).__name__ if tensor is None else str(tensor.dtype)
        raise DefenseFault(f"{what} are a {found}; a float32 tensor is needed")
    if shape is not None and tensor.shape != shape:
        raise DefenseFault(f"{what} have shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return tensor.to_dense().to(x.device, dtype).clone()


def _tensor(output: object) -> Tensor | None:
    """Returns the one tensor in a model's output: bare, as an array, as ``logits`` or as the only item; else None."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return _tensor(output["logits"] if "logits" in output else list(output.values()))
    if hasattr(output, "logits"):
        return _tensor(output.logits)
    if isinstance(output, tuple | list):
        return _tensor(output[0]) if len(output) == 1 else None
    if hasattr(output, "__array__"):
        array = np.asarray(output)
        return torch.tensor(array) if array.dtype.kind in "biuf" else None
    return None
