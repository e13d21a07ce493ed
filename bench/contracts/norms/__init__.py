"""Norms: how far an adversarial example is from its clean image, and what follows from that.

A norm is one module of this folder. Cards, cells, matrices and ledgers hold the norm's name. `ThreatModel` holds the
norm itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from bench.contracts.norms.names import NormName, check_norm, of_norm
from bench.contracts.norms.norm import TOLERANCE, Norm, within

__all__ = ["NORMS", "TOLERANCE", "Norm", "NormName", "check_norm", "norm_named", "of_norm", "within"]


def _declared() -> Iterator[Norm]:
    """Yields the norms that the modules of this folder declare. A reader of sources counts the same modules."""
    for module in iter_modules(__path__):
        imported = import_module(f"{__name__}.{module.name}")
        for value in vars(imported).values():
            declared = isinstance(value, type) and value.__module__ == imported.__name__
            if declared and issubclass(value, Norm) and not isabstract(value):
                yield value()


NORMS: Mapping[NormName, Norm] = {norm.name: norm for norm in sorted(_declared(), key=lambda norm: norm.position)}
"""The norms by name, in the order of their positions."""


def norm_named(name: NormName) -> Norm:
    """Returns the norm with this name.

    Raises:
        ValueError: when there is no such norm.
    """
    check_norm(name, NORMS)
    return NORMS[name]
