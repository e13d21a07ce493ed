"""Consistency: rules that records from the judge obey. Imports no torch, so that readers start fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.contracts.norms import NORMS, within
from bench.ledger.entries import CellEntry, StudyEntry, WorkEntry
from bench.ledger.schema import Status

_ROUNDING = 1e-9
"""Relative tolerance of inequalities between distances. Distances are sums in float64."""
_SPENT = ("forwards", "backwards", "inner_steps", "seconds")
_RATES = ("success_rate", "success_low", "success_high", "likely_rate")
_COUNTS = ("draws_choosing", "draws_deciding", "draws_estimating", "likely_errors", "likely_draws", "non_finite")
_STUDY_STATUSES = {
    "lower_bound": ("bound", Status.FAILED),
    "distal": ("reached", "not_reached", Status.FAILED),
    "detection": (Status.CLEAN_ERROR, "attacked", Status.FAILED),
    "reconstruction": ("reconstructed", Status.FAILED),
    "refutation": ("tested",),
}
_STUDY_RANGES = {
    "lower_bound": (0.0, np.inf),
    "confidence": (0.0, 1.0),
    "error": (0.0, np.inf),
    "epsilon": (0.0, np.inf),
    "steps": (0, np.inf),
    "seconds": (0.0, np.inf),
    **dict.fromkeys(("forwards", "backwards", "inner_steps"), (0.0, np.inf)),
}


@dataclass(frozen=True)
class Violation:
    """One violation of a rule in a run's files.

    Attributes:
        file: path of the file.
        field: column or key.
        stored: value in the file.
        expected: correct value, or the value found instead.
        row: row of the records, from 0; None if the violation concerns the whole file.
        sample: index of the row's sample in the test set.
    """

    file: str
    field: str
    stored: str
    expected: str
    row: int | None = None
    sample: int | None = None

    def __str__(self) -> str:
        place = "" if self.row is None else f" row {self.row}"
        place += "" if self.sample is None else f" (sample {self.sample})"
        return f"{self.file}:{place} {self.field} is {self.stored}; {self.expected}"


@dataclass(frozen=True)
class Images:
    """The clean images that all cells of a run attack, and facts about them.

    Attributes:
        dataset: name of the dataset.
        classes: number of classes.
        shape: shape of an image, (C, H, W).
        samples: indices of the images in the test set.
        hashes: hashes of the clean images, as in ``sample_hash``.
        labels: labels of the images, (S,) int64.
        randomized: whether each defense is randomized, by name.
        counts: number of images, the first ones, that a defense is measured on, by name; all for others.
    """

    dataset: str
    classes: int
    shape: tuple[int, ...]
    samples: Sequence[int]
    hashes: Sequence[str]
    labels: NDArray[np.int64]
    randomized: Mapping[str, bool] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def rows(self, rows: range) -> Images:
        """Returns the images of some consecutive rows."""
        part = slice(rows.start, rows.stop)
        own = {name: getattr(self, name)[part] for name in ("samples", "hashes", "labels")}
        return replace(self, **own)


def cell_violations(file: str, table: pa.Table, entry: CellEntry, images: Images) -> Iterator[Violation]:
    """Yields the violations in the records of a cell. ``entry`` is the cell's entry in the manifest.

    The table must have the ledger's columns. If its records belong to another cell or to other samples, only these
    violations are reported.
    """
    found = list(_foreign(file, table, {**_identity(entry, images), "attack": entry.attack}))
    found += _other_samples(file, table, images)
    if found:
        yield from found
        return
    yield from _Rules(file, table, images, images.randomized.get(entry.defense, False), entry).violations()


def study_violations(file: str, table: pa.Table, entry: StudyEntry, images: Images) -> Iterator[Violation]:
    """Yields the violations in the records of a study. ``entry`` is the study's entry in the manifest."""
    identity = _identity(entry, images)
    missing = [name for name in (*identity, "sample", "status", "reason", "seconds") if name not in table.column_names]
    if missing:
        yield Violation(file, missing[0], "missing", "every study has this column")
        return
    yield from _foreign(file, table, identity)
    own = table["sample"].to_pylist()
    if entry.kind == "refutation":  # it tests only some of the run's images
        if not set(own) <= set(images.samples) or own != sorted(set(own)):
            yield Violation(file, "sample", "out of order", "records are of samples of the run, each once")
    elif own != list(range(len(table))):
        yield Violation(file, "sample", "out of order", f"records are numbered from 0 to {len(table) - 1}")
    statuses = table["status"].to_pylist()
    allowed = _STUDY_STATUSES.get(entry.kind)
    for row, status in enumerate(statuses):
        if allowed is not None and status not in allowed:
            yield Violation(file, "status", repr(status), f"allowed: {', '.join(allowed)}", row, row)
    for name, (low, high) in _STUDY_RANGES.items():
        if name in table.column_names:
            values = table[name].to_numpy()
            for row in np.flatnonzero((values < low) | (values > high)).tolist():
                yield Violation(file, name, f"{values[row]:g}", f"allowed: {low:g} to {high:g}", row, row)


def image_violations(file: str, images: NDArray[Any], broken: NDArray[np.bool_], about: Images) -> Iterator[Violation]:
    """Yields the violations in a cell's adversarial images (S, C, H, W). ``broken`` (S,) marks its broken samples."""
    expected = (len(about.samples), *about.shape)
    if images.shape != expected or images.dtype != np.float32:
        yield Violation(file, "shape", f"{images.dtype} {images.shape}", f"expected float32 {expected}")
        return
    pixels = images.reshape(len(images), -1)
    outside = ~((pixels >= 0) & (pixels <= 1)).all(1)
    negative = np.signbit(pixels).any(1) & ~outside
    kept = ~broken & (pixels != 0).any(1)
    for row in np.flatnonzero(outside).tolist():
        yield Violation(file, "image", "outside [0, 1]", "pixels lie in [0, 1]", row, about.samples[row])
    for row in np.flatnonzero(negative).tolist():
        yield Violation(file, "image", "-0.0 somewhere", "the judge writes 0.0", row, about.samples[row])
    for row in np.flatnonzero(kept & ~outside).tolist():
        text = "its record is not broken, and then the image is zero"
        yield Violation(file, "image", "an image", text, row, about.samples[row])


def _identity(entry: WorkEntry, images: Images) -> dict[str, str]:
    return {
        "cell": entry.id,
        "dataset": images.dataset,
        "defense": entry.defense,
        "norm": entry.norm or "",
    }


def _foreign(file: str, table: pa.Table, identity: Mapping[str, str]) -> Iterator[Violation]:
    """Yields the violations in the columns that must have one value in the whole file."""
    for name, value in identity.items():
        for row, stored in enumerate(table[name].to_pylist() if pc.unique(table[name]).to_pylist() != [value] else ()):
            if stored != value:
                yield Violation(file, name, repr(stored), f"expected {value!r}", row)


def _other_samples(file: str, table: pa.Table, images: Images) -> Iterator[Violation]:
    if len(table) != len(images.samples):
        yield Violation(file, "number of rows", str(len(table)), f"the run has {len(images.samples)} samples")
        return
    for name, expected in (("sample", images.samples), ("label", images.labels), ("sample_hash", images.hashes)):
        stored = table[name].to_numpy() if name != "sample_hash" else np.array(table[name].to_pylist(), object)
        for row in np.flatnonzero(stored != np.asarray(expected)).tolist():
            text = f"the clean images say {expected[row]!s}"
            yield Violation(file, name, str(stored[row]), text, row, images.samples[row])


class _Rules:
    """The rules for the records of one cell. Each rule is a mask of the rows that break it."""

    def __init__(self, file: str, table: pa.Table, images: Images, randomized: bool, entry: CellEntry) -> None:
        self._file, self._images, self._randomized, self._entry = file, images, randomized, entry
        self._columns: dict[str, NDArray[Any]] = {
            name: table[name].to_numpy() for name in table.column_names if not pa.types.is_string(table[name].type)
        }
        self._texts = table
        codes = pc.index_in(table["status"], value_set=pa.array(list(Status))).fill_null(-1)
        self._status = codes.to_numpy()

    def _is(self, *statuses: Status) -> NDArray[np.bool_]:
        return np.isin(self._status, [list(Status).index(status) for status in statuses])

    def violations(self) -> Iterator[Violation]:
        """Yields every row and field that breaks a rule."""
        for name, bad, expected in self._rules():
            for row in np.flatnonzero(bad).tolist():
                stored = str(self._texts[name][row].as_py())
                yield Violation(self._file, name, stored, expected, row, self._images.samples[row])

    def _rules(self) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
        yield "status", self._status < 0, f"allowed: {', '.join(Status)}"
        yield from self._broken_rules()
        yield from self._distance_rules()
        yield from self._prediction_rules()
        yield from self._rate_rules()
        yield from self._cost_rules()

    def _broken_rules(self) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
        broken, status = self._columns["broken"].astype(bool), self._is
        yield "broken", status(Status.CLEAN_ERROR, Status.FOUND) & ~broken, "a sample of this status is broken"
        unbroken = status(Status.NOT_FOUND, Status.UNDECIDED, Status.VIOLATION, Status.FAILED)
        yield "broken", unbroken & broken, "a sample of this status is not broken"
        reasons = np.array([bool(text) for text in self._texts["reason"].to_pylist()])
        yield "reason", status(Status.VIOLATION, Status.FAILED) & ~reasons, "a violation or a failure has a reason"
        epsilon, wanted = self._columns["epsilon"], self._entry.epsilon
        other = ~np.isnan(epsilon) if wanted is None else epsilon != wanted
        yield "epsilon", other, f"the manifest says {wanted}"

    def _distance_rules(self) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
        broken, clean = self._columns["broken"].astype(bool), self._is(Status.CLEAN_ERROR)
        unknown = self._is(Status.VIOLATION, Status.FAILED)
        moved = broken & ~clean
        slack = 1 + _ROUNDING
        for norm in (norm for norm in NORMS.values() if norm.column in self._columns):
            name, values, diameter = norm.column, self._columns[norm.column], norm.diameter(self._images.shape)
            yield name, clean & (values != 0), "a clean error is at distance 0"
            yield name, moved & ~((values > 0) & np.isfinite(values)), "a broken sample has a distance above 0"
            yield name, ~broken & ~unknown & ~np.isposinf(values), "a sample that is not broken is at infinity"
            yield name, unknown & ~broken & ~np.isnan(values), "a violation or a failure has no distance"
            yield name, moved & (values > diameter * slack), f"two images are at most {diameter:g} apart"
            if norm.unit == "pixels":
                yield name, moved & (values != np.rint(values)), "whole pixels"
        yield from self._rules_between_distances(moved, slack)
        epsilon, attacked = self._entry.epsilon, self._entry.norm.lower()
        if epsilon is not None:
            yield attacked, moved & ~within(self._columns[attacked], epsilon), f"the ball's radius is {epsilon}"

    def _rules_between_distances(
        self, moved: NDArray[np.bool_], slack: float
    ) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
        if not {"l0", "l2", "linf"} <= self._columns.keys():
            return
        l0, l2, linf = (self._columns[name] for name in ("l0", "l2", "linf"))
        with np.errstate(invalid="ignore"):
            longest = linf * np.sqrt(self._images.shape[0] * l0)
        yield "l2", moved & (l2 < linf / slack), "L2 is at least Linf"
        yield "l2", moved & (l2 > longest * slack), "L2 is at most Linf times the root of L0"

    def _prediction_rules(self) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
        broken, clean = self._columns["broken"].astype(bool), self._is(Status.CLEAN_ERROR)
        first, last = self._columns["clean_prediction"], self._columns["adversarial_prediction"]
        classes, label = self._images.classes, self._columns["label"]
        for name, values in (("clean_prediction", first), ("adversarial_prediction", last)):
            yield name, (values < -1) | (values >= classes), f"classes go from 0 to {classes - 1}, -1 is none"
        yield "clean_prediction", ~self._is(Status.FAILED) & (first < 0), "only a failed sample has no prediction"
        if not self._randomized:
            # Without a majority class, most draws of a randomized defense may be wrong although the label leads.
            yield "clean_prediction", clean & (first == label), "a clean error has another class than its label"
            attacked = ~clean & ~self._is(Status.FAILED)
            yield "clean_prediction", attacked & (first != label), "only a clean error is misclassified"
            yield "adversarial_prediction", broken & (last == label), "a broken sample is not given its label"
        yield "adversarial_prediction", broken & (last < 0), "a broken sample has a prediction"
        yield "adversarial_prediction", ~broken & (last != -1), "a sample that is not broken has -1"
        yield "adversarial_prediction", clean & (first != last), "a clean error has its clean prediction"

    def _rate_rules(self) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
        columns, broken = self._columns, self._columns["broken"].astype(bool)
        for name in (*_RATES, "useless_gradients"):
            yield name, (columns[name] < 0) | (columns[name] > 1), "a share lies in [0, 1]"
        for name in _COUNTS:
            yield name, columns[name] < 0, "a count is 0 or more"
        rate = columns["success_rate"]
        yield "success_rate", ~broken & ~np.isnan(rate), "only a broken sample has a success rate"
        if self._randomized:
            yield "success_low", columns["success_low"] > rate + _ROUNDING, "the interval holds the rate"
            yield "success_high", columns["success_high"] < rate - _ROUNDING, "the interval holds the rate"
            yield "likely_errors", columns["likely_errors"] > columns["likely_draws"], "at most as many as draws"
        else:
            yield "success_rate", broken & (rate != 1), "a deterministic defense has 1 where broken"
            for name in _RATES[1:]:
                yield name, ~np.isnan(columns[name]), "a deterministic defense has none"
            for name in _COUNTS[:-1]:
                yield name, columns[name] != 0, "a deterministic defense has no draws"

    def _cost_rules(self) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
        for name in _SPENT:
            values = self._columns[name]
            yield name, ~(np.isfinite(values) & (values >= 0)), "what was spent is 0 or more"
        yield "found_after", self._columns["found_after"] < 0, "passes are 0 or more"
