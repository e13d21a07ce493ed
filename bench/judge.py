"""The judge: decides, on fresh forward passes, whether a candidate is adversarial and how far away it is.

Nothing that an attack claims is recorded unchecked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.norms import NORMS, Norm
from bench.protocols import Defense
from bench.randomness import Streams
from bench.threat import ThreatModel, distance, snap_to_threshold

STRETCHES = (1.001, 1.005, 1.02, 1.1)
"""Factors by which minimal perturbations are also tried: an attack ends just outside the boundary, where another float
order or another random draw can undo it."""
MAX_DRAWS = 100
_DRAWS_AT_ONCE = 10
_Z = 2.5758293035489004  # 99 % two-sided normal quantile


class DefenseFault(Exception):
    """The defense's output is not finite logits of the right shape."""


@dataclass(frozen=True)
class Verdict:
    """What fresh forward passes say of images: the predicted class (N,) int64 (the majority for a randomised defense),
    whether they are misclassified (N,), the share of draws that misclassify them (N,) float64, and how many draws there
    were (N,) int64: 1 for a deterministic defense."""

    prediction: Tensor
    misclassified: Tensor
    success_rate: Tensor
    draws: Tensor


@dataclass(frozen=True)
class Judged:
    """The nearest candidate of each sample that holds.

    Attributes:
        broken: (n,) whether one holds.
        images: (n, C, H, W) that candidate; zeros where none holds.
        prediction: (n,) its class; -1 where none holds.
        success_rate: (n,) float64 share of draws that misclassify it; of the last candidate tried where none holds.
        draws: (n,) int64 how many draws that were; 0 where nothing was tried.
        distances: float64 (n,) per norm; infinity where none holds.
        violation: per sample why the attack's own candidates break the rules, or "".
    """

    broken: Tensor
    images: Tensor
    prediction: Tensor
    success_rate: Tensor
    draws: Tensor
    distances: dict[Norm, Tensor]
    violation: list[str]


def classify(defense: Defense, x: Tensor, y: Tensor, noise: Streams, ids: Tensor, classes: int) -> Verdict:
    """Classifies images in batches of exactly the card's size (padded with the last image, since float arithmetic
    depends on the batch shape); a randomised defense on up to `MAX_DRAWS` draws, stopping for an image once the 99 %
    Wilson interval of its error rate excludes one half. Misclassified means an error rate of at least one half.

    Raises:
        DefenseFault: when the logits are not finite or not of shape (N, classes).
    """

    def predict(rows: Tensor) -> Tensor:
        return _logits(defense, x[rows], noise, ids[rows], classes).argmax(1)

    if defense.card.randomized:
        return vote(predict, y, classes, MAX_DRAWS)
    prediction = predict(torch.arange(len(x), device=x.device))
    wrong = prediction != y
    return Verdict(prediction, wrong, wrong.double(), torch.ones_like(prediction))


def vote(predict: Callable[[Tensor], Tensor], y: Tensor, classes: int, max_draws: int) -> Verdict:
    """The verdict on images with labels ``y`` (N,) by up to ``max_draws`` draws of ``predict``, which gives the classes
    of the rows it is asked for, a draw for each time that a row is named; see `classify`."""
    votes = torch.zeros(len(y), classes, dtype=torch.int64, device=y.device)
    open_rows = torch.arange(len(y), device=y.device)
    for done in range(0, max_draws, _DRAWS_AT_ONCE):
        if not len(open_rows):
            break
        # Together they fill the batches, which cost the same for the few images that need most draws.
        draws = min(_DRAWS_AT_ONCE, max_draws - done)
        predicted = predict(open_rows.repeat(draws)).reshape(draws, -1)
        votes[open_rows] += torch.nn.functional.one_hot(predicted, classes).sum(0)
        low, high = wilson(_errors(votes, y)[open_rows], votes[open_rows].sum(1))
        open_rows = open_rows[(low <= 0.5) & (high >= 0.5)]
    rate = _errors(votes, y) / votes.sum(1)
    return Verdict(votes.argmax(1), rate >= 0.5, rate.double(), votes.sum(1))


def wilson(successes: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
    """The 99 % Wilson score interval (Wilson 1927) of a proportion, as float64 tensors (low, high)."""
    n, rate = trials.double(), successes.double() / trials
    center = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (rate * (1 - rate) / n + _Z**2 / (4 * n**2)).sqrt()
    return center - half, center + half


def judge(
    defense: Defense,
    threat: ThreatModel,
    x: Tensor,
    y: Tensor,
    candidates: Tensor,
    seen: Tensor,
    noise: Streams,
    ids: Tensor,
    classes: int,
) -> Judged:
    """Judges an attack's candidates (M, n, C, H, W) and the adversarials ``seen`` (S, n, C, H, W) by the oracle.

    Each is tried as it is, post-processed if the defense binarises, and, without an epsilon, stretched; the nearest
    first, until one is in bounds, in the ball and misclassified on fresh passes.
    """
    threshold = defense.card.binarization_threshold
    # What breaks the rules is not mended: it takes the clean image's place, which is never adversarial.
    proposals = [_lawful_or(x, candidate, threat) for candidate in [*candidates, *seen]]
    stretched = [(x + factor * (p - x)).clamp(0, 1) for factor in STRETCHES for p in proposals]
    if threshold is not None:
        proposals += [snap_to_threshold(p, x, threshold) for p in proposals]
    if threat.epsilon is None:
        proposals += stretched
    stacked = torch.stack(proposals)
    distances = torch.stack([threat.distance(p, x) for p in stacked])
    distances = distances.masked_fill(distances == 0, torch.inf)
    order = distances.argsort(dim=0, stable=True)

    n = len(x)
    rows = torch.arange(n, device=x.device)
    broken = torch.zeros(n, dtype=torch.bool, device=x.device)
    images = torch.zeros_like(x)
    prediction = torch.full((n,), -1, dtype=torch.int64, device=x.device)
    success_rate = torch.zeros(n, dtype=torch.float64, device=x.device)
    draws = torch.zeros(n, dtype=torch.int64, device=x.device)
    previous = x
    for ranked in order:
        now = stacked[ranked, rows]
        copies = (now == previous).flatten(1).all(1)
        todo = (~broken & torch.isfinite(distances[ranked, rows]) & ~copies).nonzero()[:, 0]
        previous = now
        if not len(todo):
            continue
        tried = stacked[ranked[todo], todo]
        verdict = classify(defense, tried, y[todo], noise, ids[todo], classes)
        success_rate[todo], draws[todo] = verdict.success_rate, verdict.draws
        holds = todo[verdict.misclassified]
        broken[holds] = True
        images[holds] = tried[verdict.misclassified]
        prediction[holds] = verdict.prediction[verdict.misclassified]
    final = {norm: torch.where(broken, distance(images, x, norm), torch.inf) for norm in NORMS}
    violation = ["" if hit else _violation(candidates[:, i], x[i], threat) for i, hit in enumerate(broken.tolist())]
    return Judged(broken, images, prediction, success_rate, draws, final, violation)


def _lawful_or(x: Tensor, candidate: Tensor, threat: ThreatModel) -> Tensor:
    """The rows of ``candidate`` that are finite, in [0, 1] and in the ball; those of ``x`` for the others."""
    pixels = candidate.flatten(1)
    in_range = torch.isfinite(pixels).all(1) & (pixels >= 0).all(1) & (pixels <= 1).all(1)
    lawful = in_range & threat.allows(threat.distance(torch.nan_to_num(candidate), x))
    return torch.where(lawful.reshape(-1, 1, 1, 1), candidate, x)


def _violation(candidates: Tensor, x: Tensor, threat: ThreatModel) -> str:
    """Why an attack's candidates (M, C, H, W) for the image ``x`` (C, H, W) break the rules, or ""."""
    if not len(candidates):
        return ""
    if not torch.isfinite(candidates).all():
        return "non_finite"
    if (candidates < 0).any() or (candidates > 1).any():
        return "out_of_range"
    if (candidates == x).all():
        return "unperturbed"
    if threat.epsilon is not None:
        distances = threat.distance(candidates, x.expand_as(candidates))
        if not threat.allows(distances).all():
            return "out_of_ball"
    return ""


def _errors(votes: Tensor, y: Tensor) -> Tensor:
    return votes.sum(1) - votes.gather(1, y[:, None])[:, 0]


@torch.no_grad()
def _logits(defense: Defense, x: Tensor, noise: Streams, ids: Tensor, classes: int) -> Tensor:
    size = defense.card.batch_size
    parts = []
    for start in range(0, len(x), size):
        batch, batch_ids = x[start : start + size], ids[start : start + size]
        used = len(batch)
        padding = size - used
        batch = torch.cat([batch, batch[-1:].expand(padding, *batch.shape[1:])])
        if defense.card.randomized:
            batch_ids = torch.cat([batch_ids, batch_ids[-1:].expand(padding)])
            logits = defense.logits(batch, noise.rows(batch_ids))
        else:
            logits = defense.logits(batch)
        if logits.shape != (size, classes):
            raise DefenseFault(f"logits have shape {tuple(logits.shape)}, expected {(size, classes)}")
        parts.append(logits[:used])
    output = torch.cat(parts) if parts else torch.zeros(0, classes, device=x.device)
    if not torch.isfinite(output).all():
        raise DefenseFault("logits are not finite")
    return output
