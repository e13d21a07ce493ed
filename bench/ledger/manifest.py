"""The manifest: the typed contents of a run, its selections and its combinations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import Field

from bench.contracts.errors import UserError
from bench.contracts.norms import NormName
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.entries import (
    AttackEntry,
    CellEntry,
    DatasetEntry,
    DefenseEntry,
    Entry,
    GapEntry,
    KnownNorm,
    PluginEntry,
    StudyEntry,
    Turn,
    WorkEntry,
    attacks_of_imports,
)

Item = TypeVar("Item")


class Manifest(Entry):
    """The contents of a run, and the hashes of its files once it is finished."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    """The version in which it was written."""
    matrix: str
    """Name of the matrix."""
    definition: dict[str, Any] = Field(default={})
    """The matrix itself (`bench.planning.matrix.Matrix`)."""
    plugins: tuple[PluginEntry, ...] = ()
    """Files of code that is not Assay's."""
    dataset: DatasetEntry
    samples: tuple[int, ...]
    """Indices in the dataset's test set."""
    images: str
    """Name of the file of the clean images in the ledger's folder."""
    seed: int
    thresholds: dict[KnownNorm, float]
    """The radius in each norm at which accuracies are stated, in the norm's unit."""
    estimation_draws: int = 0
    """Number of draws that estimate success rates; 0 before schema version 3, which does not record it."""
    resubmissions: int = 0
    """Number N of the protocol "best of N draws"; 0 before schema version 3, which does not have it."""
    defenses: tuple[DefenseEntry, ...]
    attacks: tuple[AttackEntry, ...]
    cells: tuple[CellEntry, ...]
    studies: tuple[StudyEntry, ...] = ()
    imported: tuple[CellEntry, ...] = ()
    """All imported cells, including those that the run does not use now."""
    turns: tuple[Turn, ...] = ()
    """The imports to randomized defenses, first to last."""
    modules: dict[str, str] = Field(default={})
    """Digests of all modules that the results depend on."""
    not_applicable: tuple[GapEntry, ...]
    provenance: dict[str, Any] = Field(default={})
    """Versions, machine, device and command of the run that wrote it."""
    files: dict[str, str] | None = None
    """SHA-256 of every file, by name; None if the run is not finished."""

    @property
    def works(self) -> tuple[WorkEntry, ...]:
        """The cells and studies."""
        return (*self.cells, *self.studies)

    def work(self, id: str) -> WorkEntry | None:
        """Returns the cell or study with an id, or None."""
        return next((work for work in self.works if work.id == id), None)

    def defense(self, name: str) -> DefenseEntry:
        """Returns a defense by name. Raises `KeyError` if the run does not have it."""
        return {defense.name: defense for defense in self.defenses}[name]

    def samples_of(self, name: str) -> int:
        """Returns the number of samples of a defense. Raises `KeyError` if the run does not have it."""
        own = self.defense(name).samples
        return len(self.samples) if own is None else own

    @property
    def variants(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The registered names and parameters of the defenses whose parameters the matrix sets, by label."""
        return {each.name: (each.plugin, each.set) for each in self.defenses if each.plugin}

    def with_studies(self, kind: str, studies: Iterable[StudyEntry]) -> Manifest:
        """Returns the manifest with other studies of one kind."""
        others = (study for study in self.studies if study.kind != kind)
        return self.model_copy(update={"studies": (*others, *studies)})

    def with_turn(self, turn: Turn) -> Manifest:
        """Returns the manifest with one more turn, unless it has the turn already."""
        return self if turn in self.turns else self.model_copy(update={"turns": (*self.turns, turn)})

    def with_imports(self, entries: Sequence[CellEntry]) -> Manifest:
        """Returns the manifest with imported cells."""
        added, present = {entry.id for entry in entries}, {cell.id for cell in self.cells}
        new = [entry for entry in entries if entry.id not in present]
        labels = {attack.name for attack in self.attacks}
        return self.model_copy(
            update={
                "attacks": (*self.attacks, *(a for a in attacks_of_imports(new) if a.name not in labels)),
                "cells": (*self.cells, *new),
                "imported": (*(entry for entry in self.imported if entry.id not in added), *entries),
            }
        )

    def selected(self, norms: Collection[str], attacks: Collection[str]) -> Manifest:
        """Returns the manifest restricted to some norms and attacks."""
        return self.model_copy(
            update={
                "thresholds": {norm: radius for norm, radius in self.thresholds.items() if norm in norms},
                "attacks": tuple(attack for attack in self.attacks if attack.name in attacks),
                "cells": tuple(c for c in self.cells if c.attack in attacks and c.norm in norms),
                "not_applicable": tuple(g for g in self.not_applicable if g.attack in attacks and g.norm in norms),
                "studies": tuple(study for study in self.studies if study.norm is None or study.norm in norms),
            }
        )


def combined(manifests: Sequence[Manifest]) -> Manifest:
    """Combines the manifests of runs on the same images into one, with the defenses and attacks of all.

    Raises:
        UserError: when the runs have different datasets, seeds or thresholds, define a defense differently, or measured
            the same thing in two ways.
    """
    first, *others = manifests
    for other in others:
        _check_equal(first, other)
    cells = _once((cell for manifest in manifests for cell in manifest.cells), lambda cell: cell.id)
    studies = _once((study for manifest in manifests for study in manifest.studies), lambda study: study.id)
    works: list[WorkEntry] = [*cells, *studies]
    times = Counter(work.place for work in works)
    for work in works:
        if times[work.place] > 1:
            raise UserError(f"the runs have {work.title} in two ways")
    measured = {cell.place[:3] for cell in cells}
    gaps = _once((gap for m in manifests for gap in m.not_applicable), lambda gap: (gap.defense, gap.attack, gap.norm))
    norms: dict[str, dict[NormName, None]] = {}
    for attack in (attack for manifest in manifests for attack in manifest.attacks):
        norms.setdefault(attack.name, {}).update(dict.fromkeys(attack.norms))
    attacks = _once((attack for manifest in manifests for attack in manifest.attacks), lambda attack: attack.name)
    # The draws of every run suffice for the fewest resubmissions.
    resubmissions = [manifest.resubmissions for manifest in manifests if manifest.resubmissions]
    return first.model_copy(
        update={
            "matrix": " + ".join(dict.fromkeys(manifest.matrix for manifest in manifests)),
            "thresholds": {norm: radius for m in reversed(manifests) for norm, radius in m.thresholds.items()},
            "resubmissions": min(resubmissions, default=0),
            "defenses": _once((d for manifest in manifests for d in manifest.defenses), lambda defense: defense.name),
            "attacks": tuple(a.model_copy(update={"norms": tuple(norms[a.name])}) for a in attacks),
            "cells": cells,
            "studies": studies,
            "not_applicable": tuple(gap for gap in gaps if (gap.defense, gap.attack, gap.norm) not in measured),
        }
    )


def _check_equal(first: Manifest, other: Manifest) -> None:
    if first.dataset.name != other.dataset.name:
        raise UserError(f"the runs are of different datasets: {first.dataset.name} and {other.dataset.name}")
    if first.samples != other.samples:
        raise UserError(f"the runs are on different images ({len(first.samples)} and {len(other.samples)} samples)")
    if first.seed != other.seed:
        raise UserError(f"the runs have different seeds: {first.seed} and {other.seed}")
    known = {defense.name: defense.measured for defense in first.defenses}
    for defense in other.defenses:
        if known.get(defense.name, defense.measured) != defense.measured:
            raise UserError(f"the runs have defense {defense.name!r} with different parameters or weights")
    for norm in set(first.thresholds) & set(other.thresholds):
        if first.thresholds[norm] != other.thresholds[norm]:
            raise UserError(
                f"the runs have different thresholds in {norm}: "
                f"{first.thresholds[norm]:g} and {other.thresholds[norm]:g}"
            )


def _once(items: Iterable[Item], key: Callable[[Item], object]) -> tuple[Item, ...]:
    """Returns the first item of each key, in order."""
    found: dict[object, Item] = {}
    for item in items:
        found.setdefault(key(item), item)
    return tuple(found.values())
