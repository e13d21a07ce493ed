"""What classifiers by optimisation in the latent spaces of class-conditional decoders have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from bench.norms import Norm, check_norm
from bench.protocols import LowerBound, VectorJacobian
from bench.randomness import RowStreams, Streams
from defenses.abs import bounds
from defenses.abs.descent import Objective
from defenses.abs.graphs import Replayed
from defenses.abs.search import Inference

RESTARTS = 5
"""Starts of each class's search in the bounds (but for Linf, for each epsilon); the best end counts."""
BOUND_NOTE = f"{RESTARTS} starts for each class"


class LatentClassifier(nn.Module, ABC):
    """Logits are minus the scaled energy of the best latent of each class: -gamma_c E_c / D, D values in an image.

    Subclasses say how inference is made of their weights (`make_inference`) and what it minimises (`objective`).

    Attributes:
        bound_norms: those of its lower bounds.
        bound_caveat: what is to be said of them besides.

    Args:
        pixels: D, values in an image.
        inner_steps: optimisation steps for an image and forward pass, summed over classes.
    """

    bound_norms: tuple[Norm, ...] = ("L2", "Linf")
    bound_caveat = ""

    def __init__(self, pixels: int, inner_steps: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.inner_steps = inner_steps
        self._inference: Inference | None = None
        self._replayed = Replayed(self.infer_rows)

    @abstractmethod
    def make_inference(self) -> Inference:
        """Inference with the present weights, which are copied."""

    @abstractmethod
    def objective(
        self, classes: slice, rows: slice, *, slack: Tensor | None = None, penalised: bool = True
    ) -> Objective:
        """The energy of a latent, for a range of classes and a range of images.

        Only what exceeds ``slack``, (N, 1) of these images, counts of each pixel's error; the energy is the squared
        error alone unless it is ``penalised``.
        """

    def infer(self, seen: Tensor, *rng: RowStreams) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and reconstructions (N, K, C, H, W) under every class of images as the model sees them."""
        self.inference()
        energies, reconstructions = self._replayed(seen, *self.noise(*rng))
        return energies, reconstructions

    def noise(self, *rng: RowStreams) -> tuple[Tensor, ...]:
        """What inference draws, rows (N, ...): nothing, unless the model is randomised."""
        return ()

    def infer_rows(self, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """`infer` with its draws."""
        return self.inference().all_classes(seen, self.objective)

    def seen(self, x: Tensor) -> Tensor:
        """Images as the model sees them, without a derivative."""
        return x.detach()

    def class_scales(self) -> Tensor | float:
        """gamma (K,)."""
        return 1.0

    def logits(self, x: Tensor, *rng: RowStreams) -> Tensor:
        """Logits (N, K) of images (N, C, H, W); autograd sees a constant, see `input_gradient`."""
        energies, _ = self.infer(self.seen(x), *rng)
        return -(self.class_scales() * energies) / self.pixels

    def input_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """Logits (N, K), and their derivative with the optimal latents held fixed:
        d logit_c / dx = -2 gamma_c (x - G_c(z_c)) / D, straight through the binarisation where there is one."""
        seen = self.seen(x)
        energies, reconstructions = self.infer(seen, *rng)
        scale = -self.class_scales() / self.pixels

        def vector_jacobian(cotangent: Tensor) -> Tensor:
            weights = 2 * scale * cotangent
            return weights.sum(1).reshape(-1, 1, 1, 1) * seen - torch.einsum("nk,nkchw->nchw", weights, reconstructions)

        return scale * energies, vector_jacobian

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """G_y(z_y) (N, C, H, W): the best reconstruction of each image (N, C, H, W) under its class in ``y`` (N,)."""
        return self.inference().of_class(self.seen(x), y, self.objective)

    def lower_bound(self, x: Tensor, y: Tensor, norm: Norm, streams: Streams) -> LowerBound:
        """See `bench.protocols.HasLowerBound`; these are the estimates of `defenses.abs.bounds`."""
        check_norm(norm, self.bound_norms)
        seen = self.seen(x)
        energies, errors = self.minima(seen)
        own_energy, own_error, others = at(energies, y), at(errors, y), _others(energies, y)
        if norm == "L2":
            values = bounds.tighter_l2(own_energy, own_error.norm(dim=1), others)
        else:
            own_penalty = own_energy - own_error.square().sum(1)
            values = bounds.linf(own_error, own_penalty, lambda epsilon: self._least_energy(seen, y, epsilon))
        search = "" if norm == "L2" else ", one in the search for epsilon"
        return LowerBound(values, certificate=False, note=f"{BOUND_NOTE}{search}{self.bound_caveat}")

    def published_l2_bound(self, x: Tensor, y: Tensor) -> Tensor:
        """`bounds.published_l2` (N,) of images (N, C, H, W) of classes ``y`` (N,), with d_c minimised for itself."""
        seen = self.seen(x)
        energies, errors = self.minima(seen)
        squares, _ = self.minima(seen, penalised=False)
        return bounds.published_l2(at(energies, y), at(errors, y).norm(dim=1), _others(squares, y).sqrt())

    def minima(self, seen: Tensor, *, penalised: bool = True) -> tuple[Tensor, Tensor]:
        """Least energies (N, K) from `RESTARTS` starts, and the absolute errors |x - G_c(z_c)| there, (N, K, D)."""
        objective = partial(self.objective, penalised=penalised)
        energies, reconstructions = self.inference().minima(seen, objective, RESTARTS)
        return energies, (seen[:, None] - reconstructions).flatten(2).abs()

    def _least_energy(self, seen: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        """The least energy (N,) over the classes other than ``y`` when errors up to ``epsilon`` (N,) cost nothing."""

        def objective(classes: slice, rows: slice) -> Objective:
            return self.objective(classes, rows, slack=epsilon[rows, None])

        return _others(self.inference().minima(seen, objective)[0], y).amin(1)

    def inference(self) -> Inference:
        """Inference, made when it is first needed."""
        if self._inference is None:
            self._inference = self.make_inference()
        return self._inference

    def forget_inference(self) -> None:
        """To be called when weights change: the next inference is made of the new ones."""
        self._inference = None
        self._replayed.forget()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See ``torch.nn.Module``."""
        self.forget_inference()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # Behind ``to``, ``cuda``, ``float`` and the like, of this module or one around it.
        self.forget_inference()
        apply: Callable[..., Self] = super()._apply
        return apply(*args, **kwargs)


def at(values: Tensor, y: Tensor) -> Tensor:
    """The values (N, ...) of the classes ``y`` (N,), of values (N, K, ...)."""
    return values[torch.arange(len(y), device=y.device), y]


def _others(values: Tensor, y: Tensor) -> Tensor:
    """The values (N, K), infinite for the classes ``y`` (N,)."""
    return values.scatter(1, y[:, None], torch.inf)
