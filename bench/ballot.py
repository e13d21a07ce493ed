"""Forward passes that verdicts are taken on: in the card's batch shape, on draws that belong to an image.

Each draw of a randomized defense is a function of the seed, the purpose, the sample, the image's bytes and the draw's
number. So it does not depend on the images beside it, and an attack that does not know what the judge will see does not
know its draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.door import NO_DRAWS, drawn_logits
from bench.errors import DefenseFault
from bench.protocols import Defense
from bench.randomness import Streams


@dataclass(frozen=True)
class Verdict:
    """What fresh forward passes say of N images.

    Attributes:
        prediction: (N,) int64 the class; of a randomized defense the one that most draws gave, other than the label
            where misclassified.
        misclassified: (N,) bool.
        finite: (N,) bool, whether all logits were finite. An image is never misclassified by those that are not.
        draws: (N,) int64 taken; 0 for a deterministic defense.
        rate: (N,) float64 share of the draws that misclassified, as (k + 1) / (n + 2); NaN for a deterministic defense.
    """

    prediction: Tensor
    misclassified: Tensor
    finite: Tensor
    draws: Tensor
    rate: Tensor


class Ballot:
    """Draws of a randomized defense on images (N, C, H, W) of labels ``y`` (N,), and what they voted for.

    Args:
        defense: the one that draws.
        classes: number of classes.
        images: see above, of the dataset's ``samples``.
        y: see above.
        samples: see above.
        seed: of the draws.
        purpose: tells draws for choosing from draws for deciding and estimating.

    Attributes:
        finite: (N,) whether all logits were finite so far.
    """

    def __init__(
        self,
        defense: Defense,
        classes: int,
        images: Tensor,
        y: Tensor,
        samples: Sequence[int],
        *,
        seed: int,
        purpose: str,
    ) -> None:
        self._defense, self._classes, self._images, self._y = defense, classes, images, y
        self._streams = Streams(seed, _keys(images, samples), purpose, images.device)
        self._votes = torch.zeros(len(images), classes, dtype=torch.int64, device=images.device)
        self.finite = torch.ones(len(images), dtype=torch.bool, device=images.device)

    def __call__(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Which of the draws ``numbers`` (R,) of ``rows`` (R,) misclassify."""
        logits = _logits(self._defense, self._images, self._classes, rows, self._streams, numbers)
        finite, predicted = _predicted(logits)
        self.finite[rows[~finite]] = False
        self._votes.index_put_((rows, predicted), torch.ones_like(rows), accumulate=True)
        return finite & (predicted != self._y[rows])

    @property
    def votes(self) -> Tensor:
        """How many draws (N, classes) int64 gave each class so far."""
        return self._votes

    def prediction(self, misclassified: Tensor) -> Tensor:
        """The class (N,) of most votes, other than the label where an image is ``misclassified`` (N,)."""
        label = torch.nn.functional.one_hot(self._y, self._classes).bool()
        return self._votes.masked_fill(label & misclassified[:, None], -1).argmax(1)


def classify(defense: Defense, x: Tensor, y: Tensor, classes: int) -> Verdict:
    """The verdict on images ``x`` (N, C, H, W) of a deterministic defense, in batches of exactly its card's size.

    Raises:
        DefenseFault: when the logits are not of shape (N, classes).
    """
    finite, predicted = _predicted(logits_of(defense, x, classes))
    unknown = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    return Verdict(predicted, finite & (predicted != y), finite, torch.zeros_like(predicted), unknown)


def logits_of(defense: Defense, x: Tensor, classes: int) -> Tensor:
    """The logits (N, classes) that `classify` goes by."""
    return _logits(defense, x, classes, torch.arange(len(x), device=x.device))


def _predicted(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows (N,) of logits (N, K) are finite, and their classes (N,)."""
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
    """Logits (R, classes) of ``rows`` (R,) of images ``x`` (N, C, H, W), each on the draw of its number (R,).

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
    """Keys of the streams of images (N, C, H, W) of samples, 128 bits each."""
    pixels = images.detach().cpu().contiguous().numpy()
    digests = [
        hashlib.sha256(f"{sample} ".encode() + image.tobytes()) for sample, image in zip(samples, pixels, strict=True)
    ]
    return [int.from_bytes(digest.digest()[:16], "big") for digest in digests]
