"""Oracles through which studies query a defense, and the costs that their records keep."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from bench.contracts.cards import Access
from bench.contracts.chunk import Chunk
from bench.contracts.devices import rows_per_pass
from bench.contracts.goals import MISCLASSIFIED_FROM_START, Goal
from bench.contracts.protocols import Defense
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Terms
from bench.studies.study import COSTS

BUDGET = 10_000
"""Passes per sample after which an oracle refuses a study's queries. The studies in this package take fewer."""


def study_oracle(
    defense: Defense,
    access: Access,
    threat: ThreatModel,
    chunk: Chunk,
    *,
    seed: int,
    purpose: str,
    goal: Goal = MISCLASSIFIED_FROM_START,
) -> DefenseOracle:
    """Returns an oracle for the images of a chunk, including misclassified clean images.

    The study and a randomized defense draw from the chunk's streams of ``seed`` and ``purpose``.
    """
    return DefenseOracle(
        defense,
        chunk.copied(),
        Terms(access, replace(threat, goal=goal), BUDGET, rows_per_pass(defense.card.batch_size, chunk.device)),
        random=chunk.streams(seed, f"{purpose} start"),
        noise=chunk.streams(seed, f"{purpose} defense"),
    )


def spent(*oracles: DefenseOracle) -> pd.DataFrame:
    """Returns the total cost of queries about the same samples: the columns `COSTS`, one row per sample."""
    return pd.DataFrame({name: sum(getattr(oracle, name).cpu().numpy() for oracle in oracles) for name in COSTS})
