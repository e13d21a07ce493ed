"""Lanes: what a defense remembers for warm answers, apart for each restart or repetition of an attack."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.protocols import Defense, HasWarmAnswers, WarmAnswers


class Lanes:
    """The memories of one attack on n samples.

    Rows of one sample and lane in one query start from what was remembered before the query. Afterwards the last row is
    remembered. So answers do not depend on the other samples, nor on how a query is cut into batches.

    Args:
        defense: the defense.
        samples: number of samples n.
        device: of the samples.

    Attributes:
        current: the lane of the next queries. The attack may change it.
        passes: warm forward passes (n,) int64 per sample so far.
    """

    def __init__(self, defense: HasWarmAnswers, samples: int, device: torch.device) -> None:
        self.current = 0
        self.passes = torch.zeros(samples, dtype=torch.int64, device=device)
        self._defense, self._memories = defense, dict[int, WarmAnswers]()

    @property
    def evaluations(self) -> Tensor:
        """Evaluations (n,) float64 per sample so far, in all lanes."""
        taken = self.passes.double() * 0
        for memory in self._memories.values():
            taken += memory.evaluations
        return taken

    def at(self, ids: Tensor, wanted: Tensor, passes: int) -> Defense:
        """Returns what answers about the samples ``ids`` (N,) in ``passes`` passes (`WarmAnswers.at`)."""
        self.passes += torch.bincount(ids, minlength=len(self.passes)) * passes
        if self.current not in self._memories:
            self._memories[self.current] = self._defense.warm(len(self.passes))
        return self._memories[self.current].at(ids, wanted)

    def settle(self) -> None:
        """Ends a query."""
        if self.current in self._memories:
            self._memories[self.current].settle()

    def forget(self, ids: Tensor) -> None:
        """Makes the next answers about samples exact, in the current lane."""
        if self.current in self._memories:
            self._memories[self.current].forget(ids)
