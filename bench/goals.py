"""Goals: which answers of a defense an attack is after. The oracle remembers the images that reach its goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.confidence import CONFIDENT, Calibration


class Goal(Protocol):
    """Says of each answer whether it reaches the goal."""

    @property
    def from_start(self) -> bool:
        """Whether the image that a sample starts from may reach the goal, too."""

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """Returns which answers (N,) reach it; ``answers`` are classes (N,) or logits (N, K), of samples of the classes
        ``y`` (N,)."""

    def refusal(self, y: Tensor, classes: int) -> Tensor:
        """Returns logits (N, classes) that do not reach it, for samples of the classes ``y`` (N,)."""


@dataclass(frozen=True)
class Misclassified:
    """Any class but the sample's own.

    Attributes:
        from_start: see `Goal`; True where clean mistakes are attacked, too.
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
    """The sample's own class with a confidence of at least `CONFIDENT`, from whatever image it starts.

    Attributes:
        calibration: of the confidence.
    """

    calibration: Calibration
    from_start: bool = True

    def confidence(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns the confidence (N,) float64 in the classes ``y`` (N,) that logits (N, K) stand for."""
        return self.calibration.confidence(logits).gather(1, y[:, None])[:, 0]

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """See `Goal`. A class alone says nothing of confidence."""
        return torch.zeros_like(y, dtype=torch.bool) if answers.dim() == 1 else self.confidence(answers, y) >= CONFIDENT

    def refusal(self, y: Tensor, classes: int) -> Tensor:
        """See `Goal`."""
        return F.one_hot(y, classes).float() * -torch.finfo(torch.float32).max
