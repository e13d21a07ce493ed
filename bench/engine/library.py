"""The bridge to attack libraries: a defense as a ``torch.nn.Module`` whose queries an oracle answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.contracts.oracle import AccessDenied
from bench.contracts.protocols import VectorJacobian

Query = Callable[[Tensor, bool], tuple[Tensor, VectorJacobian | None]]
"""Maps images (N, C, H, W), and whether derivatives are wanted, to logits (N, K) and their vector-Jacobian product;
None instead of the product where derivatives are not granted."""


class OracleModule(nn.Module):
    """Maps images (N, C, H, W) to logits (N, K) by a `Query`."""

    def __init__(self, query: Query) -> None:
        super().__init__()
        self._query = query

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, differentiable in ``x`` where derivatives are granted."""
        return cast(Tensor, _Query.apply(x, self._query, torch.is_grad_enabled() and x.requires_grad))


class _Query(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, query: Query, differentiated: bool) -> Tensor:
        logits, ctx.vector_jacobian = query(x.detach(), differentiated)
        return logits

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        if ctx.vector_jacobian is None:
            raise AccessDenied("the library asked for a gradient that the card does not declare")
        return ctx.vector_jacobian(cotangents[0]), None, None
