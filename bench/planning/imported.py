"""Decides which imported cells still belong to a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.contracts.source import engine_code
from bench.datasets.dataset import Dataset
from bench.ledger.entries import CellEntry
from bench.training.loading import LoadedDefense


def outdated(
    entries: Sequence[CellEntry],
    defenses: Mapping[str, LoadedDefense],
    data: Dataset,
    samples_of: Callable[[str], int],
) -> dict[str, str]:
    """Returns, by id, the reasons why imported cells of a manifest no longer belong to the run.

    Such a cell was judged with images, defenses, weights or code that differ from the run's current ones.
    ``samples_of`` returns the number of samples of a defense.
    """
    current = {name: state_of_import(loaded, data, samples_of(name)) for name, loaded in defenses.items()}
    reasons = {}
    for entry in entries:
        before, now = entry.imported or {}, current.get(entry.defense)
        if now is None:
            reasons[entry.id] = f"{entry.defense} is not in the run"
        elif before != now:
            keys = [key for key in now if before.get(key) != now[key]]
            reasons[entry.id] = f"judged with other {', '.join(keys)}; import the file again"
    return reasons


def state_of_import(loaded: LoadedDefense, data: Dataset, samples: int) -> dict[str, str]:
    """Returns everything besides the candidates that the judging of imported candidates depends on."""
    engine = engine_code()
    return {
        **loaded.state(data),
        "samples": str(samples),
        "engine": engine.digest,
        "libraries": loaded.code.versions(without=engine),
    }
