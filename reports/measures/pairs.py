"""Defenses compared with each other, image by image, under the per-sample minimum over attacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from bench.contracts.norms import within
from reports.measures.facts import Equality, Pair
from reports.statistics.distances import accuracy_at
from reports.statistics.estimates import Estimate
from reports.statistics.significance import SIGNIFICANCE_LEVEL, cochran_q, holm, mcnemar, median_difference


@dataclass(frozen=True)
class Comparisons:
    """What the comparisons of a norm's defenses need to know.

    Attributes:
        distances: the smallest distance of each sample (rows) under each defense (columns); NaN if unknown.
        threshold: the epsilon at which survival is compared.
        samples: number of images of the run.
        doubts: signs of doubt about each defense under all attacks.
        incomplete: the defenses that some attacks lack results on.
        planned: the attacks that the matrix has a place for on each defense.
        minimized: the defenses that a minimal attack ran on.
    """

    distances: pd.DataFrame
    threshold: float
    samples: int
    doubts: Mapping[str, tuple[str, ...]]
    incomplete: Collection[str]
    planned: Mapping[str, frozenset[str]]
    minimized: Collection[str]

    def pairs(self) -> list[Pair]:
        """Returns each pair of defenses with McNemar's p-value, raw and adjusted."""
        names = self.distances.columns.astype(str)
        return _adjusted([self._pair(first, second) for row, first in enumerate(names) for second in names[:row]])

    def against(self, baseline: str) -> list[Pair]:
        """Returns each other defense beside a baseline, with the differences of their medians and accuracies."""
        others = [name for name in self.distances.columns.astype(str) if name != baseline]
        return [self._with_differences(pair) for pair in _adjusted([self._pair(name, baseline) for name in others])]

    def equality(self) -> Equality | None:
        """Tests that all defenses survive equally often; None if no image is known for all."""
        known = self.distances.dropna()
        if known.empty:
            return None
        q, p = cochran_q(~within(known, self.threshold))
        return Equality(q, p, len(known))

    def _pair(self, first: str, second: str) -> Pair:
        valid = self.distances[first].notna() & self.distances[second].notna()
        if not valid.any():
            return Pair(first, second, reason="—", notes=("no image with a known distance for both",))
        notes = [] if valid.sum() == self.samples else [f"on the {valid.sum()} of {self.samples} images valid for both"]
        names = (first, second)
        notes += [f"not all attacks on {name} are complete" for name in names if name in self.incomplete]
        if self.planned[first] != self.planned[second]:
            notes.append("not under the same attacks")
        survived = [~within(self.distances.loc[valid, name], self.threshold) for name in names]
        doubts = tuple(f"{name}: {sign}" for name in names for sign in self.doubts[name])
        return Pair(first, second, mcnemar(*survived), notes=tuple(notes), doubts=doubts)

    def _with_differences(self, pair: Pair) -> Pair:
        if pair.reason:
            return pair
        known = self.distances[[pair.first, pair.second]].dropna()
        first, second = (accuracy_at(known[name], self.threshold) for name in (pair.first, pair.second))
        if {pair.first, pair.second} <= set(self.minimized):
            pair = replace(pair, median=Estimate(*median_difference(known[pair.first], known[pair.second])))
        return replace(pair, accuracy=first - second)


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    adjusted = holm([pair.p for pair in pairs])
    return [
        replace(pair, adjusted=float(p), significant=bool(p < SIGNIFICANCE_LEVEL))
        for pair, p in zip(pairs, adjusted, strict=True)
    ]
