"""The forward passes that verdicts rest on: in the card's batch shape, on draws that belong to an image.

Each draw of a randomized defense is a function of the seed, the purpose, the sample, the image's bytes and the draw's
number. So a draw does not depend on the other images in the batch. Only an attack that knows the judge's images can
know the judge's draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.chunk import Chunk
from bench.contracts.door import NO_DRAWS, drawn_logits
from bench.contracts.errors import DefenseFault
from bench.contracts.protocols import Defense
from bench.contracts.streams import Streams


@dataclass(frozen=True)
class Verdict:
    """The verdict of fresh forward passes on N images.

    Attributes:
        prediction: (N,) int64 class. For a randomized defense, the class of most draws; where misclassified, the label
            is excluded.
        misclassified: (N,) bool.
        finite: (N,) bool, whether all logits were finite. Logits that are not finite never misclassify an image.
        draws: (N,) int64 number of draws taken; 0 for a deterministic defense.
        rate: (N,) float64 share of the n draws, k of which misclassified, as (k + 1) / (n + 2); NaN for a deterministic
            defense.
    """

    prediction: Tensor
    misclassified: Tensor
    finite: Tensor
    draws: Tensor
    rate: Tensor


class Ballot:
    """A ballot: draws of a randomized defense on the N images of a chunk, and their votes.

    Args:
        defense: the randomized defense.
        chunk: the images, with their labels and samples.
        seed: seed of the draws.
        purpose: separates draws for choosing from draws for deciding and estimating.

    Attributes:
        finite: (N,) bool, whether all logits were finite so far.
    """

    def __init__(self, defense: Defense, chunk: Chunk, *, seed: int, purpose: str) -> None:
        self._defense, self._chunk = defense, chunk
        self._streams = Streams(seed, _keys(chunk.images, chunk.samples), purpose, chunk.device)
        self._votes = torch.zeros(len(chunk), chunk.classes, dtype=torch.int64, device=chunk.device)
        self.finite = torch.ones(len(chunk), dtype=torch.bool, device=chunk.device)

    def __call__(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Returns which of the draws ``numbers`` (R,) of ``rows`` (R,) misclassify."""
        logits = _logits(self._defense, self._chunk.images, self._chunk.classes, rows, self._streams, numbers)
        finite, predicted = _predicted(logits)
        self.finite[rows[~finite]] = False
        self._votes.index_put_((rows, predicted), torch.ones_like(rows), accumulate=True)
        return finite & (predicted != self._chunk.labels[rows])

    @property
    def votes(self) -> Tensor:
        """The number of draws (N, classes) int64 that gave each class so far."""
        return self._votes

    def prediction(self, misclassified: Tensor) -> Tensor:
        """Returns the class (N,) of most votes. The label is excluded where an image is ``misclassified`` (N,)."""
        label = torch.nn.functional.one_hot(self._chunk.labels, self._chunk.classes).bool()
        return self._votes.masked_fill(label & misclassified[:, None], -1).argmax(1)


def classify(defense: Defense, x: Tensor, y: Tensor, classes: int) -> Verdict:
    """Returns a deterministic defense's verdict on images ``x`` (N, C, H, W), in batches of exactly its card's size.

    Raises:
        DefenseFault: when the logits are not of shape (N, classes).
    """
    finite, predicted = _predicted(logits_of(defense, x, classes))
    unknown = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    return Verdict(predicted, finite & (predicted != y), finite, torch.zeros_like(predicted), unknown)


def logits_of(defense: Defense, x: Tensor, classes: int) -> Tensor:
    """Returns the logits (N, classes) that `classify` uses."""
    return _logits(defense, x, classes, torch.arange(len(x), device=x.device))


def _predicted(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which rows (N,) of logits (N, K) are finite, and the class (N,) of each row."""
    return torch.isfinite(logits).all(1), logits.argmax(1)


@torch.no_grad()
def _logits(
    defense: Defense,
    x: Tensor,
    classes: int,
    rows: Tensor,
    streams: Streams | None = None,
    numbers: Tensor | None = None,
) -> Tensor:
    """Returns logits (R, classes) of ``rows`` (R,) of images ``x`` (N, C, H, W), each on its draw of ``numbers`` (R,).

    Batches are filled up with the last row, since float arithmetic depends on the batch shape.
    """
    size, parts = defense.card.batch_size, []
    for start in range(0, len(rows), size):
        used = rows[start : start + size]
        padded = torch.cat([used, used[-1:].expand(size - len(used))])
        rng = NO_DRAWS
        if streams is not None and numbers is not None:
            own = numbers[start : start + size]
            rng = streams.passes(padded, torch.cat([own, own[-1:].expand(size - len(own))]))
        logits = drawn_logits(defense, x[padded], rng)
        if logits.shape != (size, classes):
            raise DefenseFault(f"logits have shape {tuple(logits.shape)}, expected {(size, classes)}")
        parts.append(logits[: len(used)])
    return torch.cat(parts) if parts else torch.zeros(0, classes, device=x.device)


def _keys(images: Tensor, samples: Sequence[int]) -> list[int]:
    """Returns the 128-bit stream keys of images (N, C, H, W) of ``samples``."""
    pixels = images.detach().cpu().contiguous().numpy()
    digests = [
        hashlib.sha256(f"{sample} ".encode() + image.tobytes()) for sample, image in zip(samples, pixels, strict=True)
    ]
    return [int.from_bytes(digest.digest()[:16], "big") for digest in digests]
