"""A run as the reports see it: records, manifest and images, and which cell stands where in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.ledger import load_clean, load_ledger, load_manifest, load_studies, reader, works
from bench.norms import Norm
from reports.statistics import CellFacts, brackets, cell_facts, clean_distances, smallest_adversarials

Others = TypeVarTuple("Others")
Answer = TypeVar("Answer")


def once_per_run(function: Callable[[Run, Unpack[Others]], Answer]) -> Callable[[Run, Unpack[Others]], Answer]:
    """Remembers in a run what a function of it, and of hashable positional arguments, returned."""

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
    """What a report is made from.

    Attributes:
        records: one row per sample and cell, with the ledger's columns (design.md, "Ledger").
        manifest: what the run consists of; the order of its defenses and attacks is the order of columns and rows.
        clean: images of the run's samples in the manifest's order, (S, C, H, W) float32 in [0, 1].
        adversarials: from a cell's id to its adversarial images, (S, C, H, W) float32; zeros where none was found.
        studies: from a kind of study (`bench.studies`) to its records.
        study_images: from a study's id to its images, (M, C, H, W) float32.
        memory: what `once_per_run` remembers.
    """

    records: pd.DataFrame
    manifest: Mapping[str, Any]
    clean: NDArray[np.float32]
    adversarials: Callable[[str], NDArray[np.float32]]
    studies: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    study_images: Callable[[str], NDArray[np.float32]] = lambda study: np.empty((0, 1, 1, 1), np.float32)
    memory: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return str(self.manifest["dataset"]["name"])

    @property
    def samples(self) -> list[int]:
        """Indices of the samples in the dataset's test set, in the run's order."""
        return list(self.manifest["samples"])

    @property
    def defenses(self) -> list[str]:
        """Names of the defenses, in the run's order."""
        return [defense["name"] for defense in self.manifest["defenses"]]

    @property
    def randomized(self) -> list[str]:
        """Names of the defenses whose answers are random, in the run's order."""
        return [defense["name"] for defense in self.manifest["defenses"] if defense["randomized"]]

    @property
    def norms(self) -> list[Norm]:
        """The norms in which anything was planned, in the order of the run's thresholds."""
        planned = {entry["norm"] for entry in [*self.manifest["cells"], *self.manifest["not_applicable"]]}
        return [norm for norm in self.manifest["thresholds"] if norm in planned]

    def threshold(self, norm: Norm) -> float:
        """The epsilon at which accuracies are stated."""
        return float(self.manifest["thresholds"][norm])

    @once_per_run
    def attack_rows(self, norm: Norm) -> list[AttackRow]:
        """The rows of a table of ``norm``: each attack once, a bounded one once per epsilon."""
        cells: dict[str, dict[float | None, dict[str, str]]] = {}
        for cell in self.manifest["cells"]:
            if cell["norm"] == norm:
                cells.setdefault(cell["attack"], {}).setdefault(cell["epsilon"], {})[cell["defense"]] = cell["id"]
        reasons: dict[str, dict[str, str]] = {}
        for entry in self.manifest["not_applicable"]:
            if entry["norm"] == norm:
                reasons.setdefault(entry["attack"], {})[entry["defense"]] = entry["reason"]
        return [
            AttackRow(attack["name"], attack["access"], epsilon, of_defense, reasons.get(attack["name"], {}))
            for attack in self.manifest["attacks"]
            if attack["name"] in cells or attack["name"] in reasons
            for epsilon, of_defense in cells.get(attack["name"], {None: {}}).items()
        ]

    @once_per_run
    def defenses_in(self, norm: Norm) -> list[str]:
        """The defenses of which ``norm`` says something: an attack in it is for them, or is not applicable to them."""
        rows = self.attack_rows(norm)
        return [name for name in self.defenses if any(row.concerns(name) for row in rows)]

    @cached_property
    def clean_distances(self) -> dict[str, pd.Series]:
        """`reports.statistics.clean_distances` of each defense that has records."""
        columns = self.records[["defense", "sample", "clean_prediction", "status"]]
        return {str(name): clean_distances(own) for name, own in columns.groupby("defense")}

    @cached_property
    def cells(self) -> dict[str, Mapping[str, Any]]:
        """The manifest's entries of cells, by id."""
        return {cell["id"]: cell for cell in self.manifest["cells"]}

    def cells_of(self, defense: str, norm: Norm | None = None) -> list[str]:
        """Ids of the cells of a defense, in one norm or in all."""
        own = (cell for cell in self.manifest["cells"] if cell["defense"] == defense)
        return [cell["id"] for cell in own if norm in (None, cell["norm"])]

    @cached_property
    def facts(self) -> dict[str, CellFacts]:
        """`reports.statistics.cell_facts` of each cell that has run."""
        return cell_facts(self.records)

    def records_against(self, defense: str, norm: Norm, columns: list[str]) -> pd.DataFrame:
        """Some columns of the records of all attacks on a defense in a norm."""
        rows = np.asarray(self._places.get((defense, norm), ()), dtype=np.intp)
        return self.records[columns].iloc[rows]

    @once_per_run
    def smallest(self, norm: Norm) -> pd.DataFrame:
        """`reports.statistics.smallest_adversarials` of the run's records."""
        return smallest_adversarials(self.records, norm)

    @once_per_run
    def brackets(self, norm: Norm) -> pd.DataFrame:
        """`reports.statistics.brackets` of the run's records and studies."""
        return brackets(
            self.records,
            self.study_records("lower_bound"),
            norm,
            self.randomized,
            self.study_records("refutation"),
        )

    def study_records(self, kind: str) -> pd.DataFrame:
        """The records of all studies of a kind; empty, without columns, where there are none."""
        return self.studies.get(kind, pd.DataFrame())

    def cell_records(self, cell: str) -> pd.DataFrame | None:
        """The records of one cell, or None where it has not run."""
        return self._cells.get(cell)

    @cached_property
    def _places(self) -> Mapping[Any, Any]:
        """The rows of each defense and norm."""
        return self.records.groupby(["defense", "norm"], sort=False).indices

    @cached_property
    def _cells(self) -> dict[str, pd.DataFrame]:
        """The records of each cell: without a copy where they stand together, as in a ledger."""
        found = {}
        for cell, rows in self.records.groupby("cell", sort=False).indices.items():
            first, last = int(rows[0]), int(rows[-1])
            together = last - first + 1 == len(rows)
            found[str(cell)] = self.records.iloc[first : last + 1] if together else self.records.iloc[rows]
        return found


@dataclass(frozen=True, eq=False)
class AttackRow:
    """One attack (at one epsilon, where it is bounded) against every defense; the same as itself only.

    Attributes:
        attack: its name.
        access: what it may ask of a defense.
        epsilon: the ball that it fills; None for a minimal attack.
        cells: id of the cell of each defense that has one.
        not_applicable: for each defense that it cannot be run against, the reason.
    """

    attack: str
    access: str
    epsilon: float | None
    cells: Mapping[str, str]
    not_applicable: Mapping[str, str]

    def concerns(self, defense: str) -> bool:
        """True if the matrix has a place for this attack on the defense."""
        return defense in self.cells or defense in self.not_applicable

    @property
    def label(self) -> str:
        """The row's heading."""
        return self.attack if self.epsilon is None else f"{self.attack} (ε={self.epsilon:g})"


def load_run(directory: Path) -> Run:
    """Reads ``directory``'s ledger; raises `bench.errors.UserError` where it holds none or a damaged one."""
    manifest = load_manifest(directory)
    kinds = {study["kind"] for study in manifest.get("studies", [])}
    files, entries = reader(directory, manifest), {work["id"]: work for work in works(manifest)}
    return Run(
        records=load_ledger(directory, manifest),
        manifest=manifest,
        clean=load_clean(directory),
        adversarials=lambda cell: files.adversarials(entries[cell])["adversarial"],
        studies={kind: load_studies(directory, kind, manifest) for kind in sorted(kinds)},
        study_images=lambda study: files.adversarials(entries[study])["study"],
    )
