"""Audits the gradients that attacks get: how many lead nowhere."""

from __future__ import annotations

import torch
from torch import Tensor


class GradientAudit:
    """Counts the derivatives asked of one chunk's n samples, and those that are all zero or not finite.

    A loss that is flat in the logits counts where the image is still classified correctly, since the loss is saturated.
    It does not count beyond the boundary, where a hinge is flat. Queries from libraries carry no labels. A flat loss of
    theirs never counts.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self._samples = samples
        self._asked = torch.zeros(samples, dtype=torch.int64, device=device)
        self._useless = torch.zeros_like(self._asked)
        self._shared_asked = self._shared_useless = 0

    @property
    def useless(self) -> Tensor:
        """Share (n,) float64 of the derivatives asked of each sample that were useless; NaN where none was asked."""
        asked = self._asked.double() + self._shared_asked / max(self._samples, 1)
        return (self._useless.double() + self._shared_useless / max(self._samples, 1)) / asked

    def observe(self, cotangents: Tensor, products: Tensor, correct: Tensor, ids: Tensor) -> None:
        """Counts products (N, C, H, W) of the Jacobian with cotangents (N, K), of the samples ``ids`` (N,).

        ``correct`` (N,) says which images are still classified correctly.
        """
        asked, useless = _useless(cotangents, products, correct)
        self._asked.index_add_(0, ids, asked.long())
        self._useless.index_add_(0, ids, useless.long())

    def observe_together(self, cotangents: Tensor, products: Tensor) -> None:
        """Counts products that a library asked for, without ids."""
        asked, useless = _useless(cotangents, products, torch.zeros_like(cotangents[:, 0], dtype=torch.bool))
        self._shared_asked += int(asked.sum())
        self._shared_useless += int(useless.sum())


def _useless(cotangents: Tensor, products: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which rows (N,) ask for a derivative, and which of these get one that is all zero or not finite."""
    asked = (cotangents != 0).any(1) | correct
    size = products.flatten(1).abs().amax(1)
    return asked, asked & ~((size > 0) & torch.isfinite(size))
