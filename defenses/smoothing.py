"""Classifiers smoothed with Gaussian noise, around any deterministic defense that torch can differentiate.

``randomized_smoothing:<defense>`` (Cohen, Rosenfeld & Kolter 2019) adds noise to the image. The engine's majority vote
over draws is the smoothed classifier. ``variational_smoothing:<defense>`` (Ju 2021, chapter 4) finds, for each class, a
perturbation that makes the class likely, and adds noise to the perturbed image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import beta
from scipy.stats import norm as norm_distribution
from torch import Tensor
from torch.nn import functional as F

from bench import defense
from bench.contracts.ascent import ascend
from bench.contracts.cards import CardOf, DefenseCard, defense_family
from bench.contracts.door import NO_DRAWS, differentiated, drawn_logits
from bench.contracts.errors import UserError
from bench.contracts.norms import Norm, NormName, check_norm, of_norm
from bench.contracts.norms.l2 import L2
from bench.contracts.norms.linf import Linf
from bench.contracts.protocols import Defense, HasInputGradient, LowerBound, VectorJacobian
from bench.contracts.streams import RowStreams, Streams
from bench.datasets.dataset import Dataset
from defenses.cnn import NOISE

RADII = {"digits": 0.1 / 4, "mnist": 0.3 / 4, "fashion_mnist": 0.1 / 4}
"""Radius of variational smoothing's Linf ball: a quarter of the epsilon at which the dataset's defenses are attacked.
Section 4.3 takes the attack's ball. For nets trained with noise its radius is 2/255, a quarter of the usual one. With
the whole ball, the search finds each class near many MNIST images, and accuracy falls from 99.1 % to 84.6 %."""
COLOUR_RADIUS = 2 / 255
CERTIFYING_DRAWS = 1000
MISTAKE = 0.001
"""Probability that a certified radius is too large: alpha in Cohen et al., who take 100,000 draws."""
STEP = 1.25
"""Step size of the search, in radii: the value of Wong, Rice & Kolter 2020 for a single step from a random start."""


class Smoothed:
    """A defense around a base defense, without tensors of its own."""

    def __init__(self, base: Defense) -> None:
        self.base = base

    def to(self, device: torch.device | str) -> Smoothed:
        """Moves the base to a device, in place."""
        self.base.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The base's tensors."""
        state: dict[str, Any] = getattr(self.base, "state_dict", dict)()
        return state


class RandomizedSmoothing(Smoothed):
    """f(x + noise), noise ~ N(0, ``sigma``^2 I) (Cohen et al. 2019, equation 1)."""

    bound_norms: tuple[NormName, ...] = ("L2",)

    def __init__(self, base: Defense, *, sigma: float = NOISE) -> None:
        super().__init__(base)
        _check_least("sigma", sigma, 0)
        self.sigma = sigma

    def logits(self, x: Tensor, rng: RowStreams) -> Tensor:
        """Logits (N, K) of the base for one noisy draw of each image (N, C, H, W)."""
        return drawn_logits(self.base, x + self.sigma * rng.normal(x.shape[1:]), NO_DRAWS)

    @torch.no_grad()
    def lower_bound(self, x: Tensor, y: Tensor, norm: NormName, streams: Streams) -> LowerBound:
        """Certified L2 radii sigma Phi^-1(p), (N,), or 0 where p is at most one half (theorem 1 and Certify).

        The number p is a lower confidence bound on the probability of class ``y`` (N,) under the noise. In the
        paper, Certify guesses the class. Here the class is given.
        """
        check_norm(norm, self.bound_norms)
        rows = torch.arange(len(x), device=x.device)
        hits = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for _ in range(CERTIFYING_DRAWS):
            hits += self.logits(x, streams.rows(rows)).argmax(1) == y
        # The lower end of a one-sided Clopper-Pearson interval.
        k = hits.cpu().numpy()
        p = np.where(k > 0, beta.ppf(MISTAKE, np.maximum(k, 1), CERTIFYING_DRAWS - k + 1), 0.0)
        radius = self.sigma * norm_distribution.ppf(np.maximum(p, 0.5))
        note = f"{CERTIFYING_DRAWS} draws, wrong with probability {MISTAKE:g}"
        return LowerBound(torch.from_numpy(radius).to(x), certificate=True, note=note)


class VariationalSmoothing(Smoothed):
    """Scores each class near the point of a ball where the class is most likely (Ju 2021, Algorithm 5).

    Args:
        base: a deterministic defense that torch can differentiate.
        classes: number K of its classes.
        norm: norm of the ball, ``L2`` or ``Linf``.
        radius: radius of the ball.
        sigma: standard deviation of the noise around the point found.
        steps: number of gradient steps of the search, from a random start in the ball.
        draws: number of noise draws over which a class's score is averaged.
    """

    def __init__(
        self,
        base: Defense,
        classes: int,
        *,
        radius: float,
        norm: NormName = "Linf",
        sigma: float = NOISE,
        steps: int = 1,
        draws: int = 1,
    ) -> None:
        super().__init__(base)
        self.ball: Norm = of_norm(norm, L2=L2(), Linf=Linf())
        for name, value, least in (
            ("radius", radius, 0),
            ("sigma", sigma, 0),
            ("steps", steps, 0),
            ("draws", draws, 1),
        ):
            _check_least(name, value, least)
        self.classes, self.radius, self.sigma = classes, radius, sigma
        self.steps, self.draws = steps, draws

    @property
    def inner_steps(self) -> int:
        """Gradient steps per image and forward pass."""
        return self.steps * self.classes

    def logits(self, x: Tensor, rng: RowStreams) -> Tensor:
        """Logits (N, K): log softmax f(x + mu_y + noise)_y for each class y, averaged over the noise draws.

        The derivative treats mu_y as a constant.
        """
        shift = self.search(x, rng) - x.detach()[:, None]
        return self._mean_score(x[:, None] + shift, rng)

    def unrolled_gradient(self, x: Tensor, rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """Logits (N, K), and their exact derivative, through the steps of the search and their projections.

        The random start and the noise are held fixed. See `bench.contracts.protocols.HasUnrolledGradient`.
        """
        return differentiated(lambda leaf: self._mean_score(self.search(leaf, rng, unrolled=True), rng), x)

    def _mean_score(self, points: Tensor, rng: RowStreams) -> Tensor:
        """Scores (N, K) of points (N, K, C, H, W), averaged over the noise draws."""
        scores = []
        for _ in range(self.draws):
            noise = self.sigma * rng.normal((self.classes, *points.shape[2:]))
            scores.append(self.score(points + noise))
        return torch.stack(scores).mean(0)

    def search(self, x: Tensor, rng: RowStreams, *, unrolled: bool = False) -> Tensor:
        """Points (N, K, C, H, W) of the ball around ``x``, one per class, that the search found most likely.

        With ``unrolled``, autograd can differentiate them in ``x``.
        """
        center = (x if unrolled else x.detach()).repeat_interleave(self.classes, 0)
        shape = (self.classes, *x.shape[1:])
        if self.ball.name == "Linf":
            offset = 2 * rng.uniform(shape).flatten(0, 1) - 1
        else:
            length = rng.uniform((self.classes, 1, 1, 1)).flatten(0, 1) ** (1 / x[0].numel())
            offset = length * self.ball.steepest(rng.normal(shape).flatten(0, 1))
        # In Linf, a step depends only on the gradient's signs, which have no derivative.
        curved = unrolled and self.ball.name != "Linf"

        def gradient(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                point = (z if curved else z.detach().requires_grad_(True)).reshape(-1, *shape)
                (slope,) = torch.autograd.grad(self.score(point).sum(), point, create_graph=curved)
            return rows, slope.flatten(0, 1)

        start = self.ball.project(center + self.radius * offset, center, self.radius)
        lengths = [STEP * self.radius] * self.steps
        z, _ = ascend(gradient, center, self.ball, self.radius, start=start, lengths=lengths)
        return z.reshape(-1, *shape)

    def score(self, points: Tensor) -> Tensor:
        """log softmax f(points[:, y])_y (N, K) of points (N, K, C, H, W)."""
        log_softmax: Tensor = F.log_softmax(drawn_logits(self.base, points.flatten(0, 1), NO_DRAWS), 1)
        own: Tensor = log_softmax.reshape(-1, self.classes, self.classes).diagonal(dim1=1, dim2=2)
        return own


@defense_family("randomized_smoothing", member="<defense>", examples=("cnn_gaussian",))
def randomized_smoothing(member: str, card_of: CardOf) -> Callable[..., RandomizedSmoothing]:
    """Any deterministic defense under Gaussian noise."""
    base = _deterministic(card_of(member))

    @defense(
        f"randomized_smoothing:{base.name}",
        access=base.access,
        datasets=base.datasets,
        citation="Cohen, Rosenfeld & Kolter 2019, Certified adversarial robustness via randomized smoothing",
        randomized=True,
        batch_size=base.batch_size,
        wraps=base.name,
    )
    def factory(base: Defense, *, sigma: float = NOISE) -> RandomizedSmoothing:
        """f(x + noise), noise ~ N(0, ``sigma``^2 I) (Cohen et al. 2019, equation 1)."""
        return RandomizedSmoothing(_differentiable(base), sigma=sigma)

    return factory


@defense_family("variational_smoothing", member="<defense>", examples=("cnn_gaussian",))
def variational_smoothing(member: str, card_of: CardOf) -> Callable[..., VariationalSmoothing]:
    """Any deterministic defense that torch can differentiate, near the point where each class is most likely."""
    base = _deterministic(card_of(member))
    if base.access != "gradient":
        raise UserError(f"defense {base.name!r} gives {base.access} access only; variational smoothing needs gradients")

    @defense(
        f"variational_smoothing:{base.name}",
        datasets=base.datasets,
        citation="Ju 2021, Generative models as a robust alternative for image classification, chapter 4",
        randomized=True,
        surrogate_gradient=True,
        version=2,
        batch_size=base.batch_size,
        wraps=base.name,
    )
    def factory(
        base: Defense,
        dataset: Dataset,
        *,
        norm: Literal["L2", "Linf"] = "Linf",
        radius: float | None = None,
        sigma: float = NOISE,
        steps: int = 1,
        draws: int = 1,
    ) -> VariationalSmoothing:
        """Scores each class near the point of a ball where the class is most likely (Ju 2021, Algorithm 5)."""
        return VariationalSmoothing(
            _differentiable(base),
            dataset.classes,
            radius=RADII.get(dataset.name, COLOUR_RADIUS) if radius is None else radius,
            norm=norm,
            sigma=sigma,
            steps=steps,
            draws=draws,
        )

    return factory


def _check_least(parameter: str, value: object, least: int) -> None:
    if not isinstance(value, (int, float)) or not least <= value < np.inf:
        raise ValueError(f"{parameter} is {value!r}; it must be a number of at least {least}")


def _deterministic(base: DefenseCard) -> DefenseCard:
    if base.randomized:
        raise UserError(f"defense {base.name!r} is randomized itself; smoothing is for deterministic ones")
    return base


def _differentiable(base: Defense) -> Defense:
    if isinstance(base, HasInputGradient):
        raise UserError(f"defense {base.card.name!r} has no derivative that torch could take; smoothing needs one")
    return base
