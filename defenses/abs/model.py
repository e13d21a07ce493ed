"""The base class of classifiers by optimization in the latent spaces of class-conditional decoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from bench.contracts.cards import DefenseCard
from bench.contracts.norms import NormName, check_norm
from bench.contracts.protocols import LowerBound, VectorJacobian
from bench.contracts.streams import RowStreams, Streams
from defenses.abs import bounds
from defenses.abs.built import TORCH, Kernel, kernels
from defenses.abs.descent import Objective
from defenses.abs.graphs import Replayed
from defenses.abs.search import Inference

RESTARTS = 5
"""Restarts per class for the bounds, of which the best end counts. The Linf search for epsilon has a single start."""
BOUND_NOTE = f"{RESTARTS} starts for each class"


class LatentClassifier(nn.Module, ABC):
    """A classifier whose logits -gamma_c E_c / D are minus the scaled energy of the best latent of each class.

    Subclasses build inference from their weights (`make_inference`) and define what it minimizes (`objective`).

    Attributes:
        bound_norms: norms in which it has lower bounds.
        bound_caveat: further text for the note of a lower bound.

    Args:
        pixels: number D of values in an image.
        inner_steps: optimization steps per image and forward pass, summed over classes.
    """

    card: DefenseCard
    bound_norms: tuple[NormName, ...] = ("L2", "Linf")
    bound_caveat = ""

    def __init__(self, pixels: int, inner_steps: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.inner_steps = inner_steps
        self._inference: Inference | None = None
        self._replayed = Replayed(self.infer_rows)

    @abstractmethod
    def make_inference(self) -> Inference:
        """Builds inference from a copy of the current weights."""

    @abstractmethod
    def objective(
        self, classes: slice, rows: slice, *, slack: Tensor | None = None, penalized: bool = True
    ) -> Objective:
        """Returns the energy of a latent as an objective, for a range of classes and a range of images.

        Each pixel's error counts only where it exceeds ``slack`` (N, 1). Without ``penalized``, the energy is only the
        squared error.
        """

    def infer(self, seen: Tensor, *rng: RowStreams) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and reconstructions (N, K, C, H, W) under every class, for images as the model sees them."""
        self.inference()
        energies, reconstructions = self._replayed(seen, *self.noise(*rng))
        return energies, reconstructions

    def noise(self, *rng: RowStreams) -> tuple[Tensor, ...]:
        """Draws for inference, tensors with rows (N, ...). Empty unless the model is randomized."""
        return ()

    def infer_rows(self, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """Computes `infer` with given draws."""
        return self.inference().all_classes(seen, self.objective)

    def seen(self, x: Tensor) -> Tensor:
        """Images as the model sees them, without a derivative."""
        return x.detach()

    def class_scales(self) -> Tensor | float:
        """Class scalars gamma (K,), or one number for all classes."""
        return 1.0

    def logits(self, x: Tensor, *rng: RowStreams) -> Tensor:
        """Logits (N, K) of images (N, C, H, W), constant for autograd (see `input_gradient`)."""
        energies, _ = self.infer(self.seen(x), *rng)
        return self.logits_of(energies)

    def logits_of(self, energies: Tensor) -> Tensor:
        """Returns the logits -gamma_c E_c / D (N, K) of energies (N, K)."""
        return -(self.class_scales() * energies) / self.pixels

    def input_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """Logits (N, K), and their derivative d logit_c / dx = -2 gamma_c (x - G_c(z_c)) / D.

        The derivative holds the optimal latents fixed and goes straight through binarization.
        """
        seen = self.seen(x)
        return self.linearized(seen, *self.infer(seen, *rng))

    def linearized(self, seen: Tensor, energies: Tensor, reconstructions: Tensor) -> tuple[Tensor, VectorJacobian]:
        """Returns what `input_gradient` does, given what inference found about images as the model sees them."""
        scale = -self.class_scales() / self.pixels

        def vector_jacobian(cotangent: Tensor) -> Tensor:
            weights = 2 * scale * cotangent
            return weights.sum(1).reshape(-1, 1, 1, 1) * seen - torch.einsum("nk,nkchw->nchw", weights, reconstructions)

        return self.logits_of(energies), vector_jacobian

    def unrolled_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """Logits (N, K), and their exact derivative, which goes straight through binarization.

        See `bench.contracts.protocols.HasUnrolledGradient`.
        """
        energies, derivatives = self.unrolled_rows(self.seen(x), *self.noise(*rng))
        scale = -self.class_scales() / self.pixels

        def vector_jacobian(cotangent: Tensor) -> Tensor:
            return torch.einsum("nk,nkchw->nchw", scale * cotangent, derivatives)

        return self.logits_of(energies), vector_jacobian

    def unrolled_rows(self, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N, K) as in `infer_rows`, and their derivatives (N, K, C, H, W) in the images ``seen``."""
        return self.inference().unrolled(seen, self.objective)

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """G_y(z_y) (N, C, H, W): the best reconstruction of each image (N, C, H, W) under its class in ``y`` (N,)."""
        return self.inference().of_class(self.seen(x), y, self.objective)

    def lower_bound(self, x: Tensor, y: Tensor, norm: NormName, streams: Streams) -> LowerBound:
        """See `bench.contracts.protocols.HasLowerBound`. Returns the estimates of `defenses.abs.bounds`."""
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
        """`bounds.published_l2` (N,) of images (N, C, H, W) of classes ``y`` (N,). A separate search minimizes d_c."""
        seen = self.seen(x)
        energies, errors = self.minima(seen)
        squares, _ = self.minima(seen, penalized=False)
        return bounds.published_l2(at(energies, y), at(errors, y).norm(dim=1), _others(squares, y).sqrt())

    def minima(self, seen: Tensor, *, penalized: bool = True) -> tuple[Tensor, Tensor]:
        """Least energies (N, K) over `RESTARTS` starts, and the absolute errors |x - G_c(z_c)| there, (N, K, D)."""
        objective = partial(self.objective, penalized=penalized)
        energies, reconstructions = self.inference().minima(seen, objective, RESTARTS)
        return energies, (seen[:, None] - reconstructions).flatten(2).abs()

    def _least_energy(self, seen: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        """Least energy (N,) over classes other than ``y`` (N,), if pixel errors up to ``epsilon`` (N,) are free."""

        def objective(classes: slice, rows: slice) -> Objective:
            return self.objective(classes, rows, slack=epsilon[rows, None])

        return _others(self.inference().minima(seen, objective)[0], y).amin(1)

    def inference(self) -> Inference:
        """Returns the inference, built on first use."""
        if self._inference is None:
            self._inference = self.make_inference()
        return self._inference

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    def kernel(self) -> Kernel | None:
        """Returns the compiled kernel that may run descents; None where torch does.

        Torch does on a GPU, and with weights that are not finite: the kernel's exponential would hide a NaN.
        """
        finite = all(torch.isfinite(tensor).all() for tensor in chain(self.parameters(), self.buffers()))
        return next(iter(kernels()), None) if self.device.type == "cpu" and finite else None

    @property
    def arithmetic(self) -> str:
        """See `bench.contracts.protocols.HasArithmetic`."""
        compiled = self.inference().compiled
        return TORCH if compiled is None else f"kernel {compiled.kernel.instructions}"

    def __getstate__(self) -> dict[str, Any]:
        # Inference is built anew from the weights: the kernel's library is of this process.
        return {**self.__dict__, "_inference": None}

    def forget_inference(self) -> None:
        """Drops the inference. To be called when weights change. The next inference is built from the new weights."""
        self._inference = None
        self._replayed.forget()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See ``torch.nn.Module``."""
        self.forget_inference()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # ``to``, ``cuda``, ``float`` and the like, of this module or of a module around it, end up here.
        self.forget_inference()
        apply: Callable[..., Self] = super()._apply
        return apply(*args, **kwargs)


def at(values: Tensor, y: Tensor) -> Tensor:
    """Returns the entries (N, ...) of ``values`` (N, K, ...) at the classes ``y`` (N,)."""
    return values[torch.arange(len(y), device=y.device), y]


def _others(values: Tensor, y: Tensor) -> Tensor:
    """Returns the values (N, K), set to infinity at the classes ``y`` (N,)."""
    return values.scatter(1, y[:, None], torch.inf)
