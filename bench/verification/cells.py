"""A stored cell, and its comparison with new results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts.norms import NORMS
from bench.contracts.protocols import Defense
from bench.engine.ballot import logits_of
from bench.ledger.consistency import Violation
from bench.ledger.files import Result
from bench.ledger.schema import Status
from bench.verification.report import Verification

DISTANCE_TOLERANCE = 1e-13
"""Maximum relative difference between two float64 sums of the same numbers in different order."""
BOUNDARY = 1e-5
"""Difference of two logits, relative to the largest absolute logit, within which rounding decides the larger one."""


class StoredCell:
    """Compares one cell's records with new results."""

    def __init__(self, file: str, result: Result, samples: Sequence[int], found: Verification) -> None:
        self.file, self.facts, self.samples, self.found = file, result.facts, samples, found
        self.records: pd.DataFrame = result.table.to_pandas()

    def moved(self) -> NDArray[np.int64]:
        """Returns the rows with an adversarial example, without clean errors."""
        records = self.records
        return np.flatnonzero((records["broken"] & (records["status"] != Status.CLEAN_ERROR)).to_numpy())

    def fault(self, name: str, row: int, expected: str) -> None:
        """Records a fault: a row's field that does not hold."""
        stored = self.records[name].iloc[row]
        text = f"{stored:.17g}" if isinstance(stored, float) else str(stored)
        self.found.faults.append(str(Violation(self.file, name, text, expected, row, self.samples[row])))

    def check_distances(self, images: Tensor, x: Tensor) -> None:
        """Checks the distances of the stored adversarial examples. For a clean error, this is the clean image."""
        broken = np.flatnonzero(self.records["broken"].to_numpy())
        if not len(broken):
            return
        for norm in (norm for norm in NORMS.values() if norm.column in self.records):
            now = norm.distance(images[broken], x[broken]).cpu().numpy()
            stored = self.records[norm.column].to_numpy()[broken]
            differ = ~np.isclose(stored, now, rtol=DISTANCE_TOLERANCE, atol=0)
            for row, value in zip(broken[differ], now[differ], strict=True):
                self.fault(norm.column, int(row), f"the stored image is at {value:.17g}")

    def compare(
        self,
        name: str,
        rows: NDArray[np.int64],
        images: Tensor,
        predicted: Tensor,
        defense: Defense,
        classes: int,
        *,
        judged: bool = False,
    ) -> None:
        """Compares the stored classes of rows with a deterministic defense's new predictions on images (S, C, H, W).

        Differences within rounding are counted separately.
        """
        now = predicted.cpu().numpy()[: len(self.records)]
        now = now if judged else now[rows]
        stored = self.records[name].to_numpy()[rows]
        self.found.judged += len(rows) if judged else 0
        differ = np.flatnonzero(now != stored)
        if not len(differ):
            return
        logits = logits_of(defense, images[rows[differ]], classes).double().cpu().numpy()
        for place, own in zip(differ, logits, strict=True):
            row, gap = int(rows[place]), own[now[place]] - own[stored[place]]
            if abs(gap) <= BOUNDARY * np.abs(own).max():
                self.found.boundary += 1
            else:
                self.fault(name, row, f"the defense says {now[place]}")
