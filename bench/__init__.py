"""Assay's harness. ``import bench`` is light: what needs torch is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.contracts.cards import attack, defense

if TYPE_CHECKING:
    from bench.api import list_attacks, list_defenses, load_dataset, load_defense, run
    from bench.contracts.wrapping import wrap
    from bench.ledger.loading import load_ledger

__all__ = [
    "attack",
    "defense",
    "list_attacks",
    "list_defenses",
    "load_dataset",
    "load_defense",
    "load_ledger",
    "run",
    "wrap",
]

_LAZY = {
    "run": "bench.api",
    "load_dataset": "bench.api",
    "load_defense": "bench.api",
    "list_attacks": "bench.api",
    "list_defenses": "bench.api",
    "load_ledger": "bench.ledger.loading",
    "wrap": "bench.contracts.wrapping",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        globals()[name] = value = getattr(importlib.import_module(_LAZY[name]), name)
        return value
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
