"""Loads again the defenses and data that a stored run names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.contracts.errors import UserError
from bench.contracts.protocols import Trainable
from bench.datasets.dataset import Dataset, load_dataset
from bench.ledger.bundles import unchanged_sources
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest
from bench.plugins.registry import Registry
from bench.training.checkpoints import find_checkpoint
from bench.training.loading import LoadedDefense, load_trained, make_defense, needs_training


class Laboratory:
    """Loads each dataset and defense once, as `assay run` does.

    Args:
        data_dir: folder with the datasets' files.
        device: device of the defenses.
        plugins: Python files with defenses. No other user code is run.

    Attributes:
        memory: cached results on defenses, for the next run.
    """

    def __init__(self, data_dir: Path | None, device: torch.device, plugins: Sequence[str | Path] = ()) -> None:
        self.device = device
        self._data_dir, self._plugins = data_dir, plugins
        self.memory: dict[Any, Any] = {}
        self._datasets: dict[str, Dataset] = {}
        self._defenses: dict[str, LoadedDefense | str] = {}

    def dataset(self, name: str) -> Dataset:
        """Returns a dataset by name."""
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name, self._data_dir)
        return self._datasets[name]

    def defense(self, name: str, manifest: Manifest) -> LoadedDefense | str:
        """Returns a defense of a run, or the reason why it is not available. Nothing is trained."""
        registry = _registry(manifest, self._plugins)
        seed, dataset = manifest.seed, self.dataset(manifest.dataset.name)
        key = json.dumps([name, registry.variants, seed, dataset.name], sort_keys=True)
        if key not in self._defenses:
            self._defenses[key] = self._load(name, registry, seed, dataset)
        return self._defenses[key]

    def _load(self, name: str, registry: Registry, seed: int, dataset: Dataset) -> LoadedDefense | str:
        try:
            if needs_training(make_defense(name, dataset, registry), dataset, seed):
                return f"{name} is not trained here; train it with: assay train {name} --dataset {dataset.name}"
            return load_trained(name, dataset, registry, seed, self.device)
        except UserError as error:
            return f"{error}; if {name} is a plugin's, name its file with --plugin"


def checkpoints_of(run: Path, data_dir: Path | None) -> dict[str, list[Path]]:
    """Returns the checkpoint files of a run's defenses, by their folder in a cache.

    Raises:
        UserError: when a plugin is not the one that was run, or a defense cannot be built here or is not trained.
    """
    manifest = load_manifest(run)
    dataset = load_dataset(manifest.dataset.name, data_dir)
    for plugin in manifest.plugins:
        unchanged_sources(plugin)  # before any of them runs
    registry = _registry(manifest, [plugin.file for plugin in manifest.plugins])
    files: dict[str, None] = {}
    for entry in manifest.defenses:
        learner = make_defense(entry.name, dataset, registry).learner
        if isinstance(learner.defense, Trainable):
            found = find_checkpoint(learner.defense, dataset, manifest.seed, learner.plugin.recipe)
            if found is None:
                raise UserError(f"defense {entry.name!r}: not trained here; there are no weights to pack")
            files |= dict.fromkeys(map(str, (found.path, found.path.with_suffix(".json"))))
    return {f"checkpoints/{dataset.name}": [Path(file) for file in files]}


def _registry(manifest: Manifest, plugins: Sequence[str | Path]) -> Registry:
    """Returns the registry from which a run's defenses are built."""
    return Registry(plugins, manifest.variants)
