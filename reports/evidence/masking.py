"""Masking evidence: signs in a run's records that a defense may be less robust than it looks.

Most signs come from Athalye, Carlini & Wagner 2018 (Obfuscated gradients give a false sense of security, section 3.1)
and from Carlini et al. 2019 (On evaluating adversarial robustness). AutoAttack (Croce & Hein 2020) warns of some. A
sign does not prove that a number is wrong. It says why the number may be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from bench.contracts.cards import GRANTS
from bench.contracts.norms import NormName, within
from bench.ledger.schema import DISTANCES, Status
from reports.runs.run import AttackRow, Run, once_per_run
from reports.statistics.significance import falls

OLD_RULE = "judged by the rule before version 3"
NO_GRADIENTS = "no attack with the defense's gradients"
NO_GRADIENT_FREE = "no attack without the defense's gradients"
NOT_UNROLLED = "no attack through the optimization that the defense does at inference"
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
"""Share of the images that may be broken late, be cut short, vanish or fail without raising a doubt.

One image is always allowed.
"""
LAST_PASSES = 0.75
"""Share of an attack's passes after which an image counts as broken late."""
MARGIN = 0.01
"""Relative difference below which two distances count as equally close."""
ALPHA = 0.05
"""Significance level of the one-sided sign test that attacks without gradients come closer."""
FALL = 0.01
"""Significance level of the one-sided test that a larger setting of an attack breaks fewer images."""
OTHERS = 3
"""Number of images that other attacks must break before an attack that never succeeds raises a doubt."""
GRADIENTS = tuple(access for access, granted in GRANTS.items() if "gradient" in granted)
"""Kinds of access that include gradients."""
UNROLLED_NORMS = ("L2", "Linf")
"""Norms of the attacks with access to unrolled gradients."""
GRADIENT_FREE = ("decision", "score")
"""Kinds of access of attacks that need only the defense's answers."""
_INVALID = (Status.FAILED, Status.VIOLATION)
"""Statuses of records without a valid result."""
_COLUMNS = [
    *("cell", "sample", "status", "claimed", "broken", "epsilon", *DISTANCES),
    *("found_after", "useless_gradients", "forwards", "backwards", "non_finite", "remarks"),
]


@dataclass(frozen=True)
class Doubt:
    """A reason to doubt a number.

    Attributes:
        sign: what was seen, in words that are the same for every number.
        detail: how much of it was seen.
    """

    sign: str
    detail: str


@once_per_run
def cell_doubts(run: Run, row: AttackRow, defense: str) -> list[Doubt]:
    """Returns the reasons to doubt one attack's number for a defense."""
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
        found.append(never_succeeds(run, run.cells[cell].norm, defense, _valid(records[_COLUMNS])))
    fallen = (falling(run, cell, smaller) for smaller in _smaller_settings(run).get(cell, ()))
    found.append(next((doubt for doubt in fallen if doubt is not None), None))
    return [doubt for doubt in found if doubt is not None]


@once_per_run
def defense_doubts(run: Run, norm: NormName, defense: str) -> list[Doubt]:
    """Returns the reasons to doubt a defense's number under all attacks of a norm."""
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


def evidence(run: Run) -> Iterator[tuple[str, NormName, str | None, Doubt]]:
    """Yields every doubt of a run: defense, norm, the attack's label (None for all attacks), and the doubt."""
    for defense in run.defenses:
        for norm in run.norms:
            yield from ((defense, norm, None, doubt) for doubt in defense_doubts(run, norm, defense))
            for row in run.attack_rows(norm):
                yield from ((defense, norm, row.label, doubt) for doubt in cell_doubts(run, row, defense))


def judged_before(run: Run, defense: str, cells: Collection[str]) -> Doubt | None:
    """Returns a doubt if some cells of a randomized defense have run but state no bound on the judge's error.

    Such cells come from a run before version 3 of the ledger.
    """
    if defense not in run.randomized:
        return None
    done = [cell for cell in cells if cell in run.facts]
    old = [cell for cell in done if not run.cells[cell].alpha]
    return Doubt(OLD_RULE, f"{len(old)} of {len(done)} cells") if old else None


def not_unrolled(run: Run, norm: NormName, defense: str) -> Doubt | None:
    """Returns a doubt if the defense offers gradients through its own optimization.

    The caller has checked that no attack with a result used these gradients. In norms other than `UNROLLED_NORMS` no
    attack could, so the result is None.
    """
    offered = {entry.name for entry in run.manifest.defenses if entry.unrolled}
    return (
        Doubt(NOT_UNROLLED, "gradients hold its end fixed") if defense in offered and norm in UNROLLED_NORMS else None
    )


def useless_gradients(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if more than `USELESS_SHARE` of the derivatives were all zero or not finite."""
    shares, backwards = records["useless_gradients"].to_numpy(float), records["backwards"].to_numpy(float)
    asked = ~np.isnan(shares) & (backwards > 0)
    useless, total = (shares * backwards)[asked].sum(), backwards[asked].sum()
    return (
        Doubt(USELESS_GRADIENTS, f"{useless / total:.0%} of the derivatives")
        if useless > USELESS_SHARE * total
        else None
    )


def vanished(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if the adversarial examples of more than `IMAGES_SHARE` of the images vanished.

    The adversarial example of an image vanished if the queries contained one but none held. Undecided images do not
    count, because the tables count them.
    """
    lost = (records["claimed"] & ~records["broken"] & (records["status"] != Status.UNDECIDED)).to_numpy()
    if not lost.any():
        return None
    images = records.assign(lost=lost).groupby("sample")[["lost", "broken"]].any()
    return _too_many(VANISHED, images["lost"] & ~images["broken"])


def cut_short(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if more than `IMAGES_SHARE` of the images were refused queries for lack of budget."""
    return _too_many(CUT_SHORT, records["status"].eq(Status.BUDGET))


def found_late(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if more than `IMAGES_SHARE` of the images were broken late.

    Late means after `LAST_PASSES` of the passes that the attack spent on the costliest image it did not break. There is
    no doubt if the attack broke every image. An image does not count if the attack's library hides when it was broken.
    """
    left = records[~records["broken"]]
    passes = (left["forwards"] + left["backwards"]).max()
    found = records["found_after"].where(records["claimed"] & records["broken"])
    return _too_many(LATE, found > LAST_PASSES * passes)


def remarks(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if the engine or the attack's library warned."""
    texts = dict.fromkeys(text for joined in records["remarks"].unique() for text in joined.split("; ") if text)
    return Doubt(REMARKS, "; ".join(texts)) if texts else None


def non_finite(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if candidates were dropped because the defense's logits on them were not finite."""
    dropped = records["non_finite"].to_numpy(int)
    if not dropped.any():
        return None
    images = records["sample"][dropped > 0].nunique()
    return Doubt(NON_FINITE, f"{dropped.sum()} candidates of {images} images")


def failed(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if attacks lack valid results on more than `IMAGES_SHARE` of the images and none broke them.

    The share is relative to the images on which some attack has a valid result.
    """
    unknown = records["status"].isin(_INVALID)
    if not unknown.any():
        return None
    images = records.assign(unknown=unknown, known=~unknown).groupby("sample")[["unknown", "known", "broken"]].any()
    images = images[images["known"]]
    return _too_many(FAILED, images["unknown"] & ~images["broken"])


def never_succeeds(run: Run, norm: NormName, defense: str, records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if a minimal attack with gradients broke nothing and gave up on at least `OTHERS` images.

    Only images that other attacks break count. All images count if `met_gradient_free` is False. Images whose budget
    was exhausted do not count, because they are not the attack's failure.

    Args:
        run: the run whose other attacks are considered.
        norm: the norm of all these attacks.
        defense: the attacked defense.
        records: the attack's records with a valid result.
    """
    gave_up = records[records["status"].eq(Status.NOT_FOUND) & ~records["claimed"]]
    if met_gradient_free(run, norm, defense):
        gave_up = gave_up[gave_up["sample"].isin(_broken(run, norm, defense))]
    return Doubt(NEVER, f"0 of {len(gave_up)} images") if len(gave_up) >= OTHERS else None


@once_per_run
def met_gradient_free(run: Run, norm: NormName, defense: str) -> bool:
    """True if an attack that needs only a defense's answers has a valid result, or has not run yet."""
    rows = [row for row in run.attack_rows(norm) if row.access in GRADIENT_FREE and defense in row.cells]
    found = (run.cell_records(row.cells[defense]) for row in rows)
    return any(records is None or not records["status"].isin(_INVALID).all() for records in found)


def falling(run: Run, cell: str, smaller: str) -> Doubt | None:
    """Returns a doubt if a cell breaks significantly fewer images than an otherwise equal smaller cell.

    Smaller means a smaller epsilon or fewer steps of the same attack. The test is McNemar's exact test (one-sided,
    `FALL`). It uses the images that both cells attacked with a valid result. A minimal attack breaks an image if it
    found an adversarial example within the threshold.
    """
    found = [run.cell_records(each) for each in (smaller, cell)]
    if any(records is None for records in found):
        return None
    norm, bounded = run.cells[cell].norm, run.cells[cell].epsilon is not None
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
    """Maps each cell to the otherwise equal cells of the same attack, defense and norm with a smaller setting.

    A smaller setting is a smaller epsilon or fewer steps.
    """
    alike: dict[str, list[tuple[float, str]]] = {}
    for cell in run.manifest.cells:
        place = [cell.attack.partition(":")[0], cell.defense, cell.norm, cell.budget]
        epsilon, parameters = cell.epsilon, cell.parameters
        if epsilon is not None:
            alike.setdefault(json.dumps([*place, parameters]), []).append((epsilon, cell.id))
        if isinstance(steps := parameters.get("steps"), int):
            rest = {**parameters, "steps": None}
            alike.setdefault(json.dumps([*place, rest, epsilon], sort_keys=True), []).append((steps, cell.id))
    smaller: dict[str, list[str]] = {}
    for settings in alike.values():
        for size, id in settings:
            if others := [other for less, other in settings if less < size]:
                smaller.setdefault(id, []).extend(others)
    return smaller


def _difference(run: Run, smaller: str, cell: str) -> str:
    """Describes what is smaller in the first of two cells."""
    less, more = run.cells[smaller], run.cells[cell]
    if less.epsilon != more.epsilon:
        return f"epsilon {less.epsilon:g} instead of {more.epsilon:g}"
    return f"{less.parameters['steps']} steps instead of {more.parameters['steps']}"


@once_per_run
def _broken(run: Run, norm: NormName, defense: str) -> frozenset[int]:
    """Returns the attacked images of a defense that any attack of a norm broke."""
    records = run.records_against(defense, norm, ["sample", "status", "broken"])
    return frozenset(records.loc[records["broken"] & (records["status"] != Status.CLEAN_ERROR), "sample"])


def unbroken(records: pd.DataFrame) -> Doubt | None:
    """Returns a doubt if some images were broken by none of these attacks, but a minimal attack gave up on them.

    Giving up means that the attack found no adversarial example among its queries, without exhausting its budget. So
    accuracy does not reach 0 at any distance.
    """
    gave_up = records["epsilon"].isna() & records["status"].eq(Status.NOT_FOUND) & ~records["claimed"]
    images = records.assign(gave_up=gave_up).groupby("sample")[["gave_up", "broken"]].any()
    left = images["gave_up"] & ~images["broken"]
    return Doubt(UNBROKEN, _count(left)) if left.any() else None


def beaten(with_gradients: pd.DataFrame, without: pd.DataFrame, norm: NormName, threshold: float) -> Doubt | None:
    """Returns a doubt if attacks without gradients beat attacks with gradients significantly often.

    A side wins on an image if it breaks the image within ``threshold`` and the other side does not. Among minimal
    attacks, a side also wins if it comes closer by more than `MARGIN`. Each kind of win is tested on its own (one-sided
    sign test, `ALPHA`). The test uses images for which all attacks have a result.
    """
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


def _why_none(run: Run, norm: NormName, defense: str, accesses: Collection[str]) -> str:
    """Returns the reasons why no attack with one of these kinds of access has a result for a defense."""
    rows = [row for row in run.attack_rows(norm) if row.access in accesses]
    reasons = [row.not_applicable[defense] for row in rows if defense in row.not_applicable]
    reasons += ["failed" for row in rows if defense in row.cells]
    return "; ".join(dict.fromkeys(reasons)) or "none is in the matrix"


def _valid(records: pd.DataFrame) -> pd.DataFrame:
    """Returns the records of images that were attacked with a valid result."""
    return records[~records["status"].isin([Status.CLEAN_ERROR, *_INVALID]).to_numpy()]


def _closest(records: pd.DataFrame, norm: NormName) -> pd.Series:
    """Returns the smallest distance of each sample for which all cells of these records have a result."""
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
