"""A run in one norm: the attacks of that norm, their cells and what each found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from bench.ledger.entries import CellEntry
from reports.runs.rows import AttackRow
from reports.statistics.records import CellFacts


@dataclass(frozen=True)
class NormRun:
    """A run in one norm.

    Attributes:
        norm: the norm.
        threshold: the epsilon at which accuracies are stated.
        rows: the rows of its tables: each attack once, but a bounded attack once per epsilon.
        defenses: the defenses for which an attack is planned or not applicable.
        entries: the manifest's entry of each planned cell, keyed by id.
        records: the records of each cell that has run, keyed by id.
        facts: `reports.statistics.records.cell_facts` of each cell that has run.
        smallest: `reports.statistics.records.smallest_adversarials`.
        distances: the smallest distances over all attacks by sample, for each defense that has some.
        randomized: names of the run's defenses whose answers are random.
        unrolled: names of the run's defenses that offer gradients through their own optimization.
        optimizing: names of the run's defenses that optimize at inference.
        resubmissions: N of the protocol "best of N"; 0 for a run before version 3 of the ledger.
        all_records: the records of the run.
        places: positions in ``all_records``, keyed by defense and norm.
    """

    norm: NormName
    threshold: float
    rows: Sequence[AttackRow]
    defenses: Sequence[str]
    entries: Mapping[str, CellEntry]
    records: Mapping[str, pd.DataFrame]
    facts: Mapping[str, CellFacts]
    smallest: pd.DataFrame
    distances: Mapping[str, pd.Series]
    randomized: Collection[str]
    unrolled: Collection[str]
    optimizing: Collection[str]
    resubmissions: int
    all_records: pd.DataFrame
    places: Mapping[Any, Any]

    def records_of(self, row: AttackRow, defense: str) -> pd.DataFrame | None:
        """Returns the records of an attack on a defense, or None if there is no such cell or it has not run."""
        return self.records.get(row.cells.get(defense, ""))

    def records_against(self, defense: str, columns: list[str]) -> pd.DataFrame:
        """Returns some columns of the records of all attacks on a defense."""
        rows = np.asarray(self.places.get((defense, self.norm), ()), dtype=np.intp)
        return self.all_records[columns].iloc[rows]
