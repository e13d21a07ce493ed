"""Numbers of studies: lower bounds, distal adversarial examples and detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from bench.ledger.schema import Status
from reports.evidence.signs import OLD_RULE, Signs
from reports.measures.numbers import Number, Place
from reports.measures.reasons import UNKNOWN
from reports.runs.labels import NORM_LABELS
from reports.statistics.distances import median_distance
from reports.statistics.estimates import Estimate
from reports.statistics.records import detection

STUDY = ""
"""Stands in place of an attack's label in the numbers of studies."""
LOWER_BOUND, UPPER_BOUND = "lower bound", "smallest adversarial"
REFUTED, UNTESTED = "refuted bounds", "untested bounds"
CERTIFICATE_REFUTED = "an adversarial lies within the certified distance: the certificate is wrong"
REACHED, STEPS, CALIBRATED_ALPHA, LOG_ETA = "reached", "median steps", "alpha", "log eta"
DISTAL = (REACHED, STEPS, CALIBRATED_ALPHA, LOG_ETA)
"""The quantities of distal adversarial examples."""
DETECTION = {
    "accuracy": "detector's accuracy",
    "auc": "ROC AUC",
    "detected": "adversarials refused",
    "false_alarms": "clean images refused",
    "undefended": "right, under PGD",
    "defended": "right or refused, under PGD",
    "evading": "right or refused, under evading PGD",
}
"""The quantities that `reports.statistics.records.detection` returns."""

SHARE = "share"
"""Name of the quantities of `DETECTION` in a table that has each of them in a column of its own."""


def bound_numbers(norm: NormName, defenses: Sequence[str], bounds: pd.DataFrame, signs: Signs) -> list[Number]:
    """Returns the numbers of lower bounds and of the smallest adversarial examples found.

    The notes of `LOWER_BOUND` say what kind of bound it is.

    Args:
        norm: the norm.
        defenses: the run's defenses.
        bounds: `reports.statistics.brackets.brackets`.
        signs: the doubts of the run.
    """
    numbers: list[Number] = []
    for defense in defenses if len(bounds) else ():
        own = bounds[bounds["defense"] == defense]
        if own.empty:
            continue
        place, n = Place(norm, defense, STUDY), len(own)
        certified, refuted = bool(own["certificate"].all()), int(own["refuted"].sum())
        # A refuted estimate carries no information. A refuted certificate is an error that must stay visible.
        lower = own["lower_bound"].mask(own["refuted"] & ~own["certificate"].astype(bool), 0.0)
        kinds = ("a certificate" if certified else "an estimate", *(note for note in own["note"].unique() if note))
        known = own["distance"].dropna()
        notes = (f"{len(known)} of {len(own)} images",) if len(known) < len(own) else ()
        old = tuple(sign for sign in signs.get((defense, norm, None), ()) if sign == OLD_RULE)
        upper = median_distance(known)
        wrong = (CERTIFICATE_REFUTED,) if certified and refuted else ()
        numbers += [
            place.number(LOWER_BOUND, Estimate(median_distance(lower)), n=n, notes=kinds, doubts=wrong),
            place.number(UPPER_BOUND, Estimate(upper), n=n, reason=_unless_known(upper), notes=notes, doubts=old),
            place.number(REFUTED, Estimate(refuted), n=n),
            place.number(UNTESTED, Estimate(int(own["untested"].sum())), n=n),
        ]
    return numbers


def distal_numbers(defenses: Sequence[str], distals: pd.DataFrame) -> list[Number]:
    """Returns how easily noise is driven to confidence in a class.

    ``distals`` are the records of the studies of distal adversarial examples.
    """
    numbers: list[Number] = []
    for defense in defenses if len(distals) else ():
        place = Place("", defense, STUDY)
        own = distals[distals["defense"] == defense]
        failed, valid = own[own["status"] == Status.FAILED], own[own["status"] != Status.FAILED]
        if len(valid):
            notes = (f"{len(failed)} failed ({failed['reason'].iloc[0]})",) if len(failed) else ()
            values = {
                REACHED: int((valid["status"] == "reached").sum()),
                STEPS: valid["steps"].median(),
                CALIBRATED_ALPHA: valid["alpha"].iloc[0],
                LOG_ETA: valid["log_eta"].iloc[0],
            }
            numbers += [
                place.number(name, Estimate(float(value)), n=len(valid), notes=notes) for name, value in values.items()
            ]
        elif len(failed):
            notes = (str(failed["reason"].iloc[0]),)
            numbers += [place.number(name, reason="failed", notes=notes) for name in DISTAL]
    return numbers


def detection_numbers(records: pd.DataFrame, thresholds: Mapping[NormName, float]) -> list[Number]:
    """Returns how well each defense's score tells adversarial examples from clean images.

    Args:
        records: the records of the studies of detection.
        thresholds: the epsilon of the adversarial examples in each norm.
    """
    numbers: list[Number] = []
    for _, own in records.groupby("cell", sort=False) if len(records) else ():
        norm, defense = own["norm"].iloc[0], str(own["defense"].iloc[0])
        place = Place(norm, defense, ball(norm, thresholds[norm]), thresholds[norm])
        if own["status"].eq(Status.FAILED).any():
            notes = (str(own["reason"].iloc[0]),)
            numbers += [place.number(quantity, reason="failed", notes=notes) for quantity in DETECTION.values()]
            continue
        found = detection(own)
        numbers += [
            place.number(label, Estimate(found[key]), n=len(own), reason=_unless_known(found[key]))
            for key, label in DETECTION.items()
        ]
    return numbers


def ball(norm: NormName, epsilon: float) -> str:
    """Returns the label of the attacks within ``epsilon`` that detection was studied under."""
    return f"{NORM_LABELS[norm]} ε={epsilon:g}"


def _unless_known(value: float) -> str:
    """Returns the reason why a number is missing; empty if it is not."""
    return UNKNOWN if np.isnan(value) else ""
