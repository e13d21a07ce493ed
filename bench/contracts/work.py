"""Work: the cells and studies of a run, and the identities under which their results are stored."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from bench.contracts.cards import Access
from bench.contracts.norms import NormName
from bench.contracts.source import identity_hash

SCHEMA_VERSION = 3
"""Version of the ledger's files. It is part of every identity."""
ALPHA = 0.001
"""Maximum probability that a sample is recorded as broken by an image with P(misclassified) below one half."""
ENTRY = ("id", "kind", "defense", "norm", "epsilon", "file", "identity")
"""The attributes of a study that a manifest stores."""
PASSES = 200
"""Estimated cost of a study per sample, in forward passes. It is needed because the longest work runs first."""


@dataclass(frozen=True)
class Judging:
    """How a randomized defense is judged.

    Attributes:
        alpha: maximum probability that a sample is recorded as broken by an image that the defense misclassifies with
            probability below one half; one number, or one for each sample.
        estimation_draws: number of draws that estimate how often an image is misclassified.
        threshold: radius, in the cell's norm, within which the image most likely to be misclassified is searched for.
        seed: seed of the draws on candidates; None stands for the cell's seed.
    """

    alpha: float | tuple[float, ...] = ALPHA
    estimation_draws: int = 20
    threshold: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Cell:
    """A cell: one combination of dataset, defense, attack, threat model, samples and seed.

    Attributes:
        defense, attack: names; the attack's has its variant after a colon.
        function: the attack's registered name.
        samples: number N of samples, the first N images of the test set.
        chunk: number of samples that are attacked together.
        batch_size: maximum rows of one forward pass; on a GPU see `bench.contracts.devices.rows_per_pass`.
        timeout: seconds after which the cell fails. It does not change the result of a finished cell.
        state: hashes of everything else that can change the result: data, weights, code, versions of libraries.
        substitute: the defense that a transfer attack uses as its source; None for other attacks.
        judging: how a randomized defense is judged; None for a deterministic one.
        as_it_is: whether candidates are judged without post-processing and without being moved outward.
    """

    dataset: str
    defense: str
    attack: str
    function: str
    norm: NormName
    epsilon: float | None
    access: Access
    parameters: dict[str, Any]
    budget: int
    seed: int
    samples: int
    chunk: int
    batch_size: int
    timeout: float | None
    state: dict[str, str]
    substitute: str | None = None
    judging: Judging | None = None
    as_it_is: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the result, and nothing else."""
        known = {key: value for key, value in asdict(self).items() if key != "timeout"}
        return {"schema": SCHEMA_VERSION, **known}

    @cached_property
    def id(self) -> str:
        """A hash of the identity."""
        return identity_hash(self.identity)

    @property
    def file(self) -> str:
        """The name of the result's file in the ledger's folder."""
        stem = "--".join((self.defense, self.attack, self.norm, self.id))
        return re.sub(r"[^A-Za-z0-9_-]", "+", stem) + ".parquet"

    @property
    def title(self) -> str:
        """The title for people: defense, attack and threat model."""
        ball = "" if self.epsilon is None else f" {self.epsilon:g}"
        return f"{self.defense} · {self.attack} · {self.norm}{ball}"


@dataclass(frozen=True)
class Study:
    """A study: one combination of kind, dataset, defense, norm, samples and seed.

    Attributes:
        kind: one of `bench.studies.catalog.STUDIES`, or ``refutation``.
        norm: the norm; None if it makes no difference.
        epsilon: radius of the ball in this norm; None if it makes no difference.
        samples: number N of its records. In studies of test images these are the first N.
        batch_size: number of images that are measured together.
        timeout: seconds after which its worker is killed. It does not change the result of a finished study.
        state: hashes of everything else that can change the result.
    """

    kind: str
    dataset: str
    defense: str
    norm: NormName | None
    epsilon: float | None
    seed: int
    samples: int
    batch_size: int
    timeout: float | None
    state: dict[str, str]

    substitute: None = None
    budget: int = PASSES

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the result, and nothing else."""
        left_out = ("timeout", "id", "budget", "substitute")
        return {"schema": SCHEMA_VERSION, **{key: value for key, value in vars(self).items() if key not in left_out}}

    @cached_property
    def id(self) -> str:
        """A hash of the identity."""
        return identity_hash(self.identity)

    @property
    def file(self) -> str:
        """The name of the result's file in the ledger's folder."""
        stem = "--".join((self.defense, self.kind, *([self.norm] if self.norm else []), self.id))
        return re.sub(r"[^A-Za-z0-9_-]", "+", stem) + ".parquet"

    @property
    def title(self) -> str:
        """The title for people: defense, kind and norm."""
        return " · ".join((self.defense, self.kind.replace("_", " "), *([self.norm] if self.norm else [])))


Work = Cell | Study
