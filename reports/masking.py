"""Masking evidence: what in a run's records makes a careful reader doubt that a defense is as robust as it looks.

Most signs are of Athalye, Carlini & Wagner 2018 (Obfuscated gradients give a false sense of security, section 3.1) and
of Carlini et al. 2019 (On evaluating adversarial robustness); AutoAttack (Croce & Hein 2020) warns of some. They do not
prove that a number is wrong; they say why it may be.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from bench.cards import GRANTS
from bench.norms import Norm, within
from reports.runs import AttackRow, Run, once_per_run
from reports.statistics import falls

OLD_RULE = "judged by the rule before version 3"
NO_GRADIENTS = "no attack with the defense's gradients"
NO_GRADIENT_FREE = "no attack without the defense's gradients"
NOT_UNROLLED = "no attack through the optimisation that the defense does at inference"
USELESS_GRADIENTS = "gradients that are zero or not finite"
BEATEN = "attacks without the defense's gradients come closer than those with them"
UNBROKEN = "minimal attacks with gradients leave images unbroken, whatever the distance"
NEVER = "a minimal attack with gradients never succeeds, where others do or none without gradients was tried"
FALLING = "a larger epsilon or more steps break fewer images"
LATE = "images still broken in the last quarter of the passes: more steps or restarts may help"
CUT_SHORT = "the budget ended the attack before it was done: more steps may help"
VANISHED = "adversarials of an attack's own queries did not hold on fresh passes"
NON_FINITE = "candidates were dropped because the defense's logits were not finite"
FAILED = "attacks failed on images that no other attack broke"
REMARKS = "warnings of the engine or of the attack's library"

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
FALL = 0.01
"""Level of the one-sided test that a larger setting of an attack breaks fewer images."""
OTHERS = 3
"""Images that other attacks have to break before an attack that never succeeds is suspect."""
GRADIENTS = tuple(access for access, granted in GRANTS.items() if "gradient" in granted)
"""Kinds of access that include gradients."""
GRADIENT_FREE = ("decision", "score")
"""Kinds of access of attacks that need nothing but the defense's answers."""
_INVALID = ("failed", "violation")
"""Statuses of records without a valid result."""
_COLUMNS = [
    *("cell", "sample", "status", "claimed", "broken", "epsilon", "l0", "l2", "linf"),
    *("found_after", "useless_gradients", "forwards", "backwards", "non_finite", "remarks"),
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
    cell = row.cells.get(defense, "")
    records = run.cell_records(cell)
    if records is None:
        return []
    found = [judged_before(run, defense, [cell])]
    if row.epsilon is not None or run.facts[cell].dubious:
        valid = _valid(records[_COLUMNS])
        found += [useless_gradients(valid), vanished(valid), remarks(valid), cut_short(valid), non_finite(valid)]
        if row.epsilon is not None:
            found.append(found_late(valid))
    if row.epsilon is None and row.access in GRADIENTS and not run.facts[cell].breaks:
        found.append(never_succeeds(run, run.cells[cell]["norm"], defense, _valid(records[_COLUMNS])))
    fallen = (falling(run, cell, smaller) for smaller in _smaller_settings(run).get(cell, ()))
    found.append(next((doubt for doubt in fallen if doubt is not None), None))
    return [doubt for doubt in found if doubt is not None]


@once_per_run
def defense_doubts(run: Run, norm: Norm, defense: str) -> list[Doubt]:
    """What makes a defense's number under all attacks of a norm doubtful."""
    rows = {row.cells[defense]: row for row in run.attack_rows(norm) if defense in row.cells}
    everything = run.records_against(defense, norm, _COLUMNS)
    everything = everything[everything["cell"].isin(rows)]
    records, judged = _valid(everything), judged_before(run, defense, rows)
    if records.empty:
        return [judged] if judged is not None else []
    found = [judged, useless_gradients(records), vanished(records), remarks(records)]
    found += [non_finite(records), failed(everything)]
    access = records["cell"].map({cell: row.access for cell, row in rows.items()})
    if all(cell in run.facts for cell, row in rows.items() if row.access in GRADIENTS):
        with_gradients = records[access.isin(GRADIENTS)]
        if len(with_gradients):
            without = records[~access.isin([*GRADIENTS, "imported"])]
            found += [beaten(with_gradients, without, norm, run.threshold(norm)), unbroken(with_gradients)]
            if not (access == "unrolled").any():
                found.append(not_unrolled(run, norm, defense))
        else:
            found.insert(0, Doubt(NO_GRADIENTS, _why_none(run, norm, defense, GRADIENTS)))
        if not met_gradient_free(run, norm, defense):
            found.append(Doubt(NO_GRADIENT_FREE, _why_none(run, norm, defense, GRADIENT_FREE)))
    return [doubt for doubt in found if doubt is not None]


def evidence(run: Run) -> Iterator[tuple[str, Norm, str | None, Doubt]]:
    """Every doubt of a run: defense, norm, the attack's label or None for all attacks, and the doubt."""
    for defense in run.defenses:
        for norm in run.norms:
            yield from ((defense, norm, None, doubt) for doubt in defense_doubts(run, norm, defense))
            for row in run.attack_rows(norm):
                yield from ((defense, norm, row.label, doubt) for doubt in cell_doubts(run, row, defense))


def judged_before(run: Run, defense: str, cells: Collection[str]) -> Doubt | None:
    """Some of the cells are of a randomized defense and state no bound on the judge's error: they come from a run
    before version 3 of the ledger."""
    if defense not in run.randomized:
        return None
    done = [cell for cell in cells if cell in run.facts]
    old = [cell for cell in done if not run.cells[cell].get("alpha")]
    return Doubt(OLD_RULE, f"{len(old)} of {len(done)} cells") if old else None


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
    """More than `IMAGES_SHARE` of the images have an adversarial among the queries and none that holds. One that is
    undecided has not vanished: the tables count it."""
    lost = (records["claimed"] & ~records["broken"] & (records["status"] != "undecided")).to_numpy()
    if not lost.any():
        return None
    images = records.assign(lost=lost).groupby("sample")[["lost", "broken"]].any()
    return _too_many(VANISHED, images["lost"] & ~images["broken"])


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
    """The engine or the attack's library warned."""
    texts = dict.fromkeys(text for joined in records["remarks"].unique() for text in joined.split("; ") if text)
    return Doubt(REMARKS, "; ".join(texts)) if texts else None


def non_finite(records: pd.DataFrame) -> Doubt | None:
    """Candidates were dropped because the defense's logits on them were not finite."""
    dropped = records["non_finite"].to_numpy(int)
    if not dropped.any():
        return None
    images = records["sample"][dropped > 0].nunique()
    return Doubt(NON_FINITE, f"{dropped.sum()} candidates of {images} images")


def failed(records: pd.DataFrame) -> Doubt | None:
    """More than `IMAGES_SHARE` of the images count as not broken although some attack has no valid result on them."""
    unknown = records["status"].isin(_INVALID)
    if not unknown.any():
        return None
    images = records.assign(unknown=unknown, known=~unknown).groupby("sample")[["unknown", "known", "broken"]].any()
    images = images[images["known"]]
    return _too_many(FAILED, images["unknown"] & ~images["broken"])


def never_succeeds(run: Run, norm: Norm, defense: str, records: pd.DataFrame) -> Doubt | None:
    """A minimal attack with gradients broke nothing, and gave up on at least `OTHERS` images that other attacks break;
    or on as many images, where the defense has met no gradient-free attack that could. Where its budget ended it, that
    is not its failure.

    Args:
        run: whose other attacks count.
        norm: of all these attacks.
        defense: that they attacked.
        records: of the attack, those with a valid result.
    """
    gave_up = records[records["status"].eq("not_found") & ~records["claimed"]]
    if met_gradient_free(run, norm, defense):
        gave_up = gave_up[gave_up["sample"].isin(_broken(run, norm, defense))]
    return Doubt(NEVER, f"0 of {len(gave_up)} images") if len(gave_up) >= OTHERS else None


@once_per_run
def met_gradient_free(run: Run, norm: Norm, defense: str) -> bool:
    """True if an attack that needs nothing but a defense's answers has a valid result, or has not run yet."""
    rows = [row for row in run.attack_rows(norm) if row.access in GRADIENT_FREE and defense in row.cells]
    found = (run.cell_records(row.cells[defense]) for row in rows)
    return any(records is None or not records["status"].isin(_INVALID).all() for records in found)


def falling(run: Run, cell: str, smaller: str) -> Doubt | None:
    """A cell breaks significantly fewer images than a cell of the same attack that has a smaller epsilon or fewer steps
    and is otherwise equal (McNemar's exact test, one-sided, `FALL`). Images count that both attacked with a valid
    result; a minimal attack breaks one where it found an adversarial within the threshold."""
    found = [run.cell_records(each) for each in (smaller, cell)]
    if any(records is None for records in found):
        return None
    norm, bounded = run.cells[cell]["norm"], run.cells[cell]["epsilon"] is not None
    less, more = (_valid(records).set_index("sample")[norm.lower()] for records in found if records is not None)
    both = less.index.intersection(more.index)
    before, after = (
        np.isfinite(distances[both]) if bounded else within(distances[both], run.threshold(norm))
        for distances in (less, more)
    )
    if falls(before, after) >= FALL:
        return None
    return Doubt(FALLING, f"{after.sum()} of {len(both)} images, {before.sum()} with {_difference(run, smaller, cell)}")


@once_per_run
def _smaller_settings(run: Run) -> dict[str, list[str]]:
    """For each cell those of the same attack, defense and norm that differ only in a smaller epsilon or fewer steps."""
    alike: dict[str, list[tuple[float, str]]] = {}
    for cell in run.manifest["cells"]:
        place = [cell["attack"].partition(":")[0], cell["defense"], cell["norm"], cell["budget"]]
        epsilon, parameters = cell["epsilon"], cell["parameters"]
        if epsilon is not None:
            alike.setdefault(json.dumps([*place, parameters]), []).append((epsilon, cell["id"]))
        if isinstance(steps := parameters.get("steps"), int):
            rest = {**parameters, "steps": None}
            alike.setdefault(json.dumps([*place, rest, epsilon], sort_keys=True), []).append((steps, cell["id"]))
    smaller: dict[str, list[str]] = {}
    for settings in alike.values():
        for size, cell in settings:
            if others := [other for less, other in settings if less < size]:
                smaller.setdefault(cell, []).extend(others)
    return smaller


def _difference(run: Run, smaller: str, cell: str) -> str:
    """What is smaller in the first of two cells."""
    less, more = run.cells[smaller], run.cells[cell]
    if less["epsilon"] != more["epsilon"]:
        return f"epsilon {less['epsilon']:g} instead of {more['epsilon']:g}"
    return f"{less['parameters']['steps']} steps instead of {more['parameters']['steps']}"


@once_per_run
def _broken(run: Run, norm: Norm, defense: str) -> frozenset[int]:
    """The attacked images of a defense that any attack of a norm broke."""
    records = run.records_against(defense, norm, ["sample", "status", "broken"])
    return frozenset(records.loc[records["broken"] & (records["status"] != "clean_error"), "sample"])


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


def _why_none(run: Run, norm: Norm, defense: str, accesses: Collection[str]) -> str:
    """Why no attack with one of these kinds of access has a result for a defense."""
    rows = [row for row in run.attack_rows(norm) if row.access in accesses]
    reasons = [row.not_applicable[defense] for row in rows if defense in row.not_applicable]
    reasons += ["failed" for row in rows if defense in row.cells]
    return "; ".join(dict.fromkeys(reasons)) or "none is in the matrix"


def _valid(records: pd.DataFrame) -> pd.DataFrame:
    """The records of the images that were attacked with a valid result."""
    return records[~records["status"].isin(["clean_error", *_INVALID]).to_numpy()]


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
