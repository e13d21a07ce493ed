"""The examination: checks a defense's contract on a few images, before its first cell and in the conformance suite.

A defense that gives one image several answers is refused, since no attack on it could be judged. Remarks name what
changes a defense's numbers but not its answers. They also name outputs that mislead attacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.door import decisions, drawn_logits
from bench.contracts.errors import DefenseFault
from bench.contracts.protocols import Defense, HasDecision
from bench.contracts.streams import RowStreams, Streams
from bench.datasets.dataset import Dataset

IMAGES = 8
"""Number of images that a defense is examined on: the first N test images."""
ROUNDING = 1e-4
"""Largest difference between the logits of an image in two batches that rounding explains, relative to the logits."""
REPEATS = 10
"""Number of repeated draws with the same logits after which a randomized defense is called deterministic."""

CHANGES = "its logits change from pass to pass, though it is not declared randomized"
DEPENDS = "its logits of an image depend on the rest of the batch"
IN_TRAINING = "a part of it is in training mode"
OTHER_DRAWS = "its draws do not come from the random streams that it is given"
CONTRADICTED = "its decisions are not those of its logits"
LIKELIHOODS = (
    "the outputs look like probabilities or likelihoods, not logits: wrap them with bench.wrap(net, output=...)"
)
TINY = "its logits differ by less than one millionth: scale them up"

_MAGNITUDES = 30.0
"""Ratio of the largest to the median of an image's positive outputs, above which the outputs span many magnitudes. The
ratio is below 5 for absolute values of normal numbers and below 26 for their squares (1000 classes). It is 43 for
likelihoods exp(-d^2) on digits, the first of their kind on which projected gradient descent misses adversarial
examples."""
_UNDERFLOW = 1e-20
"""Products of likelihoods become smaller than this before they underflow to 0. A rectified output is larger."""
_SATURATED = 0.999
_SAME_SUM = 1e-4
_SUM_OF_HALF = 0.01
"""Largest deviation of a sum of probabilities from 1 in half precision."""


@dataclass(frozen=True)
class Passes:
    """Logits (N, K) of the same images in several passes.

    Attributes:
        together: in a batch.
        alone: each image in a batch of its own, with the same random streams.
        again: in a batch, after all other passes, with the same random streams.
        redrawn: in a batch, with other random streams; ``again`` for a deterministic defense.
    """

    together: Tensor
    alone: Tensor
    again: Tensor
    redrawn: Tensor

    @property
    def change(self) -> float:
        """The relative difference between two passes on the same batch."""
        return relative_difference(self.together, self.again)

    @property
    def dependence(self) -> float:
        """The relative difference between images in a batch and alone."""
        return relative_difference(self.together, self.alone)

    @property
    def rounding(self) -> float:
        """The relative difference that rounding explains. It is larger for outputs in half precision."""
        for low in (torch.bfloat16, torch.half):
            if torch.equal(self.together.to(low).float(), self.together):
                return 8 * torch.finfo(low).eps
        return ROUNDING


@torch.no_grad()
def observe(defense: Defense, x: Tensor) -> Passes:
    """Returns the logits of images (N, C, H, W) in several passes. Batches have at most the card's batch size."""
    with torch.random.fork_rng():
        together = _logits(defense, x)
        alone = torch.cat([_logits(defense, x[i : i + 1], first=i) for i in range(len(x))])
        redrawn = _logits(defense, x, seed=1) if defense.card.randomized else None
        again = _logits(defense, x)
    return Passes(together, alone, again, again if redrawn is None else redrawn)


def streams(x: Tensor, seed: int = 0, first: int = 0) -> RowStreams:
    """Returns random streams for images (N, C, H, W), numbered from ``first``."""
    rows = Streams(seed, range(first, first + len(x)), "contract", x.device)
    return rows.rows(torch.arange(len(x), device=x.device))


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Returns the largest difference between logits (N, K), relative to the largest logit of ``a``.

    The result is infinity if a logit is finite in only one of the two.
    """
    differences = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0)
    largest = a.abs().nan_to_num(0, 0, 0).amax().clamp_min(torch.finfo(a.dtype).tiny)
    return float((differences / largest).nan_to_num(torch.inf).amax())


def contradictions(a: Tensor, b: Tensor, rounding: float) -> Tensor:
    """Returns where (N,) two rows of logits (N, K) name different classes, ties within ``rounding`` aside.

    A row that is not finite names no class. Two rows also contradict each other if only one is finite.
    """
    first, second = a.argmax(1, keepdim=True), b.argmax(1, keepdim=True)
    lead = torch.stack([(of.gather(1, first) - of.gather(1, second)).abs()[:, 0] for of in (a, b)]).amax(0)
    scale = torch.maximum(a.abs().amax(1), b.abs().amax(1))
    finite, as_well = a.isfinite().all(1), b.isfinite().all(1)
    return (finite & as_well & (lead > rounding * scale)) | (finite != as_well)


@torch.no_grad()
def misdecided(defense: HasDecision, x: Tensor, passes: Passes) -> Tensor:
    """Returns where (N,) a defense's decision is not the class of its finite logits, ties within rounding aside."""
    logits = passes.together
    others = logits.amax(1) - logits.gather(1, decisions(defense, x)[:, None])[:, 0]
    return logits.isfinite().all(1) & (others > passes.rounding * logits.abs().amax(1))


@torch.no_grad()
def repeats(defense: Defense, x: Tensor) -> bool:
    """Returns whether a randomized defense gives the same logits with different random streams.

    Means of two images are queried too, because votes hardly vary on clean images.
    """
    between = (x + x.roll(1, 0)) / 2
    for images in (x, between):
        first = _logits(defense, images)
        for seed in range(1, REPEATS + 1):
            if not torch.equal(first, _logits(defense, images, seed=seed)):
                return False
    return True


def parts_in_training(defense: Defense) -> bool:
    """Returns whether any module that a defense is, or holds in attributes and containers, is in training mode."""
    return any(module.training for module in _modules(defense))


def output_remark(logits: Tensor) -> str | None:
    """Returns what is wrong with the range of outputs (N, K), or None.

    Probabilities sum to the same number. Scores of single classes saturate at 1. Likelihoods are positive over many
    magnitudes. Gradients of losses on such outputs vanish or point to the wrong classes.
    """
    rows = logits[logits.isfinite().all(1)].double()
    if not len(rows):
        return None
    tiny = bool((rows.amax(1) - rows.amin(1)).median() < 1e-6)
    if (rows < 0).any():
        return TINY if tiny else None
    sums = rows.sum(1)
    same_sum = bool(((sums - sums[0]).abs() <= _SAME_SUM * sums[0]).all() and (rows != rows[0]).any())
    probabilities = bool(((sums - 1).abs() <= _SUM_OF_HALF).all())
    saturated = bool((rows <= 1).all() and rows.amax(1).median() > _SATURATED)
    positive = rows.where(rows > 0, torch.nan)
    ratio = float((rows.amax(1) / positive.nanmedian(1).values).nanmedian())
    rectified = bool((rows == 0).any() and (rows[rows > 0] > _UNDERFLOW).all())
    spans_magnitudes = ratio > _MAGNITUDES and not rectified
    return LIKELIHOODS if tiny or same_sum or probabilities or saturated or spans_magnitudes else None


def examined(defense: Defense, dataset: Dataset, device: torch.device) -> tuple[str, ...]:
    """Returns remarks on a defense on ``device``: the reasons to doubt its numbers.

    Raises:
        DefenseFault: when the defense gives an image several answers, its draws repeat, or its logits have the wrong
            shape.
    """
    x = dataset.test.images[:IMAGES].to(device)
    passes = observe(defense, x)
    if passes.together.shape[1] != dataset.classes:
        expected = (len(x), dataset.classes)
        raise DefenseFault(f"its logits have shape {tuple(passes.together.shape)}, expected {expected}")
    remarks = [IN_TRAINING] if not defense.card.randomized and parts_in_training(defense) else []
    why = "".join(f", and {remark}" for remark in remarks)
    changes = passes.change > (0 if device.type == "cpu" else ROUNDING)
    if not defense.card.randomized:
        _refuse(contradictions(passes.together, passes.again, passes.rounding), f"change from pass to pass{why}")
    elif relative_difference(passes.again, passes.redrawn) == 0 and repeats(defense, x):
        raise DefenseFault("it is declared randomized, but its draws repeat with other random streams")
    if changes:
        remarks.append(OTHER_DRAWS if defense.card.randomized else CHANGES)
    if not (changes and defense.card.randomized):
        _refuse(contradictions(passes.together, passes.alone, passes.rounding), f"depend on the rest of the batch{why}")
        if passes.dependence > passes.rounding:
            remarks.append(DEPENDS)
    if isinstance(defense, HasDecision) and not defense.card.randomized and misdecided(defense, x, passes).any():
        remarks.append(CONTRADICTED)
    attacked_by_logits = defense.card.access != "decision"
    if attacked_by_logits and (remark := output_remark(passes.together)) is not None:
        remarks.append(remark)
    return tuple(remarks)


def _refuse(rows: Tensor, fault: str) -> None:
    if rows.any():
        raise DefenseFault(f"its predictions {fault} (on {int(rows.sum())} of {len(rows)} images)")


def _logits(defense: Defense, x: Tensor, seed: int = 0, first: int = 0) -> Tensor:
    """Returns logits (N, K) of images, in batches of at most the card's size."""
    size = defense.card.batch_size
    batches = [(x[i : i + size], first + i) for i in range(0, len(x), size)]
    return torch.cat([drawn_logits(defense, batch, streams(batch, seed, number)) for batch, number in batches])


def _modules(holder: object) -> Iterator[nn.Module]:
    """Yields all modules that an object is, or holds in attributes and containers."""
    seen: dict[int, Any] = {}
    left = [holder]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, nn.Module):
            yield one
            left += one.children()
        if isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
        elif hasattr(one, "__dict__") and type(one).__module__.partition(".")[0] != "torch":
            left += vars(one).values()
