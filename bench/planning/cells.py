"""The cells of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.contracts.cards import AttackCard
from bench.contracts.norms import NormName
from bench.contracts.oracle import DRAWS
from bench.contracts.protocols import HasWarmAnswers, offers
from bench.contracts.source import Closure, engine_code
from bench.contracts.work import ALPHA, Cell, Judging
from bench.datasets.dataset import Dataset
from bench.planning.matrix import AttackEntry, Matrix
from bench.plugins.registry import Plugin, Registry
from bench.training.loading import LoadedDefense

REFERENCE_PASSES = 200
"""Budget below which a number of a randomized defense is doubted: forward and backward passes of 20 answers, each over
5 draws."""

_Place = tuple[str, NormName, str]
"""An attack's label, a norm and a defense's label."""


@dataclass(frozen=True)
class NotApplicable:
    """A place in the matrix without a cell, and the reason."""

    defense: str
    attack: str
    norm: NormName
    reason: str


def transfers(matrix: Matrix, registry: Registry) -> bool:
    """Returns True if some attack of the matrix needs its substitute."""
    return any(registry.get("attacks", entry.name).attack_card.access == "transfer" for entry in matrix.attacks)


def plan(
    matrix: Matrix,
    dataset: Dataset,
    defenses: dict[str, LoadedDefense],
    substitute: LoadedDefense | None,
    registry: Registry,
    broken: Mapping[str, str],
) -> tuple[list[Cell], list[NotApplicable]]:
    """Returns the cells of a matrix in its order, and the places without a cell.

    ``broken`` maps the names of defenses without cells to the reasons.
    """
    cells: dict[_Place, Cell] = {}
    order: dict[_Place, int] = {}
    missing: list[NotApplicable] = []
    engine = engine_code()
    for entry in matrix.in_order_of_starts():
        attack = registry.get("attacks", entry.name)
        for norm in matrix.norms_of(entry, attack.attack_card):
            for name in matrix.attacked_by(entry):
                needed = [name, *([matrix.substitute] if attack.attack_card.access == "transfer" else [])]
                faults = [f"not run: {broken[one]}" for one in needed if one in broken]
                starts = [cells[label, norm, name] for label in entry.start if (label, norm, name) in cells]
                reason = faults[0] if faults else _obstacle(defenses[name], attack, dataset)
                if reason is None and entry.start and not starts:
                    reason = f"none of the attacks that it starts from runs here: {', '.join(entry.start)}"
                if reason is not None:
                    missing.append(NotApplicable(name, entry.label, norm, reason))
                else:
                    source = substitute if attack.attack_card.access == "transfer" else None
                    cell = _cell(matrix, entry, attack, norm, defenses[name], source, dataset, engine)
                    cells[entry.label, norm, name] = replace(cell, starts=tuple(starts))
                    order[entry.label, norm, name] = matrix.attacks.index(entry)
    return sorted(cells.values(), key=lambda cell: order[cell.attack, cell.norm, cell.defense]), missing


def _may_be_warm(card: AttackCard, loaded: LoadedDefense) -> bool:
    """Returns whether queries may be answered from earlier ones.

    Derivatives through the optimization are exact. So are the scores that attacks with access to scores alone get,
    because their differences, which estimate gradients, would show how far the searches went.
    """
    return card.access not in ("unrolled", "score") and isinstance(loaded.defense, HasWarmAnswers)


def _obstacle(loaded: LoadedDefense, attack: Plugin, dataset: Dataset) -> str | None:
    return offers(loaded.card, loaded.defense, attack.attack_card.access)


def _cell(
    matrix: Matrix,
    entry: AttackEntry,
    attack: Plugin,
    norm: NormName,
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
        # A card's budget assumes one pass per answer.
        budget=entry.budget or card.budget * (DRAWS if loaded.card.randomized else 1),
        inner_budget=entry.inner_budget,
        reference_budget=min(card.budget, REFERENCE_PASSES) if loaded.card.randomized else card.budget,
        seed=matrix.seed,
        samples=matrix.samples_of(loaded.card.name),
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
        inference=matrix.inference if _may_be_warm(card, loaded) else "exact",
        substitute=None if substitute is None else substitute.card.name,
        judging=Judging(ALPHA, matrix.estimation_draws, matrix.thresholds[norm]) if loaded.card.randomized else None,
    )
