"""A run as the reports see it: its records, manifest and images, and the position of each cell in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.contracts.norms import NormName
from bench.ledger.entries import CellEntry, GapEntry
from bench.ledger.loading import load_clean, load_ledger, load_studies
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest
from bench.ledger.reader import reader
from reports.runs.norm_run import NormRun
from reports.runs.rows import AttackRow
from reports.statistics.brackets import brackets
from reports.statistics.records import CellFacts, by_sample, cell_facts, clean_distances, smallest_adversarials


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
        chosen: names of the attacks that were selected from the run; None for all of them.
    """

    records: pd.DataFrame
    manifest: Manifest
    clean: NDArray[np.float32]
    adversarials: Callable[[str], NDArray[np.float32]]
    studies: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    study_images: Callable[[str], NDArray[np.float32]] = lambda study: np.empty((0, 1, 1, 1), np.float32)
    chosen: tuple[str, ...] | None = None

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

    @cached_property
    def in_norms(self) -> dict[NormName, NormRun]:
        """The run in each of its norms."""
        return {norm: self._in_norm(norm) for norm in self.norms}

    @cached_property
    def clean_distances(self) -> dict[str, pd.Series]:
        """`reports.statistics.records.clean_distances`, for each defense that has records."""
        columns = self.records[["defense", "sample", "clean_prediction", "status"]]
        return {str(name): clean_distances(own) for name, own in columns.groupby("defense")}

    @cached_property
    def facts(self) -> dict[str, CellFacts]:
        """`reports.statistics.records.cell_facts`, for each cell that has run."""
        return cell_facts(self.records)

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

    def _in_norm(self, norm: NormName) -> NormRun:
        rows = self._attack_rows(norm)
        smallest = smallest_adversarials(self.records, norm)
        return NormRun(
            norm=norm,
            threshold=self.threshold(norm),
            rows=rows,
            defenses=[name for name in self.defenses if any(row.concerns(name) for row in rows)],
            entries={cell.id: cell for cell in self.manifest.cells if cell.norm == norm},
            records={cell: self._cells[cell] for row in rows for cell in row.cells.values() if cell in self._cells},
            facts=self.facts,
            smallest=smallest,
            distances={str(name): by_sample(own, "distance") for name, own in smallest.groupby("defense")},
            randomized=self.randomized,
            resubmissions=self.manifest.resubmissions,
            unrolled=[defense.name for defense in self.manifest.defenses if defense.unrolled],
            optimizing=[defense.name for defense in self.manifest.defenses if defense.optimizes],
            all_records=self.records,
            places=self._places,
        )

    def _attack_rows(self, norm: NormName) -> list[AttackRow]:
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
