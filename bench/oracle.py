"""The only door through which an attack sees a defense.

It grants the access that the attack's card declares, counts every query per sample, stops samples at the budget,
averages over draws of randomised defenses, and remembers the closest adversarial among all queries (for a binarised
defense, of the queries' nearest equivalents; of a randomised one, among those that further draws confirm).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.cards import GRANTS, Access
from bench.confirmation import Confirmation, first_of_each
from bench.door import (
    decisions,
    decoded_images,
    detection_scores,
    drawn_logits,
    linearize,
    mean_logits,
    reconstructions,
)
from bench.goals import MISCLASSIFIED, Goal, Misclassified
from bench.protocols import (
    Defense,
    HasDecision,
    HasDecodedImage,
    HasDetectionScore,
    HasInnerSteps,
    HasReconstruction,
    VectorJacobian,
)
from bench.randomness import Streams
from bench.threat import ThreatModel, snap_to_threshold

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, K) and labels (N,) to one loss per row (N,); differentiable by torch."""


AttackFunction = Callable[..., Tensor]
"""``attack(oracle, x, y, **parameters)`` proposes candidates of the shape of ``x``, or (M, *x.shape)."""
Rows = Tensor | slice
"""Rows of a query: indices, or a slice where they are consecutive."""
DRAWS = 16
"""Draws over which answers of a randomised defense are averaged unless the attack sets another number."""
FRESH_DRAWS = 100
"""Draws over which an answer of a randomised defense is averaged anew that reaches a goal other than misclassification.
"""


class AccessDenied(Exception):
    """The attack asked for more than its card declares."""


class BudgetExhausted(Exception):
    """Every sample of a query has used up its budget; the engine takes what was found so far."""


class CellTimeout(Exception):
    """The cell ran out of wall-clock time."""


class Oracle:
    """Answers an attack's queries about one chunk of correctly classified samples.

    Attributes:
        ids: the chunk's sample ids, 0 ... n-1, int64. Every query says which samples its rows belong to; a sample may
            have any number of rows in a query.
        threat: the threat model under attack.
        random: one random stream per sample (`Streams`), to be drawn with ids.
        classes: number of classes.
        pool: clean training images (P, C, H, W) and their labels (P,), the same for every chunk; what an adversary is
            assumed to have. May be empty.
        draws: over how many draws the answers of a randomised defense are averaged (expectation over transformation);
            the attack may change it.
        refused: True (n,) for samples of which a query was refused because their budget was used up.
        found_after: passes (n,) float64, forward and backward, up to and with the query that showed a sample's first
            adversarial (in the ball, where there is one); infinity without one, NaN where a library hides it.
        remarks: what the attack has to say about the defense, such as a library's warnings; the ledger keeps it.

    Images that reach the ``goal`` are called adversarial here, whatever it is; by default it is misclassification.
    """

    def __init__(
        self,
        defense: Defense,
        access: Access,
        threat: ThreatModel,
        x: Tensor,
        y: Tensor,
        *,
        classes: int,
        random: Streams,
        noise: Streams,
        budget: int,
        batch_size: int,
        pool: tuple[Tensor, Tensor] | None = None,
        transferred: Callable[[AttackFunction], Tensor] | None = None,
        deadline: float | None = None,
        goal: Goal = MISCLASSIFIED,
    ) -> None:
        self.ids = torch.arange(len(x), device=x.device)
        self.threat = threat
        self.random = random
        self.draws = DRAWS
        self.classes = classes
        self.pool = (x[:0], y[:0]) if pool is None else pool
        self.refused = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._defense, self._access, self._granted = defense, access, GRANTS[access]
        self._x, self._y, self._goal = x, y, goal
        self._transferred = transferred
        self._noise, self._budget, self._batch_size, self._deadline = noise, budget, batch_size, deadline
        self._forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._backwards = torch.zeros_like(self._forwards)
        self._shared_forwards = self._shared_backwards = 0
        self._gradients = torch.zeros_like(self._forwards)
        self._useless_gradients = torch.zeros_like(self._forwards)
        self._shared_gradients = self._shared_useless_gradients = 0
        self._decides = isinstance(defense, HasDecision) and not defense.card.randomized
        self._inner_steps = defense.inner_steps if isinstance(defense, HasInnerSteps) else 0
        self.found_after = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.remarks: list[str] = []
        self._closest = x.clone()
        self._closest_distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self._confirmation: Confirmation | None = None
        if defense.card.randomized and isinstance(goal, Misclassified):
            self._confirmation = Confirmation(self._draw, x, y, bounded=threat.epsilon is not None)

    # What an attack asks.

    def decision(self, x: Tensor, ids: Tensor) -> Tensor:
        """Predicted classes (N,) int64 of images ``x`` (N, C, H, W); a majority over `draws` if randomised."""
        self._require("decision")
        return self._forward(x, ids, self._y[ids], self._majority)

    def scores(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, K) of images ``x``, averaged over `draws` if the defense is randomised."""
        self._require("score")
        return self._forward(x, ids, self._unanswered(x, ids), self._mean)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of ``loss(logits(x), y)`` in ``x`` (N, C, H, W), and the logits (N, K) it was taken at.

        For a randomised defense these are the logits averaged over `draws` and the gradient of the loss of that
        average; where further draws refute that ``x`` is adversarial, the true class's logit is raised to the highest.
        """

        def cotangents(logits: Tensor, rows: Rows) -> list[Tensor]:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_(True)
                return [torch.autograd.grad(loss(leaf, y[rows]).sum(), leaf)[0]]

        products, logits = self._products(x, ids, 1, cotangents)
        return products[:, 0], logits

    def jacobian(self, x: Tensor, classes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives (N, M, C, H, W) of the logits of ``classes`` (N, M) in ``x``, and all logits (N, K)."""
        width = classes.shape[1]

        def cotangents(logits: Tensor, rows: Rows) -> list[Tensor]:
            return [torch.zeros_like(logits).scatter_(1, classes[rows, m, None], 1) for m in range(width)]

        return self._products(x, ids, width, cotangents)

    def reconstruct(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """Returns the defense's reconstructions (N, C, H, W) of ``x`` under the classes ``y``, or without regard to
        classes where it knows no others; counted as a forward pass."""
        self._require("latent")
        output = x.clone()
        for rows in self._admitted(ids):
            if isinstance(self._defense, HasReconstruction):
                output[rows] = reconstructions(self._defense, x[rows], y[rows]).detach()
            else:
                assert isinstance(self._defense, HasDecodedImage)
                output[rows] = decoded_images(self._defense, x[rows]).detach()
            self._count(ids[rows], forwards=1)
        return output

    def detection_score(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns how suspicious the defense finds the images ``x`` (N,); NaN for samples without budget.

        Counted as a forward pass.
        """
        self._require("score")
        scores = torch.full_like(x[:, 0, 0, 0], torch.nan)
        for rows in self._admitted(ids):
            with torch.no_grad():
                scores[rows] = self._suspicion(x[rows])
            self._count(ids[rows], forwards=1)
        return scores

    def detection_gradient(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient (N, C, H, W) of `detection_score` in ``x``, and the scores (N,).

        Counted as a forward and a backward pass.
        """
        self._require("gradient")
        gradient, scores = torch.zeros_like(x), torch.full_like(x[:, 0, 0, 0], torch.nan)
        for rows in self._admitted(ids):
            with torch.enable_grad():
                leaf = x[rows].detach().requires_grad_(True)
                given = self._suspicion(leaf)
                gradient[rows] = torch.autograd.grad(given.sum(), leaf)[0]
            scores[rows] = given.detach()
            self._count(ids[rows], forwards=1, backwards=1)
        return gradient, scores

    def transferred(self, attack: AttackFunction) -> Tensor:
        """What a gradient attack, with its default parameters, proposes for this chunk's samples (n, C, H, W) on the
        substitute. Its queries there are not counted here."""
        self._require("transfer")
        assert self._transferred is not None
        return self._transferred(attack)

    def closest(self, fallback: Tensor) -> Tensor:
        """Per sample, the closest adversarial (in the ball, where there is one) among all queries so far, else the
        row of ``fallback`` (n, C, H, W): what most attacks return."""
        return torch.where(self.found.reshape(-1, 1, 1, 1), self._closest, fallback)

    def seen(self) -> Tensor:
        """What the queries showed, for the judge (S, n, C, H, W): per sample the closest adversarial and, of a
        randomised defense, the likeliest image that was not confirmed; the clean image where there is none."""
        return torch.stack([self._closest] + ([self._confirmation.likely] if self._confirmation else []))

    @property
    def found(self) -> Tensor:
        """True (n,) for samples with an adversarial (in the ball, where there is one) among their queries so far."""
        return torch.isfinite(self._closest_distance)

    @property
    def closest_distance(self) -> Tensor:
        """Distance (n,) float64 of the closest adversarial so far in the threat model's norm; infinity without one."""
        return self._closest_distance.clone()

    @property
    def exhausted(self) -> Tensor:
        """True (n,) for samples that have used up their budget; their queries are no longer evaluated."""
        shared = (self._shared_forwards + self._shared_backwards) / max(len(self.ids), 1)
        spent: Tensor = self._forwards + self._backwards
        return spent >= self._budget - shared

    def affordable(self, ids: Tensor) -> Tensor:
        """True (N,) for rows whose sample still has budget; the other samples are marked as refused.

        An attack of several phases shrinks its working set with it: `BudgetExhausted`, raised where only spent samples
        are asked about, would cut short the samples that wait for the next phase.
        """
        spent = self.exhausted[ids]
        self.refused[ids[spent]] = True
        return ~spent

    @property
    def forwards(self) -> Tensor:
        """Forward passes per sample (n,), float64 (queries without ids count in equal shares)."""
        return self._forwards.double() + self._shared_forwards / max(len(self.ids), 1)

    @property
    def backwards(self) -> Tensor:
        """Backward passes per sample (n,), float64."""
        return self._backwards.double() + self._shared_backwards / max(len(self.ids), 1)

    @property
    def useless_gradients(self) -> Tensor:
        """Share (n,) float64 of the derivatives asked of each sample that were all zero or not finite, which leads a
        gradient attack nowhere; NaN where none was asked.

        A loss that is flat in the logits counts where the image is still classified correctly (it is saturated), and
        not beyond the boundary (a hinge). Of a library's rows, which have no labels, it never counts.
        """
        asked = self._gradients.double() + self._shared_gradients / max(len(self.ids), 1)
        useless = self._useless_gradients.double() + self._shared_useless_gradients / max(len(self.ids), 1)
        return useless / asked

    @property
    def inner_steps(self) -> Tensor:
        """Optimisation steps inside the defense per sample (n,), float64; at most, where it decides by itself."""
        return self.forwards * self._inner_steps

    def as_module(self) -> nn.Module:
        """The defense as a ``torch.nn.Module`` for attack libraries: images to logits, differentiable if granted.

        It knows no ids: each row counts as an equal share of the chunk's totals, the budget stops the whole chunk
        (`BudgetExhausted`), and nothing is remembered as closest.
        """
        self._require("score")
        return _OracleModule(self)

    # How it answers.

    def _require(self, wanted: str) -> None:
        if wanted not in self._granted:
            raise AccessDenied(f"the card declares {self._access} access, the attack asked for {wanted}")

    def _admitted(self, ids: Tensor) -> Sequence[Rows]:
        """The rows that may still be evaluated, in batches of the size set; as slices, which copy nothing, if all
        may."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise CellTimeout
        refused = self.exhausted[ids]
        if not refused.any():
            return [slice(start, start + self._batch_size) for start in range(0, len(ids), self._batch_size)]
        self.refused[ids[refused]] = True
        rows = (~refused).nonzero()[:, 0]
        if len(ids) and not len(rows):
            raise BudgetExhausted
        return [batch for batch in torch.split(rows, self._batch_size) if len(batch)]

    def _count(self, ids: Tensor, forwards: int = 0, backwards: int = 0) -> None:
        rows = torch.bincount(ids, minlength=len(self.ids))
        self._forwards.add_(rows, alpha=forwards)
        if backwards:
            self._backwards.add_(rows, alpha=backwards)

    @property
    def _passes(self) -> int:
        """Passes that an answer takes."""
        return self.draws if self._defense.card.randomized else 1

    def _unanswered(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns logits that do not reach the goal: the answer to rows that are refused or have no finite logits."""
        return self._goal.refusal(self._y[ids], self.classes).to(x.dtype)

    def _suspicion(self, x: Tensor) -> Tensor:
        if not isinstance(self._defense, HasDetectionScore):
            raise AccessDenied("the defense has no detection score")
        return detection_scores(self._defense, x)

    def _finite(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Returns the logits, with the true class's in rows that are not finite: an error is no adversarial."""
        good = torch.isfinite(logits).all(1)
        return logits if good.all() else torch.where(good[:, None], logits, self._unanswered(logits, ids))

    def _logits(self, x: Tensor, ids: Tensor) -> Tensor:
        return self._finite(drawn_logits(self._defense, x, self._noise.rows(ids)), ids)

    def _forward(self, x: Tensor, ids: Tensor, answers: Tensor, answer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``answers`` with what ``answer`` gives, classes (N,) or logits (N, K), in the rows within the budget."""
        for rows in self._admitted(ids):
            with torch.no_grad():
                given = answer(x[rows], ids[rows])
            self._count(ids[rows], forwards=self._passes)
            answers[rows] = self._observed(x[rows], given, ids[rows])
        return answers

    def _mean(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, K), averaged over the draws."""
        return self._finite(mean_logits(self._defense, x, self._noise.rows(ids), self.draws), ids)

    def _majority(self, x: Tensor, ids: Tensor) -> Tensor:
        """The class (N,) that most draws decide for."""
        if self._decides:
            return decisions(cast(HasDecision, self._defense), x)
        if not self._defense.card.randomized:
            return self._logits(x, ids).argmax(1)
        drawn = torch.stack([self._logits(x, ids).argmax(1) for _ in range(self.draws)])
        return nn.functional.one_hot(drawn, self.classes).sum(0).argmax(1)

    def _linearize(self, x: Tensor, ids: Tensor) -> tuple[Tensor, VectorJacobian]:
        """The logits at ``x``, averaged over the draws, and their vector-Jacobian product."""
        unrolled = self._access == "unrolled"
        return linearize(self._defense, x, self._noise.rows(ids), self.draws, unrolled=unrolled)

    def _products(
        self, x: Tensor, ids: Tensor, width: int, cotangents: Callable[[Tensor, Rows], list[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Products (N, width, C, H, W) of the Jacobian with cotangents chosen at the logits, and the logits."""
        self._require("gradient")
        logits_out = self._unanswered(x, ids)
        products = torch.zeros(len(x), width, *x.shape[1:], dtype=x.dtype, device=x.device)
        for rows in self._admitted(ids):
            given, vector_jacobian = self._linearize(x[rows], ids[rows])
            logits, known = self._finite(given, ids[rows]), torch.isfinite(given).all(1)
            for m, cotangent in enumerate(cotangents(logits, rows)):
                product = vector_jacobian(cotangent).masked_fill(~known.reshape(-1, 1, 1, 1), 0)
                products[rows, m] = product
                asked, useless = _derivatives(cotangent, product, ~self._goal.reached(logits, self._y[ids[rows]]))
                self._gradients.index_add_(0, ids[rows], asked.long())
                self._useless_gradients.index_add_(0, ids[rows], useless.long())
            self._count(ids[rows], forwards=self._passes, backwards=width * self._passes)
            logits_out[rows] = self._observed(x[rows], logits, ids[rows])
        return products, logits_out

    @torch.no_grad()
    def _observed(self, x: Tensor, answers: Tensor, ids: Tensor) -> Tensor:
        """Remembers the rows that are adversarial, in bounds and closer than what their sample had.

        Returns the answers, classes (N,) or logits (N, K). They name the true class where further draws refute them,
        and for a clean image, which is classified correctly in the judge's batches whatever happens in others, unless
        the goal may be reached from the start.
        """
        rows = self._goal.reached(answers, self._y[ids]).nonzero()[:, 0]
        if len(rows) and self._defense.card.randomized and self._confirmation is None:
            answers = answers.index_copy(0, rows, self._fresh(x[rows], ids[rows]))
            rows = rows[self._goal.reached(answers[rows], self._y[ids[rows]])]
        if not len(rows):
            return answers
        x, all_ids, ids = x[rows].detach(), ids, ids[rows]
        if (threshold := self._defense.card.binarization_threshold) is not None:
            x = snap_to_threshold(x, self._x[ids], threshold)
        distances = self.threat.distance(x, self._x[ids])
        clean = (distances == 0) & (not self._goal.from_start)
        if clean.any():
            answers = self._unbroken(answers, rows[clean], all_ids)
        closer = ~clean & self.threat.allows(distances) & (distances < self._closest_distance[ids])
        pixels = x.flatten(1)
        # ``aminmax`` is slower along rows.
        closer_rows = (closer & (pixels.amin(1) >= 0) & (pixels.amax(1) <= 1)).nonzero()[:, 0]
        if not len(closer_rows):
            return answers
        by_sample = _nearest_first(closer_rows, distances, ids)
        if self._confirmation is None:
            winners = by_sample[first_of_each(ids[by_sample])]
        else:
            winners, refuted = self._confirmation.confirm_nearest(x, distances, ids, by_sample)
            answers = self._unbroken(answers, rows[refuted], all_ids)
        samples = ids[winners]
        fresh = samples[torch.isinf(self._closest_distance[samples])]
        if len(fresh):
            passes = (self.forwards + self.backwards)[fresh]
            self.found_after[fresh] = passes if not self._shared_forwards else torch.nan
        self._closest[samples] = x[winners]
        self._closest_distance[samples] = distances[winners]
        return answers

    def _unbroken(self, answers: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """The answers, changed in ``rows`` as little as makes them name the true class."""
        changed, y = answers.clone(), self._y[ids[rows]]
        if answers.dim() == 1:
            changed[rows] = y
        else:
            highest = answers[rows].amax(1)
            changed[rows, y] = torch.nextafter(highest, torch.full_like(highest, torch.inf))
        return changed

    def _fresh(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, K) averaged over further draws of a randomised defense; counted."""
        self._count(ids, forwards=FRESH_DRAWS)
        return self._finite(mean_logits(self._defense, x, self._noise.rows(ids), FRESH_DRAWS), ids)

    def _draw(self, x: Tensor, ids: Tensor) -> Tensor:
        """The classes (N,) that one further draw each of a randomised defense names; counted."""
        self._count(ids, forwards=1)
        batches = zip(torch.split(x, self._batch_size), torch.split(ids, self._batch_size), strict=True)
        return torch.cat([self._logits(*batch).argmax(1) for batch in batches])

    def _module_query(self, x: Tensor, differentiated: bool) -> tuple[Tensor, VectorJacobian | None]:
        """Logits of rows without ids, and their vector-Jacobian product where gradients are granted and wanted."""
        self._admitted(self.ids)
        noise_ids = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        parts = torch.split(torch.arange(len(x), device=x.device), self._batch_size)
        self._shared_forwards += self._passes * len(x)
        if not differentiated or "gradient" not in self._granted:
            with torch.no_grad():
                streams = [self._noise.rows(noise_ids[part]) for part in parts]
                logits = [
                    mean_logits(self._defense, x[part], rng, self.draws)
                    for part, rng in zip(parts, streams, strict=True)
                ]
            return torch.cat(logits), None
        linear = [self._linearize(x[part], noise_ids[part]) for part in parts]

        def vector_jacobian(cotangent: Tensor) -> Tensor:
            self._shared_backwards += self._passes * len(x)
            products = torch.cat([product(cotangent[part]) for part, (_, product) in zip(parts, linear, strict=True)])
            asked, useless = _derivatives(cotangent, products, torch.zeros_like(cotangent[:, 0], dtype=torch.bool))
            self._shared_gradients += int(asked.sum())
            self._shared_useless_gradients += int(useless.sum())
            return products

        return torch.cat([logits for logits, _ in linear]), vector_jacobian


def _nearest_first(rows: Tensor, distances: Tensor, ids: Tensor) -> Tensor:
    """Rows (N,), the nearest of each sample first and the samples in order."""
    if (ids[rows].diff() > 0).all():
        # One row for each sample, in order, as most attacks ask: sorting would take part of a small net's pass.
        return rows
    rows = rows[torch.argsort(distances[rows], stable=True)]
    return rows[torch.argsort(ids[rows], stable=True)]


def _derivatives(cotangents: Tensor, products: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows (N,) ask for a derivative, by cotangents (N, K) or because they are ``correct`` (N,) and want to be
    led away, and which of these get one that is all zero or not finite."""
    asked = (cotangents != 0).any(1) | correct
    size = products.flatten(1).abs().amax(1)
    return asked, asked & ~((size > 0) & torch.isfinite(size))


class _OracleModule(nn.Module):
    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self._oracle = oracle

    def forward(self, x: Tensor) -> Tensor:
        differentiated = torch.is_grad_enabled() and x.requires_grad
        return cast(Tensor, _ModuleQuery.apply(x, self._oracle, differentiated))


class _ModuleQuery(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, oracle: Oracle, differentiated: bool) -> Tensor:
        logits, ctx.vector_jacobian = oracle._module_query(x.detach(), differentiated)
        return logits

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        if ctx.vector_jacobian is None:
            raise AccessDenied("the library asked for a gradient that the card does not declare")
        return ctx.vector_jacobian(cotangents[0]), None, None
