"""What classifiers by optimisation in the latent spaces of class-conditional decoders have in common."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from bench.protocols import VectorJacobian
from bench.randomness import RowStreams
from defenses.abs.descent import Inference, Objective


class LatentClassifier(nn.Module):
    """Logits are minus the scaled energy of the best latent of each class: -gamma_c E_c / D, D values in an image.

    Subclasses say how inference is made of their weights (`make_inference`) and what it minimises (`objective`).

    Args:
        pixels: D, values in an image.
        inner_steps: optimisation steps for an image and forward pass, summed over classes.
    """

    def __init__(self, pixels: int, inner_steps: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.inner_steps = inner_steps
        self._inference: Inference | None = None

    def make_inference(self) -> Inference:
        """Inference with the present weights, which are copied."""
        raise NotImplementedError

    def objective(self, classes: slice, rows: slice) -> Objective:
        """The energy of a latent, for a range of classes and a range of images."""
        raise NotImplementedError

    def infer(self, seen: Tensor, *rng: RowStreams) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and reconstructions (N, K, C, H, W) under every class of images as the model sees them."""
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

    def inference(self) -> Inference:
        """Inference, made when it is first needed."""
        if self._inference is None:
            self._inference = self.make_inference()
        return self._inference

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See ``torch.nn.Module``."""
        self._inference = None
        return super().load_state_dict(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """See ``torch.nn.Module``."""
        self._inference = None
        return super().to(*args, **kwargs)
