"""A run as the reports see it: its records, manifest and images, and the position of each cell in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.contracts.norms import NormName
from bench.ledger.entries import CellEntry, GapEntry
from bench.ledger.loading import load_clean, load_ledger, load_studies
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest
from bench.ledger.reader import reader
from reports.statistics.brackets import brackets
from reports.statistics.records import CellFacts, cell_facts, clean_distances, smallest_adversarials

Others = TypeVarTuple("Others")
Answer = TypeVar("Answer")


def once_per_run(function: Callable[[Run, Unpack[Others]], Answer]) -> Callable[[Run, Unpack[Others]], Answer]:
    """Caches in a run what a function of the run and of hashable positional arguments returned."""

    @wraps(function)
    def remembered(run: Run, /, *arguments: *Others) -> Answer:
        key = (function, arguments)
        if key not in run.memory:
            run.memory[key] = function(run, *arguments)
        answer: Answer = run.memory[key]
        return answer

    return remembered


@dataclass(frozen=True)
class Run:
    """A run: the data that a report is made from.

    Attributes:
        records: one row per sample and cell, with the ledger's columns (design.md, "Ledger").
        manifest: what the run consists of. The order of its defenses and attacks is the order of columns and rows.
        clean: images of the run's samples in the manifest's order, (S, C, H, W) float32 in [0, 1].
        adversarials: maps a cell's id to its adversarial images, (S, C, H, W) float32; zeros if none was found.
        studies: maps a kind of study (`bench.studies.study`) to its records.
        study_images: maps a study's id to its images, (M, C, H, W) float32.
        chosen: the attacks that a selection kept; None for a whole run.
        memory: the cache of `once_per_run`.
    """

    records: pd.DataFrame
    manifest: Manifest
    clean: NDArray[np.float32]
    adversarials: Callable[[str], NDArray[np.float32]]
    studies: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    study_images: Callable[[str], NDArray[np.float32]] = lambda study: np.empty((0, 1, 1, 1), np.float32)
    chosen: tuple[str, ...] | None = None
    memory: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.manifest.dataset.name

    @property
    def samples(self) -> list[int]:
        """Indices of the samples in the dataset's test set, in the run's order."""
        return list(self.manifest.samples)

    @property
    def defenses(self) -> list[str]:
        """Names of the defenses, in the run's order."""
        return [defense.name for defense in self.manifest.defenses]

    @property
    def randomized(self) -> list[str]:
        """Names of the defenses whose answers are random, in the run's order."""
        return [defense.name for defense in self.manifest.defenses if defense.randomized]

    @property
    def norms(self) -> list[NormName]:
        """The norms with planned or not applicable cells, in the order of the run's thresholds."""
        places: tuple[CellEntry | GapEntry, ...] = (*self.manifest.cells, *self.manifest.not_applicable)
        planned = {place.norm for place in places}
        return [norm for norm in self.manifest.thresholds if norm in planned]

    def threshold(self, norm: NormName) -> float:
        """Returns the epsilon at which accuracies are stated."""
        return self.manifest.thresholds[norm]

    @once_per_run
    def attack_rows(self, norm: NormName) -> list[AttackRow]:
        """Returns the rows of a table of ``norm``: each attack once, but a bounded attack once per epsilon."""
        cells: dict[str, dict[float | None, dict[str, str]]] = {}
        for cell in self.manifest.cells:
            if cell.norm == norm:
                cells.setdefault(cell.attack, {}).setdefault(cell.epsilon, {})[cell.defense] = cell.id
        reasons: dict[str, dict[str, str]] = {}
        for gap in self.manifest.not_applicable:
            if gap.norm == norm:
                reasons.setdefault(gap.attack, {})[gap.defense] = gap.reason
        return [
            AttackRow(attack.name, attack.access, epsilon, of_defense, reasons.get(attack.name, {}))
            for attack in self.manifest.attacks
            if attack.name in cells or attack.name in reasons
            for epsilon, of_defense in cells.get(attack.name, {None: {}}).items()
        ]

    @once_per_run
    def defenses_in(self, norm: NormName) -> list[str]:
        """Returns the defenses for which an attack in ``norm`` is planned or not applicable."""
        rows = self.attack_rows(norm)
        return [name for name in self.defenses if any(row.concerns(name) for row in rows)]

    @cached_property
    def clean_distances(self) -> dict[str, pd.Series]:
        """`reports.statistics.records.clean_distances`, for each defense that has records."""
        columns = self.records[["defense", "sample", "clean_prediction", "status"]]
        return {str(name): clean_distances(own) for name, own in columns.groupby("defense")}

    @cached_property
    def cells(self) -> dict[str, CellEntry]:
        """The manifest's entries of cells, keyed by id."""
        return {cell.id: cell for cell in self.manifest.cells}

    def cells_of(self, defense: str, norm: NormName | None = None) -> list[str]:
        """Returns the ids of the cells of a defense, in one norm or in all."""
        own = (cell for cell in self.manifest.cells if cell.defense == defense)
        return [cell.id for cell in own if norm in (None, cell.norm)]

    @cached_property
    def facts(self) -> dict[str, CellFacts]:
        """`reports.statistics.records.cell_facts`, for each cell that has run."""
        return cell_facts(self.records)

    def records_against(self, defense: str, norm: NormName, columns: list[str]) -> pd.DataFrame:
        """Returns some columns of the records of all attacks on a defense in a norm."""
        rows = np.asarray(self._places.get((defense, norm), ()), dtype=np.intp)
        return self.records[columns].iloc[rows]

    @once_per_run
    def smallest(self, norm: NormName) -> pd.DataFrame:
        """Returns `reports.statistics.records.smallest_adversarials` of the run's records."""
        return smallest_adversarials(self.records, norm)

    @once_per_run
    def brackets(self, norm: NormName) -> pd.DataFrame:
        """Returns `reports.statistics.brackets.brackets` of the run's records and studies."""
        return brackets(
            self.records,
            self.study_records("lower_bound"),
            norm,
            self.randomized,
            self.study_records("refutation"),
        )

    def study_records(self, kind: str) -> pd.DataFrame:
        """Returns the records of all studies of a kind; empty, without columns, if there are none."""
        return self.studies.get(kind, pd.DataFrame())

    def cell_records(self, cell: str) -> pd.DataFrame | None:
        """Returns the records of one cell, or None if the cell has not run."""
        return self._cells.get(cell)

    @cached_property
    def _places(self) -> Mapping[Any, Any]:
        """Positions of the records of each defense and norm."""
        return self.records.groupby(["defense", "norm"], sort=False).indices

    @cached_property
    def _cells(self) -> dict[str, pd.DataFrame]:
        """Records of each cell, without a copy if they are contiguous, as in a ledger."""
        found = {}
        for cell, rows in self.records.groupby("cell", sort=False).indices.items():
            first, last = int(rows[0]), int(rows[-1])
            together = last - first + 1 == len(rows)
            found[str(cell)] = self.records.iloc[first : last + 1] if together else self.records.iloc[rows]
        return found


@dataclass(frozen=True, eq=False)
class AttackRow:
    """One attack against every defense, at one epsilon if the attack is bounded. Rows compare by identity.

    Attributes:
        attack: the attack's name.
        access: what the attack may ask of a defense.
        epsilon: radius of the ball that the attack is bounded to; None for a minimal attack.
        cells: id of the cell, for each defense that has one.
        not_applicable: the reason, for each defense that the attack cannot be run against.
    """

    attack: str
    access: str
    epsilon: float | None
    cells: Mapping[str, str]
    not_applicable: Mapping[str, str]

    def concerns(self, defense: str) -> bool:
        """True if the matrix has a cell for this attack on the defense, or states that the attack is not applicable."""
        return defense in self.cells or defense in self.not_applicable

    @property
    def label(self) -> str:
        """The row's heading."""
        return self.attack if self.epsilon is None else f"{self.attack} (ε={self.epsilon:g})"


def load_run(directory: Path) -> Run:
    """Reads the ledger in ``directory``.

    Raises:
        UserError: when there is no ledger or it is damaged (`bench.contracts.errors.UserError`).
    """
    manifest = load_manifest(directory)
    kinds = {study.kind for study in manifest.studies}
    files, entries = reader(directory, manifest), {work.id: work for work in manifest.works}
    return Run(
        records=load_ledger(directory, manifest),
        manifest=manifest,
        clean=load_clean(directory),
        adversarials=lambda cell: files.adversarials(entries[cell])["adversarial"],
        studies={kind: load_studies(directory, kind, manifest) for kind in sorted(kinds)},
        study_images=lambda study: files.adversarials(entries[study])["study"],
    )
