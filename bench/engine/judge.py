"""The judge: decides, on fresh forward passes, whether a candidate is adversarial and how far away it is.

Every claim of an attack is checked before it is recorded.

A randomized defense is broken by an image that it misclassifies with probability P of at least one half. The judge
chooses candidates on one set of draws. It decides on another set that nothing has seen, by a test that is valid at
every look. The error ``alpha`` of a sample is split over its clean image and all candidates that are tested. So the
probability that a cell records a sample as broken by an image with P below one half is at most alpha. This bound holds
for every attack that learns of the draws through the oracle alone. Code that computes the judge's streams itself can
search for lucky images. Only the keys of the streams, the images' own bytes, stand in the way of such code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.chunk import Chunk
from bench.contracts.norms import NORMS, NormName, within
from bench.contracts.protocols import Defense
from bench.contracts.threat import ThreatModel, snap_to_threshold
from bench.contracts.work import ALPHA
from bench.engine.ballot import Ballot, Verdict, classify
from bench.engine.candidates import by_distance, differ, moved_outward, violation_of, without_invalid
from bench.engine.verdicts import Decisions, SequentialTest, decide, each_draw

CLEAN_SHARE = 0.1
"""Share of alpha that the verdict on the clean image may spend. The candidates share the rest."""
VERDICT = SequentialTest(null=0.5, alternative=0.65, beta=0.01, max_draws=400)
"""Accepts an image as adversarial, or gives it up."""
CHOICE = SequentialTest(null=0.6, alternative=0.8, beta=0.1, max_draws=40)
"""Chooses a stretch with P of about `AIM`, so that the verdict can accept it."""
CHOICE_ALPHA = 0.2
AIM = 0.7
STRETCHES = (1.001, 1.005, 1.02, 1.1)
"""Factors by which minimal perturbations on deterministic defenses are also tried. An attack ends just outside the
boundary, where another float order can undo the misclassification."""
LADDER = (1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.45, 1.7, 2.0)
"""Factors from which the stretch of a minimal perturbation on a randomized defense is chosen."""
FARTHER = (1.0, 1.1, 1.25)
"""Factors on a chosen stretch. They are tested from the nearest on, until one is accepted."""


@dataclass(frozen=True)
class CleanVerdict(Verdict):
    """The verdict on clean images.

    Attributes:
        errors: (N,) int64 number of the further draws of `Judge.estimate` that misclassify the image.
    """

    errors: Tensor


@dataclass(frozen=True)
class Judged:
    """The nearest candidate of each sample that is accepted as adversarial, and the draws spent on finding it.

    Attributes:
        broken: (n,) bool, whether a candidate is accepted.
        undecided: (n,) bool, whether no candidate is accepted and the test of at least one ended undecided.
        images: (n, C, H, W) accepted candidate; zeros if there is none.
        prediction: (n,) int64 class of the accepted candidate; -1 if there is none.
        errors: (n,) int64 number of the further draws of `Judge.estimate` that misclassify the accepted candidate; 0 if
            there is none.
        likeliest: (n, C, H, W) image within the judge's threshold that choosing and deciding draws misclassified most
            often; the clean image if there is none.
        likely_rate: (n,) float64 misclassification rate of ``likeliest`` on these draws, as `Verdict.rate`; NaN where
            ``likeliest`` is the clean image.
        likely_errors: (n,) int64 number of the further draws of `Judge.estimate` that misclassify ``likeliest``; 0
            where ``likeliest`` is the clean image.
        choosing: (n,) int64 number of draws for choosing, over all candidates; 0 for a deterministic defense.
        deciding: (n,) int64 number of draws for deciding; 0 for a deterministic defense.
        estimating: (n,) int64 number of further draws.
        non_finite: (n,) int64 number of candidates dropped because their logits were not finite.
        distances: (n,) float64 distances of the accepted candidates, per norm; infinity if there is none.
        violation: per sample, why the attack's own candidates break the rules, or "".
    """

    broken: Tensor
    undecided: Tensor
    images: Tensor
    prediction: Tensor
    errors: Tensor
    likeliest: Tensor
    likely_rate: Tensor
    likely_errors: Tensor
    choosing: Tensor
    deciding: Tensor
    estimating: Tensor
    non_finite: Tensor
    distances: dict[NormName, Tensor]
    violation: list[str]


@dataclass(frozen=True)
class Judge:
    """Judges images of one defense.

    Attributes:
        defense: the defense, queried in batches of exactly its card's size.
        seed: seed of all draws of a randomized defense. Each draw is a function of the seed, the purpose, the sample,
            the image's bytes and the draw's number.
        alpha: see `ALPHA`; float64, one number or one for each sample (n,). The share of the clean image does not
            depend on it, so the verdict on the clean image is the same in all cells.
        estimation_draws: number of further draws on the nearest broken image and on the likeliest one.
        threshold: radius, in the norm under attack, within which the likeliest image is looked for.
    """

    defense: Defense
    seed: int
    alpha: Tensor
    estimation_draws: int
    threshold: float

    @property
    def randomized(self) -> bool:
        """Whether the defense is randomized."""
        return self.defense.card.randomized

    def clean(self, chunk: Chunk) -> CleanVerdict:
        """Returns the verdict on the clean images of a chunk."""
        levels = torch.full((len(chunk),), CLEAN_SHARE * ALPHA, dtype=torch.float64, device=chunk.device)
        verdict, _ = self.verdict(chunk, levels)
        errors = self.estimate(chunk) if self.randomized else torch.zeros_like(chunk.labels)
        return CleanVerdict(**vars(verdict), errors=errors)

    def verdict(self, chunk: Chunk, levels: Tensor) -> tuple[Verdict, Tensor]:
        """Returns the verdict on the N images of a chunk at levels (N,), and which images (N,) are undecided."""
        if not self.randomized:
            verdict = classify(self.defense, chunk.images, chunk.labels, chunk.classes)
            return verdict, torch.zeros_like(verdict.misclassified)
        ballot = self.ballot(chunk, "judge deciding")
        decisions = decide(VERDICT, ballot, levels)
        misclassified = decisions.accepted & ballot.finite
        verdict = Verdict(
            ballot.prediction(misclassified), misclassified, ballot.finite, decisions.draws, _shrunk(decisions)
        )
        return verdict, decisions.undecided

    def estimate(self, chunk: Chunk) -> Tensor:
        """Returns how many (N,) int64 of `estimation_draws` further draws misclassify the N images of a chunk.

        These draws decide nothing. The count is a function of the seed, the sample and the image alone.
        """
        rows, numbers = each_draw(torch.full((len(chunk),), self.estimation_draws, device=chunk.device))
        errors = self.ballot(chunk, "judge estimating")(rows, numbers)
        return torch.bincount(rows[errors], minlength=len(chunk))

    def judge(
        self,
        threat: ThreatModel,
        chunk: Chunk,
        candidates: Tensor,
        seen: Tensor,
        *,
        as_it_is: bool = False,
    ) -> Judged:
        """Judges an attack's candidates (M, n, C, H, W) and the oracle's adversarial examples ``seen`` (S, n, C, H, W).

        Both belong to the n clean images of the chunk.

        With ``as_it_is``, candidates are tested unchanged. Otherwise, candidates are also post-processed where the
        defense binarizes, and moved outward where there is no epsilon. Candidates are tested from the nearest on, until
        one is in bounds, in the ball and misclassified.
        """
        x = chunk.images
        proposed = [without_invalid(x, candidate, threat) for candidate in [*candidates, *seen]]
        outward = threat.epsilon is None and not as_it_is
        tried, threshold = list(proposed), self.defense.card.binarization_threshold
        if threshold is not None and not as_it_is:
            tried += [snap_to_threshold(candidate, x, threshold) for candidate in proposed]
        if outward and not self.randomized:
            tried += [moved_outward(x, candidate, factor) for factor in STRETCHES for candidate in proposed]
        docket = _Docket(self, threat, chunk)
        ranked = by_distance(x, tried, threat)
        if outward and self.randomized:
            ranked = by_distance(x, docket.aimed(ranked), threat)
        for images in ranked:
            docket.test(images)
        return docket.closed(candidates)

    def ballot(self, chunk: Chunk, purpose: str) -> Ballot:
        """Returns a ballot on the images of a chunk for a purpose."""
        return Ballot(self.defense, chunk, seed=self.seed, purpose=purpose)

    def levels(self, chunk: Chunk) -> Tensor:
        """Returns `alpha` (n,) of the samples of a chunk."""
        return self.alpha.to(chunk.device).expand(len(chunk))


class _Docket:
    """A docket: what is known so far about the samples of a chunk. An image equal to the clean one is no candidate."""

    def __init__(self, judge: Judge, threat: ThreatModel, chunk: Chunk) -> None:
        x = chunk.images
        self._judge, self._threat, self._chunk, self._x = judge, threat, chunk, x
        self._levels = (1 - CLEAN_SHARE) * judge.levels(chunk)
        counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._broken, self._undecided = counts.bool(), counts.bool()
        self._images, self._prediction = torch.zeros_like(x), counts - 1
        self._likeliest, self._likely_rate = x.clone(), counts.double() * torch.nan
        self._tests, self._choosing, self._deciding = counts.clone(), counts.clone(), counts.clone()
        self._non_finite = counts.clone()

    def aimed(self, images: Tensor) -> list[Tensor]:
        """Returns images (K, n, C, H, W) moved outward until P is about `AIM`, and a little farther.

        The clean image replaces images that draws rarely misclassify at every factor.
        """
        ranks, rows = differ(images, self._x).nonzero(as_tuple=True)
        base, clean = images[ranks, rows], self._x[rows]
        chosen, best = torch.zeros_like(base[:, 0, 0, 0]), torch.full((len(rows),), 0.5, dtype=torch.float64)
        best = best.to(rows.device)
        short = torch.arange(len(rows), device=rows.device)
        for factor in LADDER:
            reached, rate = self._reaches_aim(rows[short], moved_outward(clean[short], base[short], factor))
            # If no factor reaches the aim, the judge tests the one that came nearest.
            nearer = reached | (rate > best[short])
            chosen[short[nearer]], best[short[nearer]] = factor, rate[nearer]
            short = short[~reached]
        arrived = torch.ones_like(rows, dtype=torch.bool)
        arrived[short] = False
        beyond = (arrived & (chosen > 1)).nonzero()[:, 0]
        lower = torch.tensor([1.0, *LADDER]).to(chosen)
        middle = (chosen[beyond] + lower[torch.searchsorted(lower, chosen[beyond]) - 1]) / 2
        reached, _ = self._reaches_aim(rows[beyond], moved_outward(clean[beyond], base[beyond], middle))
        chosen[beyond[reached]] = middle[reached]
        moved = [self._x.expand_as(images).clone() for _ in FARTHER]
        for farther, place in zip(FARTHER, moved, strict=True):
            place[ranks, rows] = moved_outward(clean, base, farther * chosen)
        return list(torch.cat(moved))

    def _reaches_aim(self, rows: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which images (R, C, H, W) of the samples ``rows`` (R,) reach P of about `AIM` on choosing draws.

        Also returns the rates (R,) at which these draws misclassify the images.
        """
        ballot = self._judge.ballot(self._chunk.select(rows).showing(images), "judge choosing")
        levels = torch.full((len(rows),), CHOICE_ALPHA, dtype=torch.float64, device=rows.device)
        decisions = decide(CHOICE, ballot, levels)
        self._choosing.index_add_(0, rows, decisions.draws)
        rates = _shrunk(decisions)
        self._keep_likeliest(rows, images, rates)
        frequent = decisions.successes >= AIM * decisions.draws
        return ballot.finite & (decisions.accepted | decisions.undecided & frequent), rates

    def test(self, images: Tensor) -> None:
        """Tests the images (n, C, H, W) whose sample is not broken yet."""
        rows = (~self._broken & differ(images, self._x)).nonzero()[:, 0]
        if not len(rows):
            return
        self._tests[rows] += 1
        # The shares 6 / (pi i)^2 of candidates i = 1, 2, ... sum to at most one for any number of candidates.
        levels = self._levels[rows] * 6 / (math.pi * self._tests[rows]) ** 2
        tried = images[rows]
        verdict, undecided = self._judge.verdict(self._chunk.select(rows).showing(tried), levels)
        self._undecided[rows] |= undecided
        self._deciding[rows] += verdict.draws
        self._non_finite[rows] += ~verdict.finite
        self._keep_likeliest(rows, tried, verdict.rate)
        hits = rows[verdict.misclassified]
        self._broken[hits] = True
        self._images[hits] = tried[verdict.misclassified]
        self._prediction[hits] = verdict.prediction[verdict.misclassified]

    def closed(self, candidates: Tensor) -> Judged:
        """Returns the result for an attack's ``candidates`` (M, n, C, H, W), with the errors on further draws."""
        broken, likely = self._broken, ~self._likely_rate.isnan()
        errors, likely_errors = torch.zeros_like(self._tests), torch.zeros_like(self._tests)
        estimating = torch.zeros_like(self._tests)
        if self._judge.randomized:
            errors = self._estimated(self._images, broken)
            likely_errors = self._estimated(self._likeliest, likely)
            estimating = self._judge.estimation_draws * (broken.long() + likely.long())
        final = {
            name: torch.where(broken, norm.distance(self._images, self._x), torch.inf) for name, norm in NORMS.items()
        }
        return Judged(
            broken=broken,
            undecided=self._undecided & ~broken,
            images=self._images,
            prediction=self._prediction,
            errors=errors,
            likeliest=self._likeliest,
            likely_rate=self._likely_rate,
            likely_errors=likely_errors,
            choosing=self._choosing,
            deciding=self._deciding,
            estimating=estimating,
            non_finite=self._non_finite,
            distances=final,
            violation=[
                "" if hit else violation_of(candidates[:, i], self._x[i], self._threat)
                for i, hit in enumerate(broken.tolist())
            ],
        )

    def _estimated(self, images: Tensor, those: Tensor) -> Tensor:
        errors = torch.zeros_like(self._tests)
        rows = those.nonzero()[:, 0]
        errors[rows] = self._judge.estimate(self._chunk.showing(images).select(rows))
        return errors

    def _keep_likeliest(self, rows: Tensor, images: Tensor, rates: Tensor) -> None:
        """Keeps the likeliest image of each sample within the judge's threshold.

        The images (R, C, H, W) belong to the samples ``rows`` (R,) and are misclassified at ``rates`` (R,).
        """
        distances = self._threat.distance(images, self._x[rows])
        rates = rates.where(within(distances, self._judge.threshold), torch.nan).nan_to_num(-1)
        best = self._likely_rate.nan_to_num(-1).scatter_reduce(0, rows, rates, "amax")
        better = (rates == best[rows]) & (rates > self._likely_rate.nan_to_num(-1)[rows])
        places = torch.arange(len(rows), device=rows.device)
        first = torch.full_like(self._tests, len(rows)).scatter_reduce(0, rows[better], places[better], "amin")
        chosen = first[first < len(rows)]
        self._likeliest[rows[chosen]], self._likely_rate[rows[chosen]] = images[chosen], rates[chosen]


def _shrunk(decisions: Decisions) -> Tensor:
    """Returns the share (N,) of successes, shrunk toward one half where there were few draws."""
    return (decisions.successes.double() + 1) / (decisions.draws + 2)
