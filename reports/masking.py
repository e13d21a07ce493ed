"""Masking evidence: what in a run's records makes a careful reader doubt that a defense is as robust as it looks.

The signs are those of Athalye, Carlini & Wagner 2018 (Obfuscated gradients give a false sense of security, section
3.1), of Carlini et al. 2019 (On evaluating adversarial robustness), and the warnings of AutoAttack (Croce & Hein 2020).
They do not prove that a number is wrong; they say why it may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from bench.norms import Norm
from reports.runs import AttackRow, Run

NO_GRADIENTS = "no attack with gradients was run"
USELESS_GRADIENTS = "gradients that are zero or not finite"
BEATEN = "attacks without gradients find closer adversarials than those with gradients"
NOT_AT_ANY_DISTANCE = "attacks with gradients find nothing at any distance for some images"
LATE = "images still broken in the second half of the passes: more steps or restarts may help"
VANISHED = "adversarials of the attack's own queries did not hold on fresh passes"
REMARKS = "the attack's library warns"

USELESS_SHARE = 0.05
"""Share of an attack's derivatives that may be zero or not finite."""
IMAGES_SHARE = 0.01
"""Share of the attacked images that may be found late, or vanish."""
MARGIN = 0.01
"""Distances that differ by less than this share are equally close."""
ALPHA = 0.05
"""Level of the one-sided sign test that attacks without gradients come closer."""


@dataclass(frozen=True)
class Doubt:
    """A reason to doubt a number: ``sign`` says what was seen, in words that are the same for every number, ``detail``
    how much of it."""

    sign: str
    detail: str


def cell_doubts(run: Run, norm: Norm, row: AttackRow, defense: str) -> list[Doubt]:
    """What makes one attack's number for a defense doubtful."""
    records = _attacked(run, row, defense)
    if records.empty:
        return []
    found = [useless_gradients(records), vanished(records), remarks(records)]
    if row.epsilon is not None:
        found.append(found_late(records))
    elif row.access == "gradient":
        found.append(not_at_any_distance(records.set_index("sample")[norm.lower()]))
    return [doubt for doubt in found if doubt is not None]


def defense_doubts(run: Run, norm: Norm, defense: str) -> list[Doubt]:
    """What makes a defense's number under all attacks of a norm doubtful."""
    rows = [row for row in run.attack_rows(norm) if defense in row.cells]
    ran = [(row, records) for row in rows for records in [_attacked(run, row, defense)] if not records.empty]
    if not ran:
        return []
    found: list[Doubt | None] = []
    if not any(row.access == "gradient" for row in rows):
        reasons = {row.not_applicable[defense] for row in run.attack_rows(norm) if defense in row.not_applicable}
        found.append(Doubt(NO_GRADIENTS, "; ".join(sorted(reasons)) or "none is in the matrix"))
    found.append(useless_gradients(pd.concat([records for _, records in ran])))
    minimal = [(row, records) for row, records in ran if row.epsilon is None]
    with_gradients = _closest([r for row, r in minimal if row.access == "gradient"], norm)
    without = _closest([r for row, r in minimal if row.access != "gradient"], norm)
    found += [beaten(with_gradients, without), not_at_any_distance(with_gradients)]
    return [doubt for doubt in found if doubt is not None]


def evidence(run: Run) -> Iterator[tuple[str, Norm, str | None, Doubt]]:
    """Every doubt of a run: defense, norm, the attack's label or None for all attacks, and the doubt."""
    for defense in run.defenses:
        for norm in run.norms:
            yield from ((defense, norm, None, doubt) for doubt in defense_doubts(run, norm, defense))
            for row in run.attack_rows(norm):
                yield from ((defense, norm, row.label, doubt) for doubt in cell_doubts(run, norm, row, defense))


def useless_gradients(records: pd.DataFrame) -> Doubt | None:
    """More than `USELESS_SHARE` of the derivatives of attacks that asked for some were all zero or not finite."""
    share = records["useless_gradients"].mean()  # NaN, where none was asked, is passed over
    return Doubt(USELESS_GRADIENTS, f"{share:.0%} of the derivatives") if share > USELESS_SHARE else None


def vanished(records: pd.DataFrame) -> Doubt | None:
    """More than `IMAGES_SHARE` of the images have an adversarial among the attack's queries and none that holds."""
    return _too_many(VANISHED, records["claimed"] & ~records["broken"])


def found_late(records: pd.DataFrame) -> Doubt | None:
    """More than `IMAGES_SHARE` of the images were broken only in the second half of the passes that the attack spends
    on images it cannot break, of which there are some."""
    unbroken = records[~records["broken"]]
    passes = (unbroken["forwards"] + unbroken["backwards"]).max()
    return _too_many(LATE, records["broken"] & (records["found_after"] > passes / 2))


def remarks(records: pd.DataFrame) -> Doubt | None:
    """The attack's library warned."""
    texts = [text for text in records["remarks"].unique() if text]
    return Doubt(REMARKS, "; ".join(texts)) if texts else None


def not_at_any_distance(distances: pd.Series) -> Doubt | None:
    """For some images no adversarial was found although the distance was not bounded: accuracy does not reach 0."""
    unbroken = distances == np.inf
    return Doubt(NOT_AT_ANY_DISTANCE, _count(unbroken)) if unbroken.any() else None


def beaten(with_gradients: pd.Series, without: pd.Series) -> Doubt | None:
    """On the samples known for both (the frames' index), distances without gradients are smaller by more than `MARGIN`
    significantly more often than larger (one-sided sign test, `ALPHA`)."""
    known = with_gradients.index.intersection(without.index)
    ours, theirs = with_gradients[known], without[known]
    closer, farther = int((theirs < ours * (1 - MARGIN)).sum()), int((ours < theirs * (1 - MARGIN)).sum())
    if closer == 0 or binom.sf(closer - 1, closer + farther, 0.5) > ALPHA:
        return None
    return Doubt(BEATEN, f"on {closer} of {len(known)} images, and farther ones on {farther}")


def _attacked(run: Run, row: AttackRow, defense: str) -> pd.DataFrame:
    """The records of the images that were attacked with a valid result."""
    records = run.cell_records(row.cells[defense]) if defense in row.cells else None
    if records is None:
        return run.records[:0]
    return records[~records["status"].isin(["clean_error", "failed", "violation"])]


def _closest(frames: list[pd.DataFrame], norm: Norm) -> pd.Series:
    """Per sample, the smallest distance of any of these cells."""
    if not frames:
        return pd.Series(dtype=float)
    smallest: pd.Series = pd.concat(frames).groupby("sample")[norm.lower()].min()
    return smallest


def _too_many(sign: str, images: pd.Series) -> Doubt | None:
    return Doubt(sign, _count(images)) if images.mean() > IMAGES_SHARE else None


def _count(images: pd.Series) -> str:
    return f"{int(images.sum())} of {len(images)} images"
