"""The same from Python as from the command line, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from bench import datasets
from bench.cards import AttackCard
from bench.checkpoints import zoo_cards
from bench.datasets import Dataset
from bench.ledger import load_ledger
from bench.loading import load_trained
from bench.matrix import build_matrix, read_matrix, with_settings
from bench.protocols import Defense
from bench.provenance import check_packages
from bench.registry import Group, Registry
from bench.running import RunnerName, choose_device, default_out, execute, prepare, process_count


def run(
    matrix: str = "digits",
    *,
    samples: int | None = None,
    defenses: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    norms: Sequence[str] | None = None,
    plugins: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    runner: RunnerName = "auto",
    seed: int | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Runs what is missing of a matrix and returns its ledger (see `bench.ledger.load_ledger`).

    Arguments are the options of ``assay run``. A script that uses the process runner needs the usual
    ``if __name__ == "__main__":`` guard.

    Raises:
        bench.errors.UserError: for whatever the user has to mend.
    """
    check_packages()
    where, data = read_matrix(matrix)
    registry = Registry(plugins)
    built = build_matrix(
        where,
        with_settings(where, data, settings),
        registry,
        samples=samples,
        seed=seed,
        defenses=defenses,
        attacks=attacks,
        norms=norms,
    )
    folder = default_out(built) if out is None else Path(out)
    data_path = None if data_dir is None else Path(data_dir)
    torch_device = choose_device(device)
    processes = process_count(workers, runner, torch_device)
    planned = prepare(built, registry, folder, data_path, torch_device, processes)
    execute(planned, folder, data_path, torch_device, processes, runner)
    return load_ledger(folder)


def list_defenses(plugins: Sequence[str | Path] = ()) -> pd.DataFrame:
    """All defenses: name, datasets, access, randomized, source, trained, error, citation.

    ``trained`` names the datasets for which weights come with Assay, and the clean accuracy there.
    """
    return _listing("defenses", plugins)


def list_attacks(plugins: Sequence[str | Path] = ()) -> pd.DataFrame:
    """All attacks: name, norms, access, kind, randomized, budget, source, error, citation."""
    return _listing("attacks", plugins)


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A dataset; ``.test`` and ``.train`` have images (N, C, H, W) float32 in [0, 1] and labels (N,) int64."""
    return datasets.load_dataset(name, None if data_dir is None else Path(data_dir))


def load_defense(
    name: str,
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    seed: int = 0,
    device: str = "auto",
) -> Defense:
    """A defense, trained on first use: ``logits(x)``, ``card``, and its capabilities (see `bench.protocols`)."""
    loaded = load_trained(name, load_dataset(dataset, data_dir), Registry(plugins), seed, choose_device(device))
    return loaded.defense


def _listing(group: Group, plugins: Sequence[str | Path]) -> pd.DataFrame:
    return pd.DataFrame(list(_rows(group, plugins))).fillna("")


def _rows(group: Group, plugins: Sequence[str | Path]) -> Iterable[dict[str, object]]:
    trained: dict[str, str] = {}
    for card in zoo_cards() if group == "defenses" else ():
        accuracy = f"{card['dataset']} {card['clean_accuracy']:.2%}"
        trained[card["defense"]] = ", ".join(filter(None, [trained.get(card["defense"]), accuracy]))
    for name, source, plugin in Registry(plugins).rows(group):
        if isinstance(plugin, str):
            yield {"name": name, "source": source, "error": plugin}
        elif isinstance(plugin.card, AttackCard):
            yield {
                "name": name,
                "norms": ", ".join(plugin.card.norms),
                "access": plugin.card.access,
                "kind": ", ".join(plugin.card.kinds),
                "randomized": plugin.card.stochastic,
                "budget": plugin.card.budget,
                "source": source,
                "error": "",
                "citation": plugin.card.citation,
            }
        else:
            yield {
                "name": name,
                "datasets": ", ".join(plugin.card.datasets),
                "access": plugin.card.access,
                "randomized": plugin.card.randomized,
                "source": source,
                "trained": trained.get(name, ""),
                "error": "",
                "citation": plugin.card.citation,
            }
