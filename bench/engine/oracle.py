"""The only door through which an attack sees a defense.

It grants the access that the attack's card declares, counts every query per sample, stops samples at the budget,
averages over draws of randomized defenses, and remembers the closest adversarial among all queries (for a binarized
defense, of the queries' nearest equivalents; of a randomized one, among those that further draws confirm).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.contracts.cards import GRANTS
from bench.contracts.chunk import Chunk
from bench.contracts.oracle import AccessDenied, AttackFunction, Loss, Rows
from bench.contracts.protocols import (
    Defense,
    HasInnerSteps,
    HasWarmAnswers,
    VectorJacobian,
)
from bench.contracts.streams import Streams
from bench.engine.audit import GradientAudit
from bench.engine.claims import Claims
from bench.engine.lanes import Lanes
from bench.engine.library import OracleModule
from bench.engine.meter import Meter
from bench.engine.queried import QueriedDefense
from bench.engine.terms import NOTHING, Resources, Terms


class DefenseOracle:
    """Answers an attack's queries about one chunk of samples (`bench.contracts.oracle.Oracle`).

    Args:
        defense: the defense under attack.
        chunk: correctly classified images, unless the goal may be reached from the start.
        terms: what the attack is allowed.
        random: one random stream per sample for the attack.
        noise: one random stream per sample for a randomized defense.
        resources: what the adversary has besides.

    The other attributes are those of `bench.contracts.oracle.Oracle`.
    """

    def __init__(
        self,
        defense: Defense,
        chunk: Chunk,
        terms: Terms,
        random: Streams,
        noise: Streams,
        resources: Resources = NOTHING,
    ) -> None:
        x, y, goal = chunk.images, chunk.labels, terms.threat.goal
        self.ids = torch.arange(len(chunk), device=chunk.device)
        self.threat, self.random, self.classes = terms.threat, random, chunk.classes
        self.pool = (x[:0], y[:0]) if resources.pool is None else resources.pool
        self.starts = resources.starts or (x.clone(), torch.zeros_like(y, dtype=torch.bool))
        self.remarks: list[str] = []
        self._access, self._granted, self._transferred = terms.access, GRANTS[terms.access], resources.transferred
        self._x, self._y, self._goal = x, y, goal
        lanes = Lanes(defense, len(chunk), chunk.device) if terms.warm and isinstance(defense, HasWarmAnswers) else None
        unrolled = terms.access == "unrolled"
        self._queried = QueriedDefense(defense, noise, goal, y, chunk.classes, unrolled=unrolled, warm=lanes)
        self._inner_steps = defense.inner_steps if isinstance(defense, HasInnerSteps) else 0
        self._meter = Meter(
            len(chunk),
            terms.budget,
            terms.batch_size,
            terms.deadline,
            chunk.device,
            terms.inner_budget,
            lambda: self.inner_steps,
        )
        self._audit = GradientAudit(len(chunk), chunk.device)
        self._claims = Claims(chunk, terms.threat, self._queried, self._meter)

    # What an attack asks.

    @property
    def draws(self) -> int:
        """Over how many draws the answers of a randomized defense are averaged; the attack may change it."""
        return self._queried.draws

    @draws.setter
    def draws(self, number: int) -> None:
        self._queried.draws = number

    @property
    def lane(self) -> int:
        """See `bench.contracts.oracle.Oracle`."""
        return 0 if self._queried.warm is None else self._queried.warm.current

    @lane.setter
    def lane(self, number: int) -> None:
        if self._queried.warm is not None:
            self._queried.warm.current = number

    def decision(self, x: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.decision`."""
        self._require("decision")
        return self._forward(x, ids, self._y[ids], self._queried.majority)

    def scores(self, x: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.scores`."""
        self._require("score")
        return self._forward(x, ids, self._queried.refusal(x, ids), self._queried.mean)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `bench.contracts.oracle.Oracle.gradient`."""

        def cotangents(logits: Tensor, rows: Rows) -> list[Tensor]:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_(True)
                return [torch.autograd.grad(loss(leaf, y[rows]).sum(), leaf)[0]]

        products, logits = self._products(x, ids, None, cotangents)
        return products[:, 0], logits

    def jacobian(self, x: Tensor, classes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `bench.contracts.oracle.Oracle.jacobian`."""
        width = classes.shape[1]

        def cotangents(logits: Tensor, rows: Rows) -> list[Tensor]:
            return [torch.zeros_like(logits).scatter_(1, classes[rows, m, None], 1) for m in range(width)]

        return self._products(x, ids, classes, cotangents)

    def reconstruct(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.reconstruct`."""
        self._require("latent")
        output = x.clone()
        for rows in self._meter.admit(ids):
            output[rows] = self._queried.reconstruct(x[rows], y[rows], ids[rows])
            self._meter.pay(ids[rows], forwards=1)
        self._claims.settle()
        return output

    def detection_score(self, x: Tensor, ids: Tensor) -> Tensor:
        """Returns how suspicious the defense finds the images ``x`` (N,); NaN for samples without budget.

        Counted as a forward pass.
        """
        self._require("score")
        scores = torch.full_like(x[:, 0, 0, 0], torch.nan)
        for rows in self._meter.admit(ids):
            with torch.no_grad():
                scores[rows] = self._queried.detection_score(x[rows])
            self._meter.pay(ids[rows], forwards=1)
        return scores

    def detection_gradient(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient (N, C, H, W) of `detection_score` in ``x``, and the scores (N,).

        Counted as a forward and a backward pass.
        """
        self._require("gradient")
        gradient, scores = torch.zeros_like(x), torch.full_like(x[:, 0, 0, 0], torch.nan)
        for rows in self._meter.admit(ids):
            with torch.enable_grad():
                leaf = x[rows].detach().requires_grad_(True)
                given = self._queried.detection_score(leaf)
                gradient[rows] = torch.autograd.grad(given.sum(), leaf)[0]
            scores[rows] = given.detach()
            self._meter.pay(ids[rows], forwards=1, backwards=1)
        return gradient, scores

    def transferred(self, attack: AttackFunction) -> Tensor:
        """See `bench.contracts.oracle.Oracle.transferred`."""
        self._require("transfer")
        assert self._transferred is not None
        return self._transferred(attack)

    def closest(self, fallback: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.closest`."""
        return torch.where(self.found.reshape(-1, 1, 1, 1), self._claims.closest.images, fallback)

    def adversarial(self, x: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.adversarial`."""
        return self.reached(self.decision(x, ids), ids)

    def reached(self, answers: Tensor, ids: Tensor) -> Tensor:
        """See `bench.contracts.oracle.Oracle.reached`."""
        return self._goal.reached(answers, self._y[ids])

    def working(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """See `bench.contracts.oracle.Oracle.working`."""
        return rows[self._meter.affordable(rows if ids is None else ids[rows])]

    def as_module(self) -> nn.Module:
        """See `bench.contracts.oracle.Oracle.as_module`."""
        self._require("score")
        return OracleModule(self._answer_library)

    @property
    def found(self) -> Tensor:
        """See `bench.contracts.oracle.Oracle.found`."""
        return self._claims.closest.found

    @property
    def closest_distance(self) -> Tensor:
        """See `bench.contracts.oracle.Oracle.closest_distance`."""
        return self._claims.closest.distance.clone()

    # What the engine records.

    def seen(self) -> Tensor:
        """Returns what the queries showed, for the judge (S, n, C, H, W).

        This is, per sample, the closest adversarial example and, for a randomized defense, the likeliest image that was
        not confirmed; the clean image where there is none.
        """
        return torch.stack(self._claims.seen())

    @property
    def found_after(self) -> Tensor:
        """See `bench.engine.closest.ClosestFound`."""
        return self._claims.closest.found_after

    @property
    def refused(self) -> Tensor:
        """See `bench.engine.meter.Meter`."""
        return self._meter.refused

    @property
    def exhausted(self) -> Tensor:
        """True (n,) for samples that have used up their budget; their queries are no longer evaluated."""
        return self._meter.exhausted

    @property
    def forwards(self) -> Tensor:
        """Forward passes per sample (n,), float64; queries without ids count in equal shares."""
        return self._meter.forwards

    @property
    def backwards(self) -> Tensor:
        """Backward passes per sample (n,), float64."""
        return self._meter.backwards

    @property
    def inner_steps(self) -> Tensor:
        """Optimization steps inside the defense per sample (n,), float64.

        Warm answers count what they took; others count at most, where the defense stops early.
        """
        warm = self._queried.warm
        if warm is None:
            return self.forwards * self._inner_steps
        steps = (self.forwards - warm.passes) * self._inner_steps + warm.evaluations
        return steps.mean().expand_as(steps) if self._meter.hides_samples else steps

    @property
    def useless_gradients(self) -> Tensor:
        """See `bench.engine.audit.GradientAudit.useless`."""
        return self._audit.useless

    # How it answers.

    def _require(self, wanted: str) -> None:
        if wanted not in self._granted:
            raise AccessDenied(f"the card declares {self._access} access, the attack asked for {wanted}")

    def _forward(self, x: Tensor, ids: Tensor, answers: Tensor, answer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``answers`` with what ``answer`` gives, classes (N,) or logits (N, K), in the rows within the budget."""
        for rows in self._meter.admit(ids):
            with torch.no_grad():
                given = answer(x[rows], ids[rows])
            self._meter.pay(ids[rows], forwards=self._queried.passes)
            answers[rows] = self._claims.observed(x[rows], given, ids[rows])
        self._claims.settle()
        return answers

    def _products(
        self, x: Tensor, ids: Tensor, classes: Tensor | None, cotangents: Callable[[Tensor, Rows], list[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Products (N, M, C, H, W) of the Jacobian with cotangents chosen at the logits, and the logits.

        There is one cotangent for each of the ``classes`` (N, M), or one of all logits.
        """
        self._require("gradient")
        width = 1 if classes is None else classes.shape[1]
        logits_out = self._queried.refusal(x, ids)
        products = torch.zeros(len(x), width, *x.shape[1:], dtype=x.dtype, device=x.device)
        for rows in self._meter.admit(ids):
            wanted = None if classes is None else classes[rows]
            given, vector_jacobian = self._queried.linearize(x[rows], ids[rows], wanted)
            logits, known = self._queried.finite(given, ids[rows]), torch.isfinite(given).all(1)
            for m, cotangent in enumerate(cotangents(logits, rows)):
                product = vector_jacobian(cotangent).masked_fill(~known.reshape(-1, 1, 1, 1), 0)
                products[rows, m] = product
                correct = ~self._goal.reached(logits, self._y[ids[rows]])
                self._audit.observe(cotangent, product, correct, ids[rows])
                if classes is None and self._queried.warm is not None:
                    self._queried.warm.weigh(ids[rows], cotangent)
            self._meter.pay(ids[rows], forwards=self._queried.passes, backwards=width * self._queried.passes)
            logits_out[rows] = self._claims.observed(x[rows], logits, ids[rows])
        self._claims.settle()
        return products, logits_out

    def _answer_library(self, x: Tensor, differentiated: bool) -> tuple[Tensor, VectorJacobian | None]:
        """Returns logits of rows without ids, and their vector-Jacobian product where it is granted and wanted.

        A row passes for an image of the sample whose clean image is nearest.
        """
        self._meter.admit(self.ids)
        ids = torch.cdist(x.flatten(1), self._x.flatten(1)).argmin(1)
        batches = [*zip(*(torch.split(rows, self._meter.batch_size) for rows in (x, ids)), strict=True)]
        self._meter.pay_together(forwards=self._queried.passes * len(x))
        if not differentiated or "gradient" not in self._granted:
            with torch.no_grad():
                answers = torch.cat([self._queried.logits(*batch) for batch in batches])
            self._claims.settle()
            return answers, None
        linear = [self._queried.linearize(*batch) for batch in batches]
        self._claims.settle()

        def vector_jacobian(cotangent: Tensor) -> Tensor:
            self._meter.pay_together(backwards=self._queried.passes * len(x))
            parts = torch.split(cotangent, self._meter.batch_size)
            products = torch.cat([product(part) for part, (_, product) in zip(parts, linear, strict=True)])
            self._audit.observe_together(cotangent, products)
            if self._queried.warm is not None:
                self._queried.warm.weigh(ids, cotangent)
                self._queried.warm.settle()
            return products

        return torch.cat([logits for logits, _ in linear]), vector_jacobian
