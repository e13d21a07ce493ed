"""The conformance suite: checks on one plugin what every defense and every attack must satisfy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.conformance.examination import (
    IMAGES,
    misdecided,
    observe,
    output_remark,
    parts_in_training,
    repeats,
    streams,
)
from bench.contracts.cards import DefenseCard
from bench.contracts.door import drawn_logits, linearize, reconstructions
from bench.contracts.norms import NORMS
from bench.contracts.protocols import (
    Defense,
    HasDecision,
    HasInputGradient,
    HasReconstruction,
    HasUnrolledGradient,
    VectorJacobian,
)
from bench.contracts.work import Cell
from bench.datasets.dataset import Dataset, load_dataset
from bench.engine.cell import Adversary, CellResult, Substitute, Target, run_cell
from bench.ledger.schema import Status
from bench.plugins.registry import Plugin
from bench.training.loading import LoadedDefense

_SAMPLES = 8
_STEP = 0.01
"""L2 distance from an image, to either side, over which a central difference is taken to test a derivative."""
_MARGIN = 0.1
"""Smallest distance of pixels from 0 and 1 in this test. Differences stay in [0, 1], and roots are smooth there."""
_DISAGREEMENT = 0.05
"""Bound on the median difference between derivative and central difference, relative to the derivative. Curvature and
kinks cause some of it."""
_UNROLLED_DISAGREEMENT = 0.1
"""Bound for derivatives through an optimization, which crosses more kinks. The median is over all logits."""
_RADIUS = 0.3
"""Radius of the ball of bounded attacks, as a share of the largest distance between two images."""


@dataclass(frozen=True)
class Check:
    """A check: one demand, whether it is met, and what was observed."""

    name: str
    passed: bool
    detail: str = ""


def check_defense(loaded: LoadedDefense, dataset: Dataset) -> list[Check]:
    """Checks a loaded defense on images of a dataset.

    The checks cover shape, type and range of the logits, evaluation mode, batch invariance, randomness, gradients and
    reconstructions. The outputs must not look like probabilities.
    """
    return _run(_defense_checks(loaded.defense, dataset))


def check_attack(plugin: Plugin) -> list[Check]:
    """Checks an attack in each of its norms and kinds against a classifier by class means on ``digits``.

    The attack must run, stay in bounds and in the ball, and leave its input alone. A sample's result must depend only
    on the seed and on that sample. The attack must cope with a single sample and find adversarial examples.
    """
    return _run(_attack_checks(plugin))


class ClassMeans(nn.Module):
    """A classifier by class means: its logits are minus the squared distances to the classes' mean images.

    A term that all classes share is left out. The classifier "reconstructs" an image as a class's mean image. Its
    decision boundaries are hyperplanes, its gradient is exact, and it answers every kind of access.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        images, labels = dataset.train.images, dataset.train.labels
        means = torch.stack([images[labels == c].mean(0) for c in range(dataset.classes)])
        self.means: Tensor
        self.register_buffer("means", means)

    def logits(self, x: Tensor) -> Tensor:
        """Returns logits (N, K) of images (N, C, H, W), summed in float64.

        Float32 rounding depends on the batch and could change the course of a random walk.
        """
        flat = self.means.flatten(1).double()
        return (2 * x.flatten(1).double() @ flat.T - flat.square().sum(1)).to(x.dtype)

    def unrolled_gradient(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        """Returns the logits and their only vector-Jacobian product: the classifier optimizes nothing."""
        return self.logits(x), lambda cotangent: torch.einsum("nk,kchw->nchw", 2 * cotangent, self.means)

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean images (N, C, H, W) of the classes ``y`` (N,)."""
        return self.means[y]


def _run(checks: Iterator[Check]) -> list[Check]:
    """Returns all checks up to the first exception. An exception is appended as a failed check."""
    done: list[Check] = []
    try:
        for check in checks:
            done.append(check)
    except Exception as error:
        text = " ".join(str(error).split())
        done.append(Check("runs without an exception", False, f"{type(error).__name__}: {text}"))
    return done


def _defense_checks(defense: Defense, dataset: Dataset) -> Iterator[Check]:
    x = dataset.test.images[:IMAGES].clone()
    card = defense.card
    # Queried past the door, because the door passes a copy and would hide changes to the input.
    asked = x.clone()
    raw = _raw(defense, asked)
    yield Check("leaves its input alone", torch.equal(asked, x))
    if isinstance(raw, Tensor):
        before = raw.detach().clone()
        _raw(defense, 1 - x)
        yield Check("gives a new output each time", torch.equal(before.nan_to_num(), raw.nan_to_num()))
    dtype = raw.dtype if isinstance(raw, Tensor) else type(raw).__name__
    yield Check("logits are float32", dtype == torch.float32, str(dtype))
    passes = observe(defense, x)
    logits, expected = passes.together, (len(x), dataset.classes)
    yield Check("logits have one column per class", logits.shape == expected, f"{tuple(logits.shape)}, want {expected}")
    corners = torch.cat([torch.zeros_like(x[:1]), torch.ones_like(x[:1]), x])
    finite = bool(torch.isfinite(_query(defense, corners)).all())
    yield Check("logits are finite, on black and white images too", finite)
    remark = output_remark(logits)
    yield Check("logits are not probabilities", remark is None, remark or "")
    yield Check("in evaluation mode", card.randomized or not parts_in_training(defense))
    alike = passes.dependence <= passes.rounding
    yield Check("a row's logits do not depend on the batch", alike, f"relative difference {passes.dependence:.1g}")
    repeated = passes.change == 0
    if card.randomized:
        yield Check("randomized: the same streams give the same logits", repeated)
        yield Check("randomized: other streams give other logits", not repeats(defense, x))
    else:
        yield Check("deterministic", repeated)
    if card.access == "gradient":
        yield from _gradient_checks(defense, x, steady=repeated and alike)
    if isinstance(defense, HasDecision) and not card.randomized:
        yield Check("decisions are those of the logits", not misdecided(defense, x, passes).any())
    if isinstance(defense, HasReconstruction):
        images = reconstructions(defense, x, torch.zeros(len(x), dtype=torch.int64))
        good = images.shape == x.shape and bool(torch.isfinite(images).all())
        yield Check("reconstructions are finite images", good, str(tuple(images.shape)))


def _gradient_checks(defense: Defense, x: Tensor, steady: bool) -> Iterator[Check]:
    """Checks the derivatives of a defense. ``steady`` says that the logits depend on the image alone."""
    own = isinstance(defense, HasInputGradient)
    if not own:
        with torch.enable_grad():
            differentiable = drawn_logits(defense, x.clone().requires_grad_(True), streams(x)).requires_grad
        yield Check("logits are differentiable", differentiable, "" if differentiable else 'declare access="score"')
        if not differentiable:
            return
    gradient = _gradient(defense, x)
    finite = bool(torch.isfinite(gradient).all())
    zeros = int((gradient.flatten(1).abs().amax(1) == 0).sum())
    stepwise = defense.card.binarization_threshold is not None
    if not own and not defense.card.surrogate_gradient and not stepwise:
        yield _agrees_with_differences(defense, x, declarable=steady and finite and zeros < len(x))
    if isinstance(defense, HasUnrolledGradient) and not stepwise:
        yield _unrolled_agrees_with_differences(defense, x)
    yield Check("gradients are finite", finite)
    yield Check("gradients are not zero", zeros < len(x), f"zero for {zeros} of {len(x)} samples")


def _gradient(defense: Defense, x: Tensor) -> Tensor:
    """Returns the derivative (N, C, H, W) of sum_c c logit_c."""
    logits, product = linearize(defense, x, streams(x), draws=1)
    return product(torch.ones_like(logits) * torch.arange(logits.shape[1]))


def _inside(x: Tensor, step: Tensor) -> Tensor:
    """Returns the images nearest to ``x`` from which a step to either side stays in [0, 1]."""
    return torch.minimum(torch.maximum(x, step.abs()), 1 - step.abs())


def _agrees_with_differences(defense: Defense, x: Tensor, *, declarable: bool) -> Check:
    """Compares the derivative of sum_c c logit_c along the gradient with a central difference, near the images.

    If the derivative is ``declarable`` as a surrogate, the detail suggests declaring it.
    """
    x = x.clamp(_MARGIN, 1 - _MARGIN)
    gradient = _gradient(defense, x)
    slope = gradient.flatten(1).norm(dim=1)
    step = _STEP * gradient / slope.clamp_min(1e-30).reshape(-1, 1, 1, 1)
    ahead, behind = (_query(defense, x + sign * step).double() for sign in (1, -1))
    difference = ((ahead - behind) * torch.arange(ahead.shape[1])).sum(1) / (2 * _STEP)
    error = float(((difference - slope).abs() / slope.clamp_min(1e-12)).nan_to_num(torch.inf).median())
    hint = "; declare surrogate_gradient=True if that is meant" if declarable and error < torch.inf else ""
    detail = f"relative difference {error:.1g}{hint}"
    return Check("gradients agree with finite differences", error < _DISAGREEMENT, detail)


def _unrolled_agrees_with_differences(defense: Defense, x: Tensor) -> Check:
    """Compares derivatives of all logits in one direction with central differences.

    In this direction, the derivatives differ most from those that hold the optimization's end fixed. The check passes
    if the medians agree, and agree better than with the latter. Autograd's derivative may be the same. Medians are used
    because logits jump where inference follows the derivative of rectified units.
    """
    through, fixed = (_jacobian(defense, x, unrolled=unrolled) for unrolled in (True, False))
    same = not isinstance(defense, HasInputGradient) and torch.allclose(through, fixed)
    away = through if same else through - fixed
    direction = torch.einsum("k,nkd->nd", torch.arange(away.shape[1]).to(x), away)
    direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-30)
    step = _STEP * direction.reshape(x.shape)
    x = _inside(x, step)
    ahead, behind = (_query(defense, x + sign * step).double() for sign in (1, -1))
    differences = (ahead - behind) / (2 * _STEP)
    slopes, others = (
        torch.einsum("nkd,nd->nk", _jacobian(defense, x, unrolled=unrolled), direction).double()
        for unrolled in (True, False)
    )
    scale = slopes.abs().amax(1, keepdim=True).clamp_min(1e-12)
    error, beside = (float(((differences - given).abs() / scale).median()) for given in (slopes, others))
    good = error < _UNROLLED_DISAGREEMENT and (same or error < beside)
    held = "" if same else f", with the end held fixed {beside:.1g}"
    return Check("unrolled gradients agree with finite differences", good, f"difference {error:.1g}{held}")


def _jacobian(defense: Defense, x: Tensor, *, unrolled: bool) -> Tensor:
    logits, product = linearize(defense, x, streams(x), draws=1, unrolled=unrolled)
    return torch.stack([product(unit.expand_as(logits)) for unit in torch.eye(logits.shape[1])], 1).flatten(2)


def _attack_checks(plugin: Plugin) -> Iterator[Check]:
    dataset = load_dataset("digits")
    card = DefenseCard(name="class_means", datasets=("digits",), batch_size=_SAMPLES)
    defense: Any = ClassMeans(dataset).eval()
    defense.card = card
    attack = plugin.attack_card
    for norm in attack.norms:
        for kind in attack.kinds:
            cell = Cell(
                dataset="digits",
                defense=card.name,
                attack=attack.name,
                function=attack.name,
                norm=norm,
                epsilon=_RADIUS * NORMS[norm].diameter(dataset.shape) if kind == "bounded" else None,
                access=attack.access,
                parameters=attack.parameters,
                budget=attack.budget,
                seed=0,
                samples=_SAMPLES,
                chunk=_SAMPLES,
                batch_size=_SAMPLES,
                timeout=None,
                state={},
            )
            yield from _cell_checks(f"{norm} {kind}", cell, defense, plugin.function, dataset, attack.library)


def _cell_checks(
    title: str, cell: Cell, defense: Defense, function: Callable[..., Tensor], dataset: Dataset, library: bool
) -> Iterator[Check]:
    untouched: list[bool] = []

    def watched(oracle: Any, x: Tensor, y: Tensor, **parameters: Any) -> Tensor:
        before = x.clone(), y.clone()
        candidates = function(oracle, x, y, **parameters)
        untouched.append(torch.equal(before[0], x) and torch.equal(before[1], y))
        return candidates

    def result(of: Cell) -> CellResult:
        return run_cell(of, Target(defense), Adversary(watched, Substitute(defense)), dataset, torch.device("cpu"))

    first = result(cell)
    records = first.records
    reasons = sorted(set(records.loc[records["status"].isin([Status.VIOLATION, Status.FAILED]), "reason"]))
    yield Check(f"{title}: candidates are lawful", not reasons, "; ".join(reasons))
    yield Check(f"{title}: leaves its input alone", all(untouched))
    found = records["broken"] & (records["status"] != Status.CLEAN_ERROR)
    yield Check(f"{title}: finds an adversarial of a linear classifier", bool(found.any()), f"{int(found.sum())} found")
    again = result(cell)
    same = again.records.drop(columns="seconds").equals(records.drop(columns="seconds"))
    yield Check(f"{title}: the same seed gives the same result", same)
    if library:
        return
    alone = result(replace(cell, chunk=1)).records
    column = NORMS[cell.norm].column
    close = np.isclose(alone[column], records[column], rtol=0.01, equal_nan=True) & (
        alone["status"] == records["status"]
    )
    yield Check(
        f"{title}: a sample's result does not depend on its chunk", bool(close.all()), f"{int((~close).sum())} differ"
    )


@torch.no_grad()
def _query(defense: Defense, x: Tensor) -> Tensor:
    return drawn_logits(defense, x, streams(x))


@torch.no_grad()
def _raw(defense: Defense, x: Tensor) -> object:
    """Returns the output of the defense itself, of any type."""
    output: object = defense.logits(x, streams(x)) if defense.card.randomized else defense.logits(x)
    return output
