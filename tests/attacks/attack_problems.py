"""Classifiers whose nearest adversarials are known, and a way to run an attack on them without the engine."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from exact_optimum import Polyhedron
from exact_optimum import optimum as exact_optimum
from torch import Tensor, nn

import attacks
from bench.contracts.cards import AttackCard, DefenseCard, card_of
from bench.contracts.chunk import Chunk
from bench.contracts.door import NO_DRAWS, linearize
from bench.contracts.oracle import BudgetExhausted
from bench.contracts.protocols import Defense, VectorJacobian
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Resources, Terms

ATTACKS: dict[str, Callable[..., Tensor]] = {}
for _info in pkgutil.iter_modules(attacks.__path__):
    for _value in vars(importlib.import_module(f"attacks.{_info.name}")).values():
        _card = card_of(_value)
        if isinstance(_card, AttackCard):
            ATTACKS[_card.name] = _value
"""Every attack that a module of the package declares: a new one is tested the day it is added."""

RADIUS = {"L2": 2.5, "Linf": 0.5}
"""Balls for attacks that have no minimal variant: wide enough for every image of the problems here."""

CASES = [(name, norm) for name, attack in ATTACKS.items() for norm in card_of(attack).norms]


def short(name: str) -> dict[str, Any]:
    """Parameters for tests that are not about strength."""
    return card_of(ATTACKS[name]).short


def on_problems(cases: list[tuple[str, str]], *problems: str) -> list[tuple[str, str, str]]:
    """The cases on each problem, (problem, name, norm): attacks on reconstructions on ``prototypes`` alone, since the
    others have none."""
    return [
        (problem, name, norm)
        for problem in problems
        for name, norm in cases
        if problem == "prototypes" or card_of(ATTACKS[name]).access != "latent"
    ]


class OneGradient:
    """A defense that optimizes nothing: its gradient through that is its gradient."""

    def unrolled_gradient(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        return linearize(self, x, NO_DRAWS, draws=1)


class LinearDefense(OneGradient):
    """Logits W x + b of random rows."""

    def __init__(self, size: int = 36, classes: int = 5, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.card = DefenseCard(name="linear", datasets=("random",))
        self.weight = torch.randn(classes, size, generator=generator) / size**0.5
        self.bias = 0.1 * torch.randn(classes, generator=generator)

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def to(self, device: torch.device | str) -> LinearDefense:
        return self

    def adversarial_regions(self, label: int) -> list[Polyhedron]:
        w, b = self.weight.double().numpy(), self.bias.double().numpy()
        return [((w[c] - w[label])[None], b[label, None] - b[c]) for c in range(len(w)) if c != label]


class PrototypeDefense(OneGradient):
    """Logits: minus the smallest squared distance to a prototype of the class, which is also its reconstruction."""

    def __init__(self, prototypes: Tensor, labels: Tensor) -> None:
        self.card = DefenseCard(name="prototypes", datasets=("random",))
        self.prototypes, self.labels, self.classes = prototypes, labels, int(labels.max()) + 1

    def squared_distances(self, x: Tensor) -> Tensor:
        return (x[:, None] - self.prototypes).flatten(2).square().sum(2)

    def logits(self, x: Tensor) -> Tensor:
        squared = self.squared_distances(x)
        return torch.stack([-squared[:, self.labels == c].amin(1) for c in range(self.classes)], 1)

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        squared = self.squared_distances(x).masked_fill(y[:, None] != self.labels, torch.inf)
        return self.prototypes[squared.argmin(1)]

    def to(self, device: torch.device | str) -> PrototypeDefense:
        return self

    def adversarial_regions(self, label: int) -> list[Polyhedron]:
        p = self.prototypes.double().flatten(1).numpy()
        own, others = p[self.labels.numpy() == label], p[self.labels.numpy() != label]
        # Nearer to one prototype of another class than to all of the label's.
        return [(2 * (q - own), (q**2).sum() - (own**2).sum(1)) for q in others]


@dataclass(frozen=True, eq=False)
class Problem:
    """Correctly classified images of a defense, and the training images an attack may use."""

    defense: Defense
    x: Tensor
    y: Tensor
    classes: int
    pool: tuple[Tensor, Tensor]
    optima: dict[str, Tensor] = field(default_factory=dict)

    def optimum(self, norm: str) -> Tensor:
        if norm not in self.optima:
            regions = [self.defense.adversarial_regions(label) for label in self.y.tolist()]
            self.optima[norm] = exact_optimum(regions, self.x, norm)
        return self.optima[norm]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack achieved: candidates, the distance of the closest adversarial seen, and passes per sample; and its
    remarks."""

    candidates: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    remarks: list[str]

    @property
    def found(self) -> Tensor:
        return torch.isfinite(self.distance)


@cache
def linear_problem() -> Problem:
    return _problem(LinearDefense(), classes=5)


@cache
def prototype_problem() -> Problem:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(12) % 4
    return _problem(PrototypeDefense(torch.rand(12, 1, 6, 6, generator=generator), labels), classes=4)


def _problem(defense: Defense, classes: int) -> Problem:
    """The images farthest from a decision, of many random ones with nearly half of their pixels at a bound."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2000, 1, 6, 6, generator=generator)
    images = torch.where(torch.rand(images.shape, generator=generator) < 0.4, images.round(), images)
    top = defense.logits(images).topk(2).values
    farthest = (top[:, 0] - top[:, 1]).argsort(descending=True)
    x, pool = images[farthest[:16]], images[farthest[-200:]]
    return Problem(defense, x, defense.logits(x).argmax(1), classes, (pool, defense.logits(pool).argmax(1)))


class SmallNet(OneGradient, nn.Module):
    """A convolutional net for 8x8 digits that learns in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ELU(), nn.Conv2d(16, 32, 3, 2), nn.ELU(), nn.Flatten(), nn.Linear(128, 10)
        )
        self.card = DefenseCard(name="small_net", datasets=("digits",))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    logits = forward


class ReluNet(OneGradient, nn.Module):
    """One hidden layer of a few rectified units, for 8x8 digits: small enough for exact distances."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(64, 12), nn.Linear(12, 10)
        self.card = DefenseCard(name="relu_net", datasets=("digits",))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(x.flatten(1)).relu())

    logits = forward


def run(
    problem: Problem,
    name: str,
    norm: str,
    *,
    epsilon: float | None = None,
    chunk: int = 10**6,
    seed: int = 0,
    budget: int | None = None,
    samples: int | None = None,
    substitute: Defense | None = None,
    start: float | None = None,
    starts: tuple[Tensor, Tensor] | None = None,
    **parameters: Any,
) -> Outcome:
    """Runs an attack chunk by chunk, as the engine does; in a ball of `RADIUS` if it must have one. What transfers does
    so from ``substitute``, or from the problem's own defense. ``start`` is the attack's own parameter ``epsilon``;
    ``starts`` is what other attacks found."""
    if start is not None:
        parameters["epsilon"] = start
    card = card_of(ATTACKS[name])
    if epsilon is None and "minimal" not in card.kinds:
        epsilon = RADIUS[norm]
    parts, remarks = [], []
    total = len(problem.x) if samples is None else samples
    for start in range(0, total, chunk):
        keys = list(range(start, min(start + chunk, total)))
        x, y = problem.x[keys], problem.y[keys]
        part = Chunk(x, y, keys, problem.classes)

        def transferred(source: Callable[..., Tensor], part: Chunk = part) -> Tensor:
            own = card_of(source)
            terms = Terms(own.access, ThreatModel(norm), own.budget, batch_size=64)
            streams = part.streams(0, "substitute"), part.streams(0, "substitute queries")
            on = problem.defense if substitute is None else substitute
            return source(DefenseOracle(on, part.copied(), terms, *streams), part.images, part.labels)

        allowed = card.budget if budget is None else budget
        oracle = DefenseOracle(
            problem.defense,
            part.copied(),
            Terms(card.access, ThreatModel(norm, epsilon), allowed, batch_size=64),
            part.streams(seed, "attack"),
            part.streams(seed, "queries"),
            Resources(problem.pool, transferred, None if starts is None else tuple(each[keys] for each in starts)),
        )
        attacked, labels = x.clone(), y.clone()
        try:
            candidates = ATTACKS[name](oracle, attacked, labels, **parameters)
        except BudgetExhausted:
            candidates = oracle.closest(x)
        assert torch.equal(attacked, x), "the attack changed its input"
        assert torch.equal(labels, y), "the attack changed the labels"
        parts.append((candidates, oracle.closest_distance, oracle.forwards, oracle.backwards))
        remarks += oracle.remarks
    return Outcome(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)), remarks)


def stretched(problem: Problem, outcome: Outcome, factor: float = 1.001) -> Tensor:
    """The candidates a little farther out, where rounding cannot undo them; the engine tries this too."""
    return (problem.x + factor * (outcome.candidates - problem.x)).clamp(0, 1)
