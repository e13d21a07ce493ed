"""Counts the passes that a defense makes by itself, where no oracle stands between it and who asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.protocols import Defense, HasInnerSteps, VectorJacobian

ANSWERS = ("logits", "decide", "reconstruct", "decoded", "detection_score")
"""Methods of a defense that are one forward pass for each image."""
DERIVATIVES = ("input_gradient", "unrolled_gradient")
"""Methods that are one forward pass for each image, and give a function that is one backward pass."""


@dataclass
class Passes:
    """Passes through a defense's own methods, summed over images.

    Attributes:
        forwards: through `ANSWERS` and `DERIVATIVES`.
        backwards: through what `DERIVATIVES` give; autograd's own are not seen.
        inner_steps: optimization steps in the forward passes, at most.
    """

    forwards: int = 0
    backwards: int = 0
    inner_steps: int = 0


@contextmanager
def counted(defense: Defense) -> Iterator[Passes]:
    """Counts a defense's passes while the context lasts, those that its own methods make included.

    A pass that is made inside another one is a part of it.
    """
    passes, inner = Passes(), defense.inner_steps if isinstance(defense, HasInnerSteps) else 0
    inside = False

    def counting(method: Callable[..., Any], derivative: bool) -> Callable[..., Any]:
        def counted_method(x: Tensor, *rest: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:
                return method(x, *rest, **named)
            passes.forwards += len(x)
            passes.inner_steps += inner * len(x)
            inside = True
            try:
                answer = method(x, *rest, **named)
            finally:
                inside = False
            return (answer[0], backwards(answer[1])) if derivative else answer

        return counted_method

    def backwards(product: VectorJacobian) -> VectorJacobian:
        def counted_product(cotangent: Tensor) -> Tensor:
            passes.backwards += len(cotangent)
            return product(cotangent)

        return counted_product

    own = dict(vars(defense))
    methods = [name for name in (*ANSWERS, *DERIVATIVES) if hasattr(defense, name)]
    for name in methods:
        setattr(defense, name, counting(getattr(defense, name), name in DERIVATIVES))
    try:
        yield passes
    finally:
        for name in methods:
            if name in own:
                setattr(defense, name, own[name])
            else:
                delattr(defense, name)
