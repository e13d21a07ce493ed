"""Signs in records that a defense may be less robust than it looks.

Most signs come from Athalye, Carlini & Wagner 2018 (Obfuscated gradients give a false sense of security, section 3.1)
and from Carlini et al. 2019 (On evaluating adversarial robustness). AutoAttack (Croce & Hein 2020) warns of some. A
sign does not prove that a number is wrong. It says why the number may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from bench.contracts.norms import NormName, within
from bench.ledger.schema import DISTANCES, Status

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
SMALL_BUDGET = "the budget is smaller than the attack's default: more steps may help"
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
SIGN_TEST_LEVEL = 0.05
"""Significance level of the one-sided sign test that attacks without gradients come closer."""
INVALID = (Status.FAILED, Status.VIOLATION)
"""Statuses of records without a valid result."""
COLUMNS = [
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


Evidence = tuple[str, NormName, str | None, Doubt]
"""A doubt with its place: defense, norm and label of the attack's row (None for all attacks of the norm)."""
Signs = Mapping[tuple[str, NormName, str | None], tuple[str, ...]]
"""The signs of doubt of each place."""


def signs_of(evidence: Iterable[Evidence]) -> Signs:
    """Returns the signs of doubt of each place that has some."""
    signs: dict[tuple[str, NormName, str | None], tuple[str, ...]] = {}
    for defense, norm, attack, doubt in evidence:
        signs[defense, norm, attack] = (*signs.get((defense, norm, attack), ()), doubt.sign)
    return signs


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
    unknown = records["status"].isin(INVALID)
    if not unknown.any():
        return None
    images = records.assign(unknown=unknown, known=~unknown).groupby("sample")[["unknown", "known", "broken"]].any()
    images = images[images["known"]]
    return _too_many(FAILED, images["unknown"] & ~images["broken"])


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
    sign test, `SIGN_TEST_LEVEL`). The test uses images for which all attacks have a result.
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


def valid_records(records: pd.DataFrame) -> pd.DataFrame:
    """Returns the records of images that were attacked with a valid result."""
    return records[~records["status"].isin([Status.CLEAN_ERROR, *INVALID]).to_numpy()]


def _closest(records: pd.DataFrame, norm: NormName) -> pd.Series:
    """Returns the smallest distance of each sample for which all cells of these records have a result."""
    distances = records.groupby("sample")[norm.lower()]
    smallest: pd.Series = distances.min()[distances.size() == records["cell"].nunique()]
    return smallest


def _significant(won: pd.Series, lost: pd.Series) -> bool:
    wins = int(won.sum())
    return wins > 0 and bool(binom.sf(wins - 1, wins + int(lost.sum()), 0.5) <= SIGN_TEST_LEVEL)


def _too_many(sign: str, images: pd.Series) -> Doubt | None:
    return Doubt(sign, _count(images)) if images.sum() > max(1, IMAGES_SHARE * len(images)) else None


def _count(images: pd.Series) -> str:
    return f"{int(images.sum())} of {len(images)} images"
