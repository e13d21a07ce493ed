"""Masking evidence: what in a run's records makes a careful reader doubt that a defense is as robust as it looks.

Most signs are of Athalye, Carlini & Wagner 2018 (Obfuscated gradients give a false sense of security, section 3.1) and
of Carlini et al. 2019 (On evaluating adversarial robustness); AutoAttack (Croce & Hein 2020) warns of some. They do not
prove that a number is wrong; they say why it may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from bench.cards import GRANTS
from bench.norms import Norm, within
from reports.runs import AttackRow, Run, once_per_run

NO_GRADIENTS = "no attack with the defense's gradients"
NOT_UNROLLED = "no attack through the optimisation that the defense does at inference"
USELESS_GRADIENTS = "gradients that are zero or not finite"
BEATEN = "attacks without the defense's gradients come closer than those with them"
UNBROKEN = "minimal attacks with gradients leave images unbroken, whatever the distance"
LATE = "images still broken in the last quarter of the passes: more steps or restarts may help"
CUT_SHORT = "the budget ended the attack before it was done: more steps may help"
VANISHED = "adversarials of an attack's own queries did not hold on fresh passes"
REMARKS = "the attack's library warns"

USELESS_SHARE = 0.05
"""Share of the derivatives that may be zero or not finite."""
IMAGES_SHARE = 0.01
"""Share of the attacked images that may be found late, be cut short, or vanish; one image may in any case."""
LAST_PASSES = 0.75
"""Share of an attack's passes after which an image is found late."""
MARGIN = 0.01
"""Distances that differ by less than this share are equally close."""
ALPHA = 0.05
"""Level of the one-sided sign test that attacks without gradients come closer."""
GRADIENTS = tuple(access for access, granted in GRANTS.items() if "gradient" in granted)
"""Kinds of access that include gradients."""
_COLUMNS = [
    *("cell", "sample", "status", "claimed", "broken", "epsilon", "l0", "l2", "linf"),
    *("found_after", "useless_gradients", "forwards", "backwards", "remarks"),
]


@dataclass(frozen=True)
class Doubt:
    """A reason to doubt a number: ``sign`` says what was seen, in words that are the same for every number, ``detail``
    how much of it."""

    sign: str
    detail: str


@once_per_run
def cell_doubts(run: Run, row: AttackRow, defense: str) -> list[Doubt]:
    """What makes one attack's number for a defense doubtful."""
    records = run.cell_records(row.cells[defense]) if defense in row.cells else None
    if records is None or (row.epsilon is None and not run.facts[row.cells[defense]].dubious):
        return []
    records = _valid(records[_COLUMNS])
    if records.empty:
        return []
    found = [useless_gradients(records), vanished(records), remarks(records), cut_short(records)]
    if row.epsilon is not None:
        found.append(found_late(records))
    return [doubt for doubt in found if doubt is not None]


@once_per_run
def defense_doubts(run: Run, norm: Norm, defense: str) -> list[Doubt]:
    """What makes a defense's number under all attacks of a norm doubtful."""
    rows = {row.cells[defense]: row for row in run.attack_rows(norm) if defense in row.cells}
    records = _valid(run.records_against(defense, norm, _COLUMNS))
    records = records[records["cell"].isin(rows)]
    if records.empty:
        return []
    found = [useless_gradients(records), vanished(records), remarks(records)]
    if all(cell in run.facts for cell, row in rows.items() if row.access in GRADIENTS):
        access = records["cell"].map({cell: row.access for cell, row in rows.items()})
        with_gradients = records[access.isin(GRADIENTS)]
        if len(with_gradients):
            without = records[~access.isin([*GRADIENTS, "imported"])]
            found += [beaten(with_gradients, without, norm, run.threshold(norm)), unbroken(with_gradients)]
            if not (access == "unrolled").any():
                found.append(not_unrolled(run, norm, defense))
        else:
            found.insert(0, Doubt(NO_GRADIENTS, _why_none(run, norm, defense)))
    return [doubt for doubt in found if doubt is not None]


def evidence(run: Run) -> Iterator[tuple[str, Norm, str | None, Doubt]]:
    """Every doubt of a run: defense, norm, the attack's label or None for all attacks, and the doubt."""
    for defense in run.defenses:
        for norm in run.norms:
            yield from ((defense, norm, None, doubt) for doubt in defense_doubts(run, norm, defense))
            for row in run.attack_rows(norm):
                yield from ((defense, norm, row.label, doubt) for doubt in cell_doubts(run, row, defense))


def not_unrolled(run: Run, norm: Norm, defense: str) -> Doubt | None:
    """The defense offers gradients through its own optimisation, and no attack with a result has used them; in L0 there
    is none that could."""
    offered = {entry["name"] for entry in run.manifest["defenses"] if entry.get("unrolled", False)}
    return Doubt(NOT_UNROLLED, "gradients hold its end fixed") if defense in offered and norm != "L0" else None


def useless_gradients(records: pd.DataFrame) -> Doubt | None:
    """More than `USELESS_SHARE` of the derivatives were all zero or not finite."""
    shares, backwards = records["useless_gradients"].to_numpy(float), records["backwards"].to_numpy(float)
    asked = ~np.isnan(shares) & (backwards > 0)
    useless, total = (shares * backwards)[asked].sum(), backwards[asked].sum()
    return (
        Doubt(USELESS_GRADIENTS, f"{useless / total:.0%} of the derivatives")
        if useless > USELESS_SHARE * total
        else None
    )


def vanished(records: pd.DataFrame) -> Doubt | None:
    """More than `IMAGES_SHARE` of the images have an adversarial among the queries and none that holds."""
    if not (records["claimed"].to_numpy() & ~records["broken"].to_numpy()).any():
        return None
    images = records.groupby("sample")[["claimed", "broken"]].any()
    return _too_many(VANISHED, images["claimed"] & ~images["broken"])


def cut_short(records: pd.DataFrame) -> Doubt | None:
    """More than `IMAGES_SHARE` of the images were refused queries because their budget was used up."""
    return _too_many(CUT_SHORT, records["status"].eq("budget"))


def found_late(records: pd.DataFrame) -> Doubt | None:
    """More than `IMAGES_SHARE` of the images were broken only at the end of the passes that the attack spends on images
    it cannot break, of which there are some. An attack's library hides when it found something."""
    left = records[~records["broken"]]
    passes = (left["forwards"] + left["backwards"]).max()
    found = records["found_after"].where(records["claimed"] & records["broken"])
    return _too_many(LATE, found > LAST_PASSES * passes)


def remarks(records: pd.DataFrame) -> Doubt | None:
    """The attack's library warned."""
    texts = dict.fromkeys(text for joined in records["remarks"].unique() for text in joined.split("; ") if text)
    return Doubt(REMARKS, "; ".join(texts)) if texts else None


def unbroken(records: pd.DataFrame) -> Doubt | None:
    """Some images none of these attacks broke, and one of them that bounds neither distance nor, yet, passes found no
    adversarial among its queries: accuracy does not reach 0."""
    gave_up = records["epsilon"].isna() & records["status"].eq("not_found") & ~records["claimed"]
    images = records.assign(gave_up=gave_up).groupby("sample")[["gave_up", "broken"]].any()
    left = images["gave_up"] & ~images["broken"]
    return Doubt(UNBROKEN, _count(left)) if left.any() else None


def beaten(with_gradients: pd.DataFrame, without: pd.DataFrame, norm: Norm, threshold: float) -> Doubt | None:
    """Attacks without gradients come closer by more than `MARGIN`, or break within ``threshold``, significantly more
    often than the other way round (one-sided sign test, `ALPHA`), on images that all attacks have a result for."""
    ours, theirs = _closest(with_gradients, norm), _closest(without, norm)
    known = ours.index.intersection(theirs.index)
    ours, theirs = ours[known], theirs[known]
    won, lost = (
        within(theirs, threshold) & ~within(ours, threshold),
        within(ours, threshold) & ~within(theirs, threshold),
    )
    if _significant(won, lost):
        return Doubt(BEATEN, f"within ε = {threshold:g} on {_count(won)}, the other way round on {lost.sum()}")
    minimal = [records[records["epsilon"].isna()] for records in (with_gradients, without)]
    if any(records.empty for records in minimal):
        return None
    ours, theirs = (_closest(records, norm).reindex(known) for records in minimal)
    won, lost = theirs < ours * (1 - MARGIN), ours < theirs * (1 - MARGIN)
    if _significant(won, lost):
        return Doubt(BEATEN, f"on {_count(won)}, the other way round on {lost.sum()}")
    return None


def _why_none(run: Run, norm: Norm, defense: str) -> str:
    """Why no attack with gradients has a result for a defense."""
    rows = [row for row in run.attack_rows(norm) if row.access in GRADIENTS]
    reasons = [row.not_applicable[defense] for row in rows if defense in row.not_applicable]
    reasons += ["failed" for row in rows if defense in row.cells]
    return "; ".join(dict.fromkeys(reasons)) or "none is in the matrix"


def _valid(records: pd.DataFrame) -> pd.DataFrame:
    """The records of the images that were attacked with a valid result."""
    return records[~records["status"].isin(["clean_error", "failed", "violation"]).to_numpy()]


def _closest(records: pd.DataFrame, norm: Norm) -> pd.Series:
    """Per sample that all of these records' cells have a result for, the smallest distance."""
    distances = records.groupby("sample")[norm.lower()]
    smallest: pd.Series = distances.min()[distances.size() == records["cell"].nunique()]
    return smallest


def _significant(won: pd.Series, lost: pd.Series) -> bool:
    wins = int(won.sum())
    return wins > 0 and bool(binom.sf(wins - 1, wins + int(lost.sum()), 0.5) <= ALPHA)


def _too_many(sign: str, images: pd.Series) -> Doubt | None:
    return Doubt(sign, _count(images)) if images.sum() > max(1, IMAGES_SHARE * len(images)) else None


def _count(images: pd.Series) -> str:
    return f"{int(images.sum())} of {len(images)} images"
