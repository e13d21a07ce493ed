"""Measures studies again: deterministic and cheap studies as a whole, and single numbers of the others.

Not measured again: the detector and its evasion, the steps of a distal ascent, and the bounds of randomized defenses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from bench.contracts.protocols import Defense
from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.engine.ballot import classify
from bench.ledger.consistency import Violation
from bench.ledger.entries import StudyEntry
from bench.ledger.files import Result
from bench.ledger.manifest import Manifest
from bench.ledger.provenance import computed_alike
from bench.ledger.schema import Status
from bench.studies.catalog import STUDIES
from bench.studies.distal import calibrated, confidences, statuses
from bench.studies.refutation import KIND as REFUTATION
from bench.studies.refutation import contested, errors_on
from bench.studies.study import Measured
from bench.training.loading import LoadedDefense

AGAIN = ("lower_bound", "reconstruction")
"""Kinds of studies that are measured again as a whole on deterministic defenses."""
_OWN = ("cell", "seconds", "forwards", "backwards", "inner_steps")
"""Columns that are not compared."""
SAME_MACHINE, OTHER_MACHINE = 1e-6, 1e-3
"""Maximum relative difference from the stored number that counts as rounding."""


@dataclass(frozen=True)
class Rederivation:
    """Measures the studies of one defense of a run again.

    Attributes:
        memory: keeps the measurements for another copy of the same study.
    """

    run: Path
    manifest: Manifest
    loaded: LoadedDefense
    dataset: Dataset
    device: torch.device
    memory: dict[Any, Any]

    def faults(self, entry: StudyEntry, result: Result, arrays: Mapping[str, NDArray[Any]]) -> list[str]:
        """Returns the faults of a study's records and images (M, C, H, W), one line each."""
        records = result.table.to_pandas()
        if entry.kind == REFUTATION and entry.norm is not None:
            rows = contested(self.run, entry.defense, entry.norm)
            return [str(violation) for violation in self._refutations(rows, result, records)]
        if records["status"].eq(Status.FAILED).any() or not len(records):
            return []
        study = Study(
            kind=entry.kind,
            dataset=self.dataset.name,
            defense=entry.defense,
            norm=entry.norm,
            epsilon=entry.epsilon,
            seed=self.manifest.seed,
            samples=len(records),
            batch_size=self.defense.card.batch_size,
            timeout=None,
            state=result.facts.get("state", {}),
        )
        kind = STUDIES.get(study.kind)
        expected = kind.card.samples_of(self.dataset, self.manifest.samples_of(entry.defense))
        if len(records) != expected:
            return [str(Violation(str(result.path), "number of rows", str(len(records)), f"a study has {expected}"))]
        tolerance = SAME_MACHINE if self._same_machine(result) else OTHER_MACHINE
        found: Iterator[Violation] = iter(())
        if study.kind in AGAIN and not self.defense.card.randomized:
            found = _compared(result, records, arrays, self._measured(study), tolerance)
        elif study.kind == "detection":
            found = self._clean_errors(result, records)
        elif study.kind == "distal":
            found = self._confidences(result, records, arrays["study"], study, tolerance)
        return [str(violation) for violation in found]

    @property
    def defense(self) -> Defense:
        """The defense that was measured."""
        return self.loaded.defense

    def _same_machine(self, result: Result) -> bool:
        return computed_alike(result.facts, str(self.device), self.loaded.arithmetic)

    def _measured(self, study: Study) -> Measured:
        key = repr((study, str(self.device)))
        if key not in self.memory:
            measure = STUDIES.get(study.kind).function
            self.memory[key] = measure(study, self.defense, self.dataset, self.device, lambda samples: None)
        measured: Measured = self.memory[key]
        return measured

    def _refutations(self, rows: pd.DataFrame, result: Result, records: pd.DataFrame) -> Iterator[Violation]:
        """Yields the faults of a study of the contested certificates ``rows``.

        On the same kind of machine its draws are repeated.
        """
        if rows.empty or rows["sample"].tolist() != records["sample"].tolist():
            samples = str(records["sample"].tolist())
            yield Violation(str(result.path), "sample", samples, "other certificates are contested")
            return
        for name in ("lower_bound", "distance"):
            yield from _differing(result, name, records[name].to_numpy(), rows[name].to_numpy(), SAME_MACHINE)
        if self._same_machine(result):
            errors = errors_on(self.run, rows, self.defense, self.dataset.classes, self.manifest.seed, self.device)
            yield from _differing(result, "errors", records["errors"].to_numpy(), errors, 0)

    def _clean_errors(self, result: Result, records: pd.DataFrame) -> Iterator[Violation]:
        """Yields the records of a detection study whose status ``clean_error`` or ``attacked`` does not hold."""
        count = len(records)
        x, y = self.dataset.test.images[:count].to(self.device), self.dataset.test.labels[:count].to(self.device)
        wrong = classify(self.defense, x, y, self.dataset.classes).misclassified.cpu().numpy()
        expected = np.where(wrong, Status.CLEAN_ERROR, "attacked").astype(object)
        yield from _differing(result, "status", records["status"].to_numpy(), expected, 0)

    def _confidences(
        self, result: Result, records: pd.DataFrame, images: NDArray[np.float32], study: Study, tolerance: float
    ) -> Iterator[Violation]:
        """Yields the faults in a distal study's calibration, confidences in the targets, and statuses."""
        calibration = calibrated(self.defense, self.dataset, study.batch_size, self.device)
        targets = torch.tensor(records["target"].tolist(), device=self.device)
        again = torch.from_numpy(images).to(self.device)
        confidence = confidences(self.defense, calibration, again, targets, study.batch_size)
        for name, value in (("alpha", calibration.alpha), ("log_eta", calibration.log_eta)):
            yield from _differing(result, name, records[name].to_numpy(), np.full(len(records), value), OTHER_MACHINE)
        stored = records["confidence"].to_numpy()
        yield from _differing(result, "confidence", stored, confidence, tolerance)
        yield from _differing(result, "status", records["status"].to_numpy(), statuses(stored), 0)


def _compared(
    result: Result, records: pd.DataFrame, arrays: Mapping[str, NDArray[Any]], now: Measured, tolerance: float
) -> Iterator[Violation]:
    for name in [name for name in records.columns if name not in _OWN]:
        stored, fresh = records[name].to_numpy(), now.records[name].to_numpy()
        yield from _differing(result, name, stored, fresh, tolerance)
    if now.images is not None:
        stored, file = arrays["study"], str(result.path.with_suffix(".npz"))
        if stored.shape != now.images.shape:
            yield Violation(file, "shape", str(stored.shape), f"measured again it is {now.images.shape}")
            return
        apart = np.abs(stored - now.images).reshape(len(records), -1).max(1)
        for row in np.flatnonzero(~(apart <= (0 if tolerance == SAME_MACHINE else tolerance))).tolist():
            yield Violation(file, "image", "another image", "it is not what the study finds now", row, row)


def _differing(result: Result, name: str, stored: Any, fresh: Any, tolerance: float) -> Iterator[Violation]:
    if np.issubdtype(stored.dtype, np.floating):
        fresh = np.asarray(fresh, dtype=np.float64)
        differ = ~np.isclose(stored, fresh, rtol=tolerance, atol=0, equal_nan=True)
    else:
        differ = stored != fresh
    for row in np.flatnonzero(differ).tolist():
        yield Violation(str(result.path), name, str(stored[row]), f"measured again it is {fresh[row]}", row, row)
