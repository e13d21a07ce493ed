"""Defenses, ready to be queried."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property

import torch

from bench.cards import DefenseCard
from bench.datasets import Dataset
from bench.errors import UserError
from bench.protocols import Defense, Trainable, as_defense, fingerprint
from bench.registry import Plugin, Registry
from bench.training import checkpoint_path, ensure_trained


@dataclass(frozen=True)
class LoadedDefense:
    """A defense with the plugin it was made from."""

    plugin: Plugin
    defense: Defense

    @property
    def card(self) -> DefenseCard:
        """The defense's card."""
        return self.plugin.defense_card

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the defense's tensors."""
        return fingerprint(self.defense)


def make_defense(name: str, dataset: Dataset, registry: Registry) -> LoadedDefense:
    """Builds a defense without training it.

    Raises:
        UserError: when it is unknown, does not classify this dataset, or its factory fails.
    """
    plugin = registry.get("defenses", name)
    card = plugin.defense_card
    if dataset.name not in card.datasets:
        raise UserError(f"defense {name!r} is not for dataset {dataset.name!r}. It is for: {', '.join(card.datasets)}")
    wants_dataset = "dataset" in inspect.signature(plugin.function).parameters
    try:
        made = plugin.function(dataset=dataset) if wants_dataset else plugin.function()
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"defense {name!r} ({plugin.source}) cannot be built: {type(error).__name__}: {text}"
        ) from error
    return LoadedDefense(plugin, as_defense(card, made))


def load_trained(name: str, dataset: Dataset, registry: Registry, seed: int, device: torch.device) -> LoadedDefense:
    """Builds a defense, trains it on first use or loads its cached state, and moves it to ``device``.

    Raises:
        UserError: as `make_defense`, and when its checkpoint is corrupt.
    """
    loaded = make_defense(name, dataset, registry)
    if isinstance(loaded.defense, Trainable):
        ensure_trained(loaded.defense, dataset, seed, device, loaded.plugin.digest)
    loaded.defense.to(device)
    return loaded


def needs_training(loaded: LoadedDefense, dataset: Dataset, seed: int) -> bool:
    """True if a defense would have to be trained before it can be used."""
    if not isinstance(loaded.defense, Trainable):
        return False
    path = checkpoint_path(loaded.defense, dataset, seed, loaded.plugin.digest)
    return not path.with_suffix(".json").exists()
