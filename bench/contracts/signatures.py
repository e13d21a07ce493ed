"""Compares the signatures of a defense's methods with the protocols in `bench.contracts.protocols`.

The protocols are detected by the names of methods alone. Without this check, a ``reconstruct(x)`` that lacks ``y``
would fail inside a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from bench.contracts.errors import DefenseFault
from bench.contracts.protocols import (
    Defense,
    HasCalibration,
    HasDecision,
    HasDecodedImage,
    HasDetectionScore,
    HasInputGradient,
    HasLowerBound,
    HasReconstruction,
    HasUnrolledGradient,
    HasWarmAnswers,
    Trainable,
)

CAPABILITIES = (
    HasInputGradient,
    HasUnrolledGradient,
    HasDecision,
    HasReconstruction,
    HasDecodedImage,
    HasLowerBound,
    HasDetectionScore,
    HasWarmAnswers,
    HasCalibration,
    Trainable,
)
"""The protocols with methods."""


def check_signatures(defense: Defense) -> None:
    """Checks that each method of a defense takes the positional arguments that its protocol names.

    Raises:
        DefenseFault: when a method does not. The message shows its signature and the right one.
    """
    for name, expected in _expected(defense):
        try:
            signature = inspect.signature(getattr(defense, name))
        except (TypeError, ValueError):  # some methods in compiled code have none
            continue
        try:
            signature.bind(*expected)
        except TypeError:
            right = f"{name}({', '.join(expected)})"
            streams = " (a randomized defense takes its streams)" if expected[-1:] == ["rng"] else ""
            raise DefenseFault(f"its {name}{_shown(signature)} must be {right}{streams}") from None


def _expected(defense: Defense) -> Iterator[tuple[str, list[str]]]:
    """Yields names of methods and of their positional arguments, as the engine calls them."""
    rng = ["rng"] if defense.card.randomized else []
    yield "logits", ["x", *rng]
    for protocol in CAPABILITIES:
        if isinstance(defense, protocol):
            for name, method in vars(protocol).items():
                if inspect.isfunction(method) and not name.startswith("_"):
                    arguments = list(inspect.signature(method).parameters)[1:]
                    yield name, [each for each in arguments if each != "rng"] + (rng if "rng" in arguments else [])


def _shown(signature: inspect.Signature) -> str:
    """Returns a signature without annotations."""
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(bare))
