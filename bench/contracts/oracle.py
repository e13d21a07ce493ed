"""The oracle as attacks see it: its queries, their exceptions, and the types of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from bench.contracts.streams import Streams
from bench.contracts.threat import ThreatModel

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, K) and labels (N,) to one loss per row (N,); differentiable by torch.

The labels are the rows of what a query hands in as ``y``. They may be several per row, such as a label and a target."""


AttackFunction = Callable[..., Tensor]
"""``attack(oracle, x, y, **parameters)`` proposes candidates of the shape of ``x``, or (M, *x.shape)."""
Rows = Tensor | slice
"""Rows of a query: indices, or a slice where they are consecutive."""
DRAWS = 16
"""Default number of EOT samples: the draws over which a randomized defense's answers are averaged."""


class AccessDenied(Exception):
    """The attack made a query that its card does not declare."""


class BudgetExhausted(Exception):
    """Every sample of a query has used up its budget. The engine keeps the results found so far."""


class CellTimeout(Exception):
    """The cell ran out of wall-clock time."""


class DecisionOracle(Protocol):
    """The part of `Oracle` that line searches use.

    Attributes:
        ids: the chunk's sample ids, 0 ... n-1, int64. Every query states which samples its rows belong to. A sample may
            have any number of rows in a query.
    """

    ids: Tensor

    def decision(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns the predicted classes (N,) of images ``x`` (N, C, H, W); the true ones for samples without budget."""

    def adversarial(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns which images ``x`` (N, C, H, W) are adversarial by one decision each; no sample without budget is."""

    def reached(self, answers: Tensor, ids: Tensor) -> Tensor:
        """Returns which answers (N,) reach the threat model's goal. ``answers`` are classes (N,) or logits (N, K)."""

    def working(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """Returns those of ``rows`` (N,) whose sample has budget left, and marks the other samples as refused.

        The rows are samples, or places in ``ids``. A loop shrinks its working set with it and ends when none is left.
        Otherwise a query about spent samples alone would raise `BudgetExhausted`, and the samples that wait for the
        next phase would miss it.
        """


class GradientOracle(DecisionOracle, Protocol):
    """The part of `Oracle` that gradient attacks use. Gradients may be estimates.

    Attributes:
        threat: the threat model under attack.
        random: one random stream per sample; every draw takes sample ids.
        classes: number of classes.
        lane: number of the restart or repetition that the next queries belong to. A defense that answers from earlier
            queries (`bench.contracts.protocols.HasWarmAnswers`) remembers each lane apart. The attack may change it.
        starts: adversarial examples (n, C, H, W) that other attacks found, the nearest of each sample, and True (n,)
            where there is one. A matrix names these attacks in ``start``.
    """

    threat: ThreatModel
    random: Streams
    classes: int
    lane: int
    starts: tuple[Tensor, Tensor]

    def scores(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns the logits (N, K) of images ``x`` (N, C, H, W)."""

    def gradient(self, x: Tensor, y: Tensor, loss: Loss, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient (N, C, H, W) of the rows' losses with respect to ``x``, and the logits (N, K).

        For a randomized defense, the logits are averages over draws, and the gradient is that of the averages' loss.
        Where further draws refute that ``x`` is adversarial, the true class's logit is raised to the highest.
        """

    def jacobian(self, x: Tensor, classes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the Jacobian (N, M, C, H, W) of the logits of ``classes`` (N, M) in ``x``, and all logits (N, K)."""

    def closest(self, fallback: Tensor) -> Tensor:
        """Returns the closest adversarial example (n, C, H, W) of each sample among all queries so far.

        With a bounded threat model, only images in the ball count. A sample without an adversarial example gets its row
        of ``fallback`` (n, C, H, W). Most attacks return this result.
        """

    @property
    def found(self) -> Tensor:
        """Whether each sample (n,) has an adversarial example among its queries, in the ball if there is one."""

    @property
    def closest_distance(self) -> Tensor:
        """Distance (n,) float64 of the closest adversarial example in the threat model's norm; infinity without one."""


class Oracle(GradientOracle, Protocol):
    """Answers an attack's queries about one chunk of correctly classified samples.

    An attack sees nothing else of a defense. Queries that the attack's card does not declare raise `AccessDenied`.

    Attributes:
        pool: clean training images (P, C, H, W) and their labels (P,), the same for every chunk. The adversary is
            assumed to have them. May be empty.
        draws: number of EOT samples (expectation over transformation): the draws over which a randomized defense's
            answers are averaged. The attack may change it.
        remarks: the attack's remarks on the defense, such as a library's warnings. The ledger keeps them.
    """

    pool: tuple[Tensor, Tensor]
    draws: int
    remarks: list[str]

    def reconstruct(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """Returns the defense's reconstructions (N, C, H, W) of ``x`` under the classes ``y``.

        A defense with an autoencoder that knows no classes ignores ``y``.
        """

    def transferred(self, attack: AttackFunction) -> Tensor:
        """Returns the candidates (n, C, H, W) of a gradient attack with default parameters on the substitute."""

    def as_module(self) -> nn.Module:
        """Returns the defense as a module from images (N, C, H, W) to logits (N, K), for libraries.

        Its rows carry no ids: each counts as an equal share of the chunk's totals, the budget stops the whole chunk,
        and nothing is remembered as closest.
        """
