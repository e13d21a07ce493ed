"""Cells: the unit of work, of caching and of distribution, and how a matrix becomes cells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.cards import Access
from bench.judge import ALPHA
from bench.ledger import SCHEMA_VERSION
from bench.norms import Norm
from bench.oracle import DRAWS
from bench.protocols import offers
from bench.source import Closure, engine_code, identity_hash

if TYPE_CHECKING:  # the engine imports this module, and its closure is in every cell's id
    from bench.datasets import Dataset
    from bench.loading import LoadedDefense
    from bench.matrix import AttackEntry, Matrix
    from bench.registry import Plugin, Registry


@dataclass(frozen=True)
class Judging:
    """How a randomized defense is judged.

    Attributes:
        alpha: probability at most that a sample is recorded as broken by an image that the defense misclassifies with
            probability below one half; one number, or one for each sample.
        estimation_draws: that say how often an image is misclassified.
        threshold: radius, in the cell's norm, within which the likeliest image is looked for.
        seed: of draws on candidates, where it is not the cell's.
    """

    alpha: float | tuple[float, ...] = ALPHA
    estimation_draws: int = 20
    threshold: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Cell:
    """One (dataset, defense, attack, threat model, samples, seed).

    Attributes:
        defense, attack: names; the attack's has its variant after a colon.
        function: the attack's registered name.
        samples: the first so many images of the test set.
        chunk: samples that are attacked together.
        batch_size: rows of one forward pass at most; on a GPU `bench.gpu.rows_per_pass` of them.
        timeout: seconds after which the cell fails; does not change what a finished cell holds.
        state: hashes of everything else that can change the result: data, weights, code, versions of libraries.
        substitute: the defense that the attack transfers from, if it does.
        judging: how a randomized defense is judged; None for a deterministic one.
        as_it_is: candidates are neither post-processed nor moved outward.
    """

    dataset: str
    defense: str
    attack: str
    function: str
    norm: Norm
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
        """The name of the cell's result in the ledger's folder."""
        stem = "--".join((self.defense, self.attack, self.norm, self.id))
        return re.sub(r"[^A-Za-z0-9_-]", "+", stem) + ".parquet"

    @property
    def title(self) -> str:
        """For people: defense, attack and threat model."""
        ball = "" if self.epsilon is None else f" {self.epsilon:g}"
        return f"{self.defense} · {self.attack} · {self.norm}{ball}"


@dataclass(frozen=True)
class NotApplicable:
    """A place in the matrix that has no cell, and why."""

    defense: str
    attack: str
    norm: Norm
    reason: str


def transfers(matrix: Matrix, registry: Registry) -> bool:
    """True if some attack of the matrix needs its substitute."""
    return any(registry.get("attacks", entry.name).attack_card.access == "transfer" for entry in matrix.attacks)


def plan(
    matrix: Matrix,
    dataset: Dataset,
    defenses: dict[str, LoadedDefense],
    substitute: LoadedDefense | None,
    registry: Registry,
    broken: Mapping[str, str],
) -> tuple[list[Cell], list[NotApplicable]]:
    """Returns the cells of a matrix in its order, and the places that have none; ``broken`` says why defenses have
    none."""
    cells: list[Cell] = []
    missing: list[NotApplicable] = []
    engine = engine_code()
    for entry in matrix.attacks:
        attack = registry.get("attacks", entry.name)
        for norm in matrix.norms_of(entry, attack.attack_card):
            for name in matrix.attacked_by(entry):
                needed = [name, *([matrix.substitute] if attack.attack_card.access == "transfer" else [])]
                faults = [f"not run: {broken[one]}" for one in needed if one in broken]
                reason = faults[0] if faults else _obstacle(defenses[name], attack, dataset)
                if reason is not None:
                    missing.append(NotApplicable(name, entry.label, norm, reason))
                else:
                    source = substitute if attack.attack_card.access == "transfer" else None
                    cells.append(_cell(matrix, entry, attack, norm, defenses[name], source, dataset, engine))
    return cells, missing


def _obstacle(loaded: LoadedDefense, attack: Plugin, dataset: Dataset) -> str | None:
    return offers(loaded.card, loaded.defense, attack.attack_card.access)


def _cell(
    matrix: Matrix,
    entry: AttackEntry,
    attack: Plugin,
    norm: Norm,
    loaded: LoadedDefense,
    substitute: LoadedDefense | None,
    dataset: Dataset,
    engine: Closure,
) -> Cell:
    card = attack.attack_card
    code = attack.code | loaded.code if substitute is None else attack.code | loaded.code | substitute.code
    return Cell(
        dataset=dataset.name,
        defense=loaded.card.name,
        attack=entry.label,
        function=entry.name,
        norm=norm,
        epsilon=matrix.thresholds[norm] if entry.bounded else None,
        access=card.access,
        parameters=entry.effective(card, [norm]),
        # A card's budget is meant for answers of one pass each.
        budget=entry.budget or card.budget * (DRAWS if loaded.card.randomized else 1),
        seed=matrix.seed,
        samples=matrix.samples,
        chunk=matrix.chunk or loaded.card.batch_size,
        batch_size=loaded.card.batch_size,
        timeout=matrix.cell_timeout,
        state={
            **loaded.state(dataset),
            "substitute": "" if substitute is None else substitute.digest,
            "engine": engine.digest,
            "attack": attack.code.digest,
            "libraries": code.versions(without=engine),
        },
        substitute=None if substitute is None else substitute.card.name,
        judging=Judging(ALPHA, matrix.estimation_draws, matrix.thresholds[norm]) if loaded.card.randomized else None,
    )
