"""Lanes: what a defense remembers for warm answers, apart for each restart or repetition of an attack."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.protocols import Defense, HasWarmAnswers, WarmAnswers

WEIGHED = 2
"""Number of classes that a loss weighs most and that stay in contention: the sample's own and the target."""


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
        # The classes that the loss of the last gradient weighed most: a targeted one keeps its target.
        self._weighed: Tensor | None = None
        self._weighing: list[tuple[Tensor, Tensor]] = []

    @property
    def evaluations(self) -> Tensor:
        """Evaluations (n,) float64 per sample so far, in all lanes."""
        taken = torch.zeros_like(self.passes, dtype=torch.float64)
        for memory in self._memories.values():
            taken += memory.evaluations
        return taken

    def at(self, ids: Tensor, wanted: Tensor, passes: int) -> Defense:
        """Returns what answers about the samples ``ids`` (N,) in ``passes`` passes (`WarmAnswers.at`)."""
        self.passes += torch.bincount(ids, minlength=len(self.passes)) * passes
        if self.current not in self._memories:
            self._memories[self.current] = self._defense.warm_answers(len(self.passes))
        if self._weighed is not None:
            wanted = torch.cat([wanted, self._weighed[ids]], 1)
        return self._memories[self.current].at(ids, wanted)

    def weigh(self, ids: Tensor, cotangent: Tensor) -> None:
        """Notes the cotangents (N, K) of a loss on the logits, for the queries that follow."""
        self._weighing.append((ids, cotangent.abs().topk(min(WEIGHED, cotangent.shape[1])).indices))

    def settle(self) -> None:
        """Ends a query."""
        if self.current in self._memories:
            self._memories[self.current].settle()
        for ids, classes in self._weighing:
            if self._weighed is None:
                self._weighed = classes.new_zeros(len(self.passes), classes.shape[1])
            for column in range(classes.shape[1]):
                self._weighed[:, column].scatter_(0, ids, classes[:, column])
        self._weighing.clear()

    def forget(self, ids: Tensor) -> None:
        """Makes the next answers about samples exact, in the current lane."""
        if self.current in self._memories:
            self._memories[self.current].forget(ids)
