"""The terms of an attack: what it is allowed, and what an adversary has besides the defense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bench.contracts.cards import Access
from bench.contracts.oracle import AttackFunction
from bench.contracts.threat import ThreatModel


@dataclass(frozen=True)
class Terms:
    """What an attack is allowed.

    Attributes:
        access: what the attack may ask for.
        threat: the threat model under attack.
        budget: passes per sample, forward and backward, after which queries are refused.
        batch_size: rows that are evaluated together at most.
        inner_budget: steps per sample of the defense's optimization after which queries are refused; None for no limit.
        deadline: of the monotonic clock, after which `CellTimeout` is raised; None for none.
        warm: whether a defense that can (`bench.contracts.protocols.HasWarmAnswers`) answers from earlier queries.
    """

    access: Access
    threat: ThreatModel
    budget: int
    batch_size: int
    inner_budget: int | None = None
    deadline: float | None = None
    warm: bool = False


@dataclass(frozen=True)
class Resources:
    """What an adversary has besides the defense under attack.

    Attributes:
        pool: clean training images (P, C, H, W) and their labels (P,), the same for every chunk; None for none.
        transferred: maps a gradient attack to what it proposes on the substitute; None where there is no substitute.
        starts: adversarial examples (n, C, H, W) of other attacks, and True (n,) where there is one; None for none.
    """

    pool: tuple[Tensor, Tensor] | None = None
    transferred: Callable[[AttackFunction], Tensor] | None = None
    starts: tuple[Tensor, Tensor] | None = None


NOTHING = Resources()
"""No resources."""
