"""The meter of an oracle: counts passes per sample, and stops samples at the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.contracts.oracle import BudgetExhausted, CellTimeout, Rows


class Meter:
    """Counts the passes of one chunk's samples.

    Args:
        samples: number of samples n.
        budget: passes per sample, forward and backward, after which its queries are refused.
        batch_size: rows that are evaluated together at most.
        deadline: of the monotonic clock, after which nothing is evaluated; None for none.
        device: of the samples.
        inner_budget: steps per sample of the defense's optimization after which its queries are refused, too; None for
            no limit.
        inner_steps: returns those taken so far (n,).

    Attributes:
        refused: True (n,) for samples of which a query was refused because their budget was used up.
    """

    def __init__(
        self,
        samples: int,
        budget: int,
        batch_size: int,
        deadline: float | None,
        device: torch.device,
        inner_budget: int | None = None,
        inner_steps: Callable[[], Tensor] | None = None,
    ) -> None:
        self.refused = torch.zeros(samples, dtype=torch.bool, device=device)
        self.batch_size = batch_size
        self._samples, self._budget, self._deadline = samples, budget, deadline
        self._inner_budget, self._inner_steps = inner_budget, inner_steps
        self._forwards = torch.zeros(samples, dtype=torch.int64, device=device)
        self._backwards = torch.zeros_like(self._forwards)
        self._shared_forwards = self._shared_backwards = 0

    @property
    def exhausted(self) -> Tensor:
        """True (n,) for samples that have used up their budget."""
        shared = (self._shared_forwards + self._shared_backwards) / max(self._samples, 1)
        spent: Tensor = self._forwards + self._backwards
        exhausted = spent >= self._budget - shared
        if self._inner_budget is None or self._inner_steps is None:
            return exhausted
        return exhausted | (self._inner_steps() >= self._inner_budget)

    @property
    def forwards(self) -> Tensor:
        """Forward passes per sample (n,), float64; passes without ids count in equal shares."""
        return self._forwards.double() + self._shared_forwards / max(self._samples, 1)

    @property
    def backwards(self) -> Tensor:
        """Backward passes per sample (n,), float64, counted like `forwards`."""
        return self._backwards.double() + self._shared_backwards / max(self._samples, 1)

    @property
    def hides_samples(self) -> bool:
        """Whether some passes were made without ids."""
        return self._shared_forwards > 0

    def affordable(self, ids: Tensor) -> Tensor:
        """True (N,) for rows whose sample still has budget; marks the other samples as refused."""
        spent = self.exhausted[ids]
        self.refused[ids[spent]] = True
        return ~spent

    def admit(self, ids: Tensor) -> Sequence[Rows]:
        """Returns the rows that may still be evaluated, in batches; as slices, which copy nothing, if all may.

        Raises:
            BudgetExhausted: when none may.
            CellTimeout: after the deadline.
        """
        self.check_deadline()
        refused = self.exhausted[ids]
        if not refused.any():
            return [slice(start, start + self.batch_size) for start in range(0, len(ids), self.batch_size)]
        self.refused[ids[refused]] = True
        rows = (~refused).nonzero()[:, 0]
        if len(ids) and not len(rows):
            raise BudgetExhausted
        return [batch for batch in torch.split(rows, self.batch_size) if len(batch)]

    def check_deadline(self) -> None:
        """Raises `CellTimeout` after the deadline."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise CellTimeout

    def pay(self, ids: Tensor, forwards: int = 0, backwards: int = 0) -> None:
        """Counts passes for each row of the samples ``ids`` (N,)."""
        rows = torch.bincount(ids, minlength=self._samples)
        self._forwards.add_(rows, alpha=forwards)
        if backwards:
            self._backwards.add_(rows, alpha=backwards)

    def pay_together(self, forwards: int = 0, backwards: int = 0) -> None:
        """Counts passes that were made without ids."""
        self._shared_forwards += forwards
        self._shared_backwards += backwards
