"""The Python interface for notebooks and scripts, equivalent to the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from bench.contracts.cards import AttackCard
from bench.contracts.protocols import Defense
from bench.datasets import dataset as datasets
from bench.datasets.dataset import Dataset
from bench.execution.execute import choose_device, default_out, execute, process_count
from bench.ledger.loading import load_ledger
from bench.ledger.provenance import check_packages
from bench.planning.files import Choices, chosen_matrix
from bench.planning.plan import Site, prepare
from bench.plugins.registry import Group, Registry
from bench.training.checkpoints import zoo_cards
from bench.training.loading import load_trained


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
    runner: str = "auto",
    seed: int | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Runs the missing cells and studies of a matrix and returns its ledger.

    A script needs the guard ``if __name__ == "__main__":`` around the call, because worker processes import it again.

    Args:
        matrix: name of an embedded matrix, or path of a TOML file.
        samples: number of test images; the first ones are taken.
        defenses: only these, by name or label. May name others than the matrix does.
        attacks: likewise.
        norms: only these norms of the matrix.
        plugins: Python files with defenses or attacks.
        data_dir: folder with the datasets' files. Without it, torchvision downloads them.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        workers: number of worker processes. By default one per core, or one on a GPU.
        runner: ``process``, ``serial`` (this process alone), or ``auto``.
        seed: seed of training and attacks, 0 by default.
        settings: changes to the matrix: ``"thresholds.L2=1"``, ``"boundary.steps=500"``.
        out: folder of the run, ``runs/<matrix>`` by default.

    Returns:
        One row per cell and sample; the columns are those of `bench.load_ledger`.

    Raises:
        bench.contracts.errors.UserError: for anything that the user has to fix.

    Example:
        >>> import bench
        >>> chosen = {"defenses": ["nearest_neighbour"], "attacks": ["fgm"], "settings": ["studies=[]"]}
        >>> ledger = bench.run("digits", samples=4, norms=["L2"], **chosen, runner="serial")
        >>> ledger[["defense", "attack", "norm", "sample", "status"]]
                     defense attack norm  sample status
        0  nearest_neighbour    fgm   L2       0  found
        1  nearest_neighbour    fgm   L2       1  found
        2  nearest_neighbour    fgm   L2       2  found
        3  nearest_neighbour    fgm   L2       3  found
    """
    check_packages()
    built, registry = chosen_matrix(matrix, Choices(samples, seed, defenses, attacks, norms, settings), plugins)
    folder = default_out(built) if out is None else Path(out)
    site = Site(folder, None if data_dir is None else Path(data_dir), choose_device(device))
    processes = process_count(workers, runner, site.device)
    execute(prepare(built, registry, site, processes), processes, runner)
    return load_ledger(folder)


def list_defenses(plugins: Sequence[str | Path] = ()) -> pd.DataFrame:
    """Lists all defenses, from their cards.

    Args:
        plugins: Python files with further defenses.

    Returns:
        One row per defense: name, datasets, access, randomized, source, trained, error, citation. ``trained`` names the
        datasets for which Assay includes weights, with the clean accuracy on each. ``error`` says why a plugin cannot
        be imported.

    Example:
        >>> import bench
        >>> bench.list_defenses().set_index("name").loc["cnn", "access"]
        'gradient'
    """
    return _listing("defenses", plugins)


def list_attacks(plugins: Sequence[str | Path] = ()) -> pd.DataFrame:
    """Lists all attacks, from their cards.

    Args:
        plugins: Python files with further attacks.

    Returns:
        One row per attack: name, norms, access, kind, randomized, budget, source, error, citation. ``budget`` is the
        maximum number of forward plus backward passes per sample.

    Example:
        >>> import bench
        >>> bench.list_attacks().set_index("name").loc["ddn", ["norms", "access", "kind"]].tolist()
        ['L2', 'gradient', 'minimal']
    """
    return _listing("attacks", plugins)


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a dataset.

    Args:
        name: a name of ``assay list datasets``.
        data_dir: folder with the datasets' files. Without it, torchvision downloads them.

    Returns:
        A dataset. ``.test`` and ``.train`` have images (N, C, H, W) float32 in [0, 1] and labels (N,) int64.

    Raises:
        bench.contracts.errors.UserError: for an unknown name, or for files that are missing or corrupt.

    Example:
        >>> import bench
        >>> tuple(bench.load_dataset("digits").test.images.shape)
        (600, 1, 8, 8)
    """
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
    """Loads a defense and trains it on first use.

    Args:
        name: a name of ``assay list defenses``.
        dataset: the dataset that the defense classifies.
        data_dir: folder with the datasets' files. Without it, torchvision downloads them.
        plugins: Python files with further defenses.
        seed: seed of the training.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        A defense with ``logits(x)``, ``card``, and its capabilities (`bench.contracts.protocols`).

    Raises:
        bench.contracts.errors.UserError: for an unknown name, or a defense that does not classify the dataset.

    Example:
        >>> import bench
        >>> defense = bench.load_defense("nearest_neighbour", "digits")
        >>> images = bench.load_dataset("digits").test.images
        >>> tuple(defense.logits(images[:3]).shape)
        (3, 10)
    """
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
