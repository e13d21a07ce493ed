"""Goals: the answers that an attack wants from a defense. The oracle remembers the images that reach its goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.contracts.confidence import CONFIDENT, Calibration


class Goal(Protocol):
    """Decides for each answer whether it reaches the goal."""

    @property
    def from_start(self) -> bool:
        """Whether a sample's starting image also counts when it reaches the goal."""

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """Returns which answers (N,) reach the goal.

        ``answers`` are classes (N,) or logits (N, K). ``y`` (N,) are the samples' own classes.
        """

    def refusal(self, y: Tensor, classes: int) -> Tensor:
        """Returns logits (N, classes) that miss the goal, for samples of the classes ``y`` (N,)."""


@dataclass(frozen=True)
class Misclassified:
    """The goal of any class other than the sample's own.

    Attributes:
        from_start: see `Goal`; true if samples that are misclassified as they are, are attacked too.
    """

    from_start: bool = False

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """See `Goal`."""
        return (answers if answers.dim() == 1 else answers.argmax(1)) != y

    def refusal(self, y: Tensor, classes: int) -> Tensor:
        """See `Goal`."""
        return F.one_hot(y, classes).float()


MISCLASSIFIED, MISCLASSIFIED_FROM_START = Misclassified(), Misclassified(from_start=True)


@dataclass(frozen=True)
class Confident:
    """The goal of the sample's own class with a confidence of at least `CONFIDENT`, from any starting image.

    Attributes:
        calibration: calibration of the confidence.
    """

    calibration: Calibration
    from_start: bool = True

    def confidence(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns the confidence (N,) float64 in the classes ``y`` (N,), given logits (N, K)."""
        return self.calibration.confidence(logits).gather(1, y[:, None])[:, 0]

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """See `Goal`. Classes alone carry no confidence and never reach it."""
        return torch.zeros_like(y, dtype=torch.bool) if answers.dim() == 1 else self.confidence(answers, y) >= CONFIDENT

    def refusal(self, y: Tensor, classes: int) -> Tensor:
        """See `Goal`."""
        return F.one_hot(y, classes).float() * -torch.finfo(torch.float32).max
