"""How a study reaches a defense: through an oracle, whose counts its records keep."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from bench.cards import Access
from bench.goals import MISCLASSIFIED_FROM_START, Goal
from bench.gpu import rows_per_pass
from bench.oracle import Oracle
from bench.protocols import Defense
from bench.randomness import Streams
from bench.studies import COSTS
from bench.threat import ThreatModel

BUDGET = 10_000
"""Passes per sample after which an oracle refuses a study's queries. The studies here take fewer."""


def study_oracle(
    defense: Defense,
    access: Access,
    threat: ThreatModel,
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    seed: int,
    keys: Sequence[int],
    purpose: str,
    goal: Goal = MISCLASSIFIED_FROM_START,
) -> Oracle:
    """Returns an oracle about images ``x`` (n, C, H, W) of classes ``y`` (n,), clean mistakes among them.

    The study and a randomized defense draw from the streams of ``seed``, ``keys`` (one per image) and ``purpose``.
    """
    return Oracle(
        defense,
        access,
        threat,
        x.clone(),
        y.clone(),
        classes=classes,
        random=Streams(seed, keys, f"{purpose} start", x.device),
        noise=Streams(seed, keys, f"{purpose} defense", x.device),
        budget=BUDGET,
        batch_size=rows_per_pass(defense.card.batch_size, x.device),
        goal=goal,
    )


def spent(*oracles: Oracle) -> pd.DataFrame:
    """Returns what queries about the same samples cost: the columns `COSTS`, one row per sample."""
    return pd.DataFrame({name: sum(getattr(oracle, name).cpu().numpy() for oracle in oracles) for name in COSTS})
