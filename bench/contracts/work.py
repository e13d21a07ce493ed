"""Work: the cells and studies of a run, their shards, and the identities under which results are stored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from bench.contracts.cards import Access
from bench.contracts.norms import NormName
from bench.contracts.source import identity_hash

SCHEMA_VERSION = 4
"""Version of the ledger's files. It is part of every identity."""
ALPHA = 0.001
"""Maximum probability that a sample is recorded as broken by an image with P(misclassified) below one half."""
PASSES = 200
"""Estimated cost of a study per sample, in forward passes. It is needed because the longest work runs first."""


Inference = Literal["warm", "exact"]
"""How an attack's queries are answered (`bench.contracts.protocols.HasWarmAnswers`)."""


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


@dataclass(frozen=True, kw_only=True)
class Work(ABC):
    """Work of a run whose result is stored under an id: a `Cell` or a `Study`.

    Attributes:
        dataset, defense: names.
        norm: the norm; None if it makes no difference.
        epsilon: radius of the ball in this norm; None if there is none.
        samples: number N of its records. Except in some studies, these are the first N images of the test set.
        batch_size: maximum rows of one forward pass; on a GPU see `bench.contracts.devices.rows_per_pass`.
        timeout: seconds after which it fails. It does not change a finished result.
        state: hashes of everything else that can change the result: data, weights, code, versions of libraries.
    """

    dataset: str
    defense: str
    norm: NormName | None
    epsilon: float | None
    seed: int
    samples: int
    batch_size: int
    timeout: float | None
    state: dict[str, str]

    @property
    @abstractmethod
    def subject(self) -> str:
        """The attack, or the kind of a study."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Maximum number of passes per sample, for estimates of its cost."""

    @property
    def needs(self) -> frozenset[str]:
        """The defenses that it queries."""
        return frozenset({self.defense})

    def limit(self, samples: int) -> float | None:
        """Returns the share of its timeout that some of its samples have, in seconds; None without a timeout."""
        return None if self.timeout is None else self.timeout * samples / self.samples

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the result, and nothing else."""
        known = {key: value for key, value in asdict(self).items() if key != "timeout"}
        return {"schema": SCHEMA_VERSION, **known}

    @cached_property
    def id(self) -> str:
        """A hash of the identity."""
        return identity_hash(self.identity)

    @abstractmethod
    def shards(self, hashes: Sequence[str]) -> tuple[Shard, ...]:
        """Returns its shards, in the order of its samples. ``hashes`` are those of the run's clean images, in order."""

    def file(self, *ids: str) -> str:
        """Returns the name of a file of its result in the ledger's folder. ``ids`` tell files of one cell apart."""
        stem = "--".join(filter(None, (self.defense, self.subject, self.norm, self.id, *ids)))
        return re.sub(r"[^A-Za-z0-9_-]", "+", stem) + ".parquet"

    @property
    def title(self) -> str:
        """The title for people."""
        return " · ".join(filter(None, (self.defense, self.subject.replace("_", " "), self.norm)))


@dataclass(frozen=True, kw_only=True)
class Cell(Work):
    """A cell: one combination of dataset, defense, attack, threat model, samples and seed.

    Attributes:
        attack: the attack's name, with its variant after a colon.
        function: the attack's registered name.
        budget: maximum number of forward plus backward passes per sample.
        inner_budget: number of steps per sample of the defense's optimization after which the attack ends; None for no
            limit.
        reference_budget: the budget below which its number is doubted. It does not change a result.
        chunk: number of samples that are attacked together.
        substitute: the defense that a transfer attack uses as its source; None for other attacks.
        judging: how a randomized defense is judged; None for a deterministic one.
        as_it_is: whether candidates are judged without post-processing and without being moved outward.
        starts: the cells, on the same samples, from whose adversarial examples the attack starts.
        inference: ``warm`` if the attack's queries are answered from earlier ones, else ``exact``. Verdicts are exact.
    """

    norm: NormName
    attack: str
    function: str
    access: Access
    parameters: dict[str, Any]
    budget: int
    chunk: int
    inner_budget: int | None = None
    reference_budget: int = 1
    substitute: str | None = None
    judging: Judging | None = None
    as_it_is: bool = False
    starts: tuple[Cell, ...] = ()
    inference: Inference = "exact"

    @property
    def subject(self) -> str:
        """The attack."""
        return self.attack

    @property
    def passes(self) -> int:
        """The budget."""
        return self.budget

    @property
    def needs(self) -> frozenset[str]:
        """The defense, and the substitute of a transfer attack."""
        return super().needs | ({self.substitute} if self.substitute is not None else set())

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the result but the selection of samples: that is in the shards' ids."""
        own = {key: value for key, value in super().identity.items() if key not in ("samples", "reference_budget")}
        return {**own, "starts": [start.id for start in self.starts]}

    def shards(self, hashes: Sequence[str]) -> tuple[Shard, ...]:
        """Returns one shard for each chunk. Its id is a hash of the cell's id and the chunk's own samples."""
        before = [start.shards(hashes) for start in self.starts]
        shards = []
        for number, start in enumerate(range(0, self.samples, self.chunk)):
            chunk = range(start, min(start + self.chunk, self.samples))
            id = identity_hash({"cell": self.id, "samples": [(i, hashes[i]) for i in chunk]})
            shards.append(Shard(self, chunk, id, self.file(id), tuple(own[number] for own in before)))
        return tuple(shards)

    @property
    def title(self) -> str:
        """The title for people: defense, attack and threat model."""
        ball = "" if self.epsilon is None else f" {self.epsilon:g}"
        return f"{self.defense} · {self.attack} · {self.norm}{ball}"


@dataclass(frozen=True, kw_only=True)
class Study(Work):
    """A study: one combination of kind, dataset, defense, norm, samples and seed.

    Attributes:
        kind: one of `bench.studies.catalog.STUDIES`, or ``refutation``.
    """

    kind: str

    @property
    def subject(self) -> str:
        """The kind."""
        return self.kind

    @property
    def passes(self) -> int:
        """An estimate for all kinds."""
        return PASSES

    def shards(self, hashes: Sequence[str]) -> tuple[Shard, ...]:
        """Returns one shard: a study is measured whole."""
        return (Shard(self, range(self.samples), self.id, self.file()),)


@dataclass(frozen=True)
class Shard:
    """The part of a cell or study that one worker executes, and whose result is one file.

    Attributes:
        work: the cell or study.
        samples: the rows of its samples: one chunk of a cell, or all of a study.
        id: a hash of everything that can change the result.
        file: name of the result's file in the ledger's folder.
        after: the shards whose results it needs.
    """

    work: Work
    samples: range
    id: str
    file: str
    after: tuple[Shard, ...] = ()

    @property
    def timeout(self) -> float | None:
        """Seconds after which it fails, or None."""
        return self.work.limit(len(self.samples))
