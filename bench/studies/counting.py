"""Counts the passes through a defense that is called directly, without an oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.contracts.protocols import Defense, HasInnerSteps, VectorJacobian

ANSWERS = ("logits", "decide", "reconstruct", "decoded", "detection_score")
"""Methods of a defense that take one forward pass per image."""
DERIVATIVES = ("input_gradient", "unrolled_gradient")
"""Methods that take one forward pass per image and return a function that takes one backward pass."""


@dataclass
class Passes:
    """Passes through a defense's own methods, summed over images.

    Attributes:
        forwards: passes through `ANSWERS` and `DERIVATIVES`.
        backwards: passes through the functions that `DERIVATIVES` return. Autograd's own passes are not counted.
        inner_steps: maximum number of optimization steps within the forward passes.
    """

    forwards: int = 0
    backwards: int = 0
    inner_steps: int = 0


@contextmanager
def counted(defense: Defense) -> Iterator[Passes]:
    """Counts a defense's passes while the context lasts, including passes made by its own methods.

    A pass within another pass is not counted separately.
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
