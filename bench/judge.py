"""The judge: decides, on fresh forward passes, whether a candidate is adversarial and how far away it is.

Nothing that an attack claims is recorded unchecked.

A randomized defense is broken by an image that it misclassifies with probability P of at least one half. The judge
chooses candidates on one set of draws and decides on another that nothing has seen, by a test that is valid at every
look. The error ``alpha`` of a sample is split over its clean image and all candidates that are put to the test. So the
probability that a cell records a sample as broken by an image with P below one half is at most alpha, for every attack
that learns of the draws through the oracle alone. Code that computes the judge's streams itself can search for lucky
images: only their keys, the images' own bytes, stand in its way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.ballot import Ballot, Verdict, classify
from bench.norms import NORMS, Norm, within
from bench.protocols import Defense
from bench.threat import ThreatModel, distance, snap_to_threshold
from bench.verdicts import Decisions, SequentialTest, decide, each_draw

ALPHA = 0.001
"""Probability at most that a sample is recorded as broken by an image with P below one half."""
CLEAN_SHARE = 0.1
"""Of alpha, what the verdict on the clean image may spend; its candidates share the rest."""
VERDICT = SequentialTest(null=0.5, alternative=0.65, beta=0.01, max_draws=400)
"""Accepts an image as adversarial, or gives it up."""
CHOICE = SequentialTest(null=0.6, alternative=0.8, beta=0.1, max_draws=40)
"""Chooses a stretch: one with P of about `AIM`, which the verdict can accept."""
CHOICE_ALPHA = 0.2
AIM = 0.7
STRETCHES = (1.001, 1.005, 1.02, 1.1)
"""Factors by which minimal perturbations on deterministic defenses are also tried: an attack ends just outside the
boundary, where another float order can undo it."""
LADDER = (1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.45, 1.7, 2.0)
"""Factors among which the stretch of a minimal perturbation on a randomized defense is chosen."""
FARTHER = (1.0, 1.1, 1.25)
"""Factors on a chosen stretch that are put to the test one after the other, where the nearer one is not accepted."""


@dataclass(frozen=True)
class CleanVerdict(Verdict):
    """The verdict on clean images, with ``errors`` (N,) int64 among the further draws of `Judge.estimate`."""

    errors: Tensor


@dataclass(frozen=True)
class Judged:
    """The nearest candidate of each sample that holds, and what was spent on finding it.

    Attributes:
        broken: (n,) whether one holds.
        undecided: (n,) whether none holds, and one that was tested was neither accepted nor given up.
        images: (n, C, H, W) the one that holds; zeros where none does.
        prediction: (n,) its class; -1 where none holds.
        errors: (n,) int64, of it, among the further draws of `Judge.estimate`; 0 where none holds.
        likeliest: (n, C, H, W) the image within the judge's threshold that choosing and deciding draws misclassified
            most often; the clean image where there is none.
        likely_rate: (n,) float64 how often, as `Verdict.rate`; NaN where ``likeliest`` is the clean image.
        likely_errors: (n,) int64, of it, among the further draws of `Judge.estimate`; 0 where it is the clean image.
        choosing: (n,) int64 draws for choosing, over all candidates; 0 for a deterministic defense, as the next.
        deciding: (n,) int64 draws for deciding.
        estimating: (n,) int64 further draws.
        non_finite: (n,) int64 candidates dropped because their logits were not finite.
        distances: float64 (n,) per norm; infinity where none holds.
        violation: per sample why the attack's own candidates break the rules, or "".
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
    distances: dict[Norm, Tensor]
    violation: list[str]


@dataclass(frozen=True)
class Judge:
    """Judges images of one defense.

    Attributes:
        defense: as it is queried, in batches of exactly its card's size.
        classes: number of classes.
        seed: of all draws of a randomized defense. Each draw is a function of it, the purpose, the sample, the image's
            bytes and the draw's number.
        alpha: see `ALPHA`; float64, one number or one for each sample (n,). What the clean image may spend does not
            depend on it: its verdict is the same in all cells.
        estimation_draws: further draws on the nearest broken image and on the likeliest one.
        threshold: radius, in the norm under attack, within which the likeliest image is looked for.
    """

    defense: Defense
    classes: int
    seed: int
    alpha: Tensor
    estimation_draws: int
    threshold: float

    @property
    def randomized(self) -> bool:
        """Whether the defense is."""
        return self.defense.card.randomized

    def clean(self, x: Tensor, y: Tensor, samples: Sequence[int]) -> CleanVerdict:
        """The verdict on clean images ``x`` (N, C, H, W) of labels ``y`` (N,), which are those ``samples``."""
        verdict, _ = self.verdict(x, y, samples, x.new_full((len(x),), CLEAN_SHARE * ALPHA, dtype=torch.float64))
        errors = self.estimate(x, y, samples) if self.randomized else torch.zeros_like(y)
        return CleanVerdict(**vars(verdict), errors=errors)

    def verdict(self, x: Tensor, y: Tensor, samples: Sequence[int], levels: Tensor) -> tuple[Verdict, Tensor]:
        """The verdict on images ``x`` (N, C, H, W) at levels (N,), and which (N,) are undecided."""
        if not self.randomized:
            verdict = classify(self.defense, x, y, self.classes)
            return verdict, torch.zeros_like(verdict.misclassified)
        ballot = self.ballot(x, y, samples, "judge deciding")
        decisions = decide(VERDICT, ballot, levels)
        misclassified = decisions.accepted & ballot.finite
        verdict = Verdict(
            ballot.prediction(misclassified), misclassified, ballot.finite, decisions.draws, _shrunk(decisions)
        )
        return verdict, decisions.undecided

    def estimate(self, x: Tensor, y: Tensor, samples: Sequence[int]) -> Tensor:
        """How many (N,) int64 of `estimation_draws` draws that decided nothing misclassify images ``x`` (N, C, H, W):
        a function of the seed, the sample and the image alone."""
        rows, numbers = each_draw(torch.full((len(x),), self.estimation_draws, device=x.device))
        errors = self.ballot(x, y, samples, "judge estimating")(rows, numbers)
        return torch.bincount(rows[errors], minlength=len(x))

    def judge(
        self,
        threat: ThreatModel,
        x: Tensor,
        y: Tensor,
        samples: Sequence[int],
        candidates: Tensor,
        seen: Tensor,
        *,
        as_it_is: bool = False,
    ) -> Judged:
        """Judges an attack's candidates (M, n, C, H, W) and the adversarials ``seen`` (S, n, C, H, W) by the oracle.

        Unless a candidate counts ``as_it_is``, it is also tried post-processed where the defense binarizes, and moved
        outward where there is no epsilon. The nearest comes first, until one is in bounds, in the ball and
        misclassified.
        """
        proposed = [_replace_invalid(x, candidate, threat) for candidate in [*candidates, *seen]]
        outward = threat.epsilon is None and not as_it_is
        tried, threshold = list(proposed), self.defense.card.binarization_threshold
        if threshold is not None and not as_it_is:
            tried += [snap_to_threshold(candidate, x, threshold) for candidate in proposed]
        if outward and not self.randomized:
            tried += [_outward(x, candidate, factor) for factor in STRETCHES for candidate in proposed]
        docket = _Docket(self, threat, x, y, samples)
        ranked = _nearest_first(x, tried, threat)
        if outward and self.randomized:
            ranked = _nearest_first(x, docket.aimed(ranked), threat)
        for images in ranked:
            docket.test(images)
        return docket.closed(candidates)

    def ballot(self, x: Tensor, y: Tensor, samples: Sequence[int], purpose: str) -> Ballot:
        """Draws on images ``x`` (N, C, H, W) for a purpose."""
        return Ballot(self.defense, self.classes, x, y, samples, seed=self.seed, purpose=purpose)

    def levels(self, x: Tensor) -> Tensor:
        """`alpha` of each of the samples whose images are ``x`` (n, C, H, W)."""
        return self.alpha.to(x.device).expand(len(x))


class _Docket:
    """What has been found out about the samples of a chunk so far; an image equal to the clean one is no candidate."""

    def __init__(self, judge: Judge, threat: ThreatModel, x: Tensor, y: Tensor, samples: Sequence[int]) -> None:
        self._judge, self._threat, self._x, self._y, self._samples = judge, threat, x, y, samples
        self._levels = (1 - CLEAN_SHARE) * judge.levels(x)
        counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._broken, self._undecided = counts.bool(), counts.bool()
        self._images, self._prediction = torch.zeros_like(x), counts - 1
        self._likeliest, self._likely_rate = x.clone(), counts.double() * torch.nan
        self._tests, self._choosing, self._deciding = counts.clone(), counts.clone(), counts.clone()
        self._non_finite = counts.clone()

    def aimed(self, images: Tensor) -> list[Tensor]:
        """Images (K, n, C, H, W) moved outward until P is about `AIM`, and a little farther. The clean image takes the
        place of those that draws rarely misclassify at every factor."""
        ranks, rows = _differ(images, self._x).nonzero(as_tuple=True)
        base, clean = images[ranks, rows], self._x[rows]
        chosen, best = torch.zeros_like(base[:, 0, 0, 0]), torch.full((len(rows),), 0.5, dtype=torch.float64)
        best = best.to(rows.device)
        short = torch.arange(len(rows), device=rows.device)
        for factor in LADDER:
            reached, rate = self._reaches_aim(rows[short], _outward(clean[short], base[short], factor))
            # Where no factor reaches the aim, the one that came nearest is put to the test.
            nearer = reached | (rate > best[short])
            chosen[short[nearer]], best[short[nearer]] = factor, rate[nearer]
            short = short[~reached]
        arrived = torch.ones_like(rows, dtype=torch.bool)
        arrived[short] = False
        beyond = (arrived & (chosen > 1)).nonzero()[:, 0]
        lower = torch.tensor([1.0, *LADDER]).to(chosen)
        middle = (chosen[beyond] + lower[torch.searchsorted(lower, chosen[beyond]) - 1]) / 2
        reached, _ = self._reaches_aim(rows[beyond], _outward(clean[beyond], base[beyond], middle))
        chosen[beyond[reached]] = middle[reached]
        moved = [self._x.expand_as(images).clone() for _ in FARTHER]
        for farther, place in zip(FARTHER, moved, strict=True):
            place[ranks, rows] = _outward(clean, base, farther * chosen)
        return list(torch.cat(moved))

    def _reaches_aim(self, rows: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which images (R, C, H, W) of the samples ``rows`` (R,) have P of about `AIM` or more on choosing draws, and
        the rates (R,) at which these misclassify."""
        ballot = self._judge.ballot(images, self._y[rows], self._names(rows), "judge choosing")
        levels = torch.full((len(rows),), CHOICE_ALPHA, dtype=torch.float64, device=rows.device)
        decisions = decide(CHOICE, ballot, levels)
        self._choosing.index_add_(0, rows, decisions.draws)
        rates = _shrunk(decisions)
        self._keep_likeliest(rows, images, rates)
        frequent = decisions.successes >= AIM * decisions.draws
        return ballot.finite & (decisions.accepted | decisions.undecided & frequent), rates

    def test(self, images: Tensor) -> None:
        """Puts to the test those of the images (n, C, H, W) whose sample is not broken yet."""
        rows = (~self._broken & _differ(images, self._x)).nonzero()[:, 0]
        if not len(rows):
            return
        self._tests[rows] += 1
        # The shares 6 / (pi i)^2 of the candidates i = 1, 2, ... sum to one, however many there are.
        levels = self._levels[rows] * 6 / (math.pi * self._tests[rows]) ** 2
        tried = images[rows]
        verdict, undecided = self._judge.verdict(tried, self._y[rows], self._names(rows), levels)
        self._undecided[rows] |= undecided
        self._deciding[rows] += verdict.draws
        self._non_finite[rows] += ~verdict.finite
        self._keep_likeliest(rows, tried, verdict.rate)
        hits = rows[verdict.misclassified]
        self._broken[hits] = True
        self._images[hits] = tried[verdict.misclassified]
        self._prediction[hits] = verdict.prediction[verdict.misclassified]

    def closed(self, candidates: Tensor) -> Judged:
        """The result, with what further draws say of it, for an attack's ``candidates`` (M, n, C, H, W)."""
        broken, likely = self._broken, ~self._likely_rate.isnan()
        errors, likely_errors = torch.zeros_like(self._tests), torch.zeros_like(self._tests)
        estimating = torch.zeros_like(self._tests)
        if self._judge.randomized:
            errors = self._estimated(self._images, broken)
            likely_errors = self._estimated(self._likeliest, likely)
            estimating = self._judge.estimation_draws * (broken.long() + likely.long())
        final = {norm: torch.where(broken, distance(self._images, self._x, norm), torch.inf) for norm in NORMS}
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
                "" if hit else _violation(candidates[:, i], self._x[i], self._threat)
                for i, hit in enumerate(broken.tolist())
            ],
        )

    def _estimated(self, images: Tensor, those: Tensor) -> Tensor:
        errors = torch.zeros_like(self._tests)
        rows = those.nonzero()[:, 0]
        errors[rows] = self._judge.estimate(images[rows], self._y[rows], self._names(rows))
        return errors

    def _names(self, rows: Tensor) -> list[int]:
        """The samples in the dataset that rows of the chunk are."""
        return [self._samples[row] for row in rows.tolist()]

    def _keep_likeliest(self, rows: Tensor, images: Tensor, rates: Tensor) -> None:
        """Keeps, of images (R, C, H, W) of the samples ``rows`` (R,), the likeliest within the judge's threshold."""
        distances = self._threat.distance(images, self._x[rows])
        rates = rates.where(within(distances, self._judge.threshold), torch.nan).nan_to_num(-1)
        best = self._likely_rate.nan_to_num(-1).scatter_reduce(0, rows, rates, "amax")
        better = (rates == best[rows]) & (rates > self._likely_rate.nan_to_num(-1)[rows])
        places = torch.arange(len(rows), device=rows.device)
        first = torch.full_like(self._tests, len(rows)).scatter_reduce(0, rows[better], places[better], "amin")
        chosen = first[first < len(rows)]
        self._likeliest[rows[chosen]], self._likely_rate[rows[chosen]] = images[chosen], rates[chosen]


def _shrunk(decisions: Decisions) -> Tensor:
    """The share (N,) of successes, drawn towards one half where there were few draws."""
    return (decisions.successes.double() + 1) / (decisions.draws + 2)


def _nearest_first(x: Tensor, images: Sequence[Tensor], threat: ThreatModel) -> Tensor:
    """Images (K, n, C, H, W), the nearest of each sample first; copies of the one before are replaced by ``x``, and
    stand behind all others where they equal it."""
    stacked = torch.stack(list(images))
    distances = torch.stack([threat.distance(each, x) for each in stacked])
    order = distances.masked_fill(distances == 0, torch.inf).argsort(dim=0, stable=True)
    ranked = stacked[order, torch.arange(len(x), device=x.device)]
    copies = ~_differ(ranked[1:], ranked[:-1])
    ranked[1:][copies] = x.expand_as(ranked[1:])[copies]
    return ranked


def _outward(x: Tensor, candidate: Tensor, factor: float | Tensor) -> Tensor:
    """Candidates (N, C, H, W) moved along the lines from ``x`` to ``factor`` (N,) times their distance, in [0, 1]."""
    scale = torch.as_tensor(factor, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
    return torch.where(scale == 1, candidate, (x + scale * (candidate - x)).clamp(0, 1))


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Which images of (..., C, H, W) differ."""
    return (a != b).flatten(-3).any(-1)


def _replace_invalid(x: Tensor, candidate: Tensor, threat: ThreatModel) -> Tensor:
    """The rows of ``candidate`` that are finite, in [0, 1] and in the ball; those of ``x``, which is never adversarial,
    for the others."""
    pixels = candidate.flatten(1)
    in_range = torch.isfinite(pixels).all(1) & (pixels >= 0).all(1) & (pixels <= 1).all(1)
    lawful = in_range & threat.allows(threat.distance(torch.nan_to_num(candidate), x))
    return torch.where(lawful.reshape(-1, 1, 1, 1), candidate, x)


def _violation(candidates: Tensor, x: Tensor, threat: ThreatModel) -> str:
    """Why an attack's candidates (M, C, H, W) for the image ``x`` (C, H, W) break the rules, or ""."""
    if not len(candidates):
        return ""
    if not torch.isfinite(candidates).all():
        return "non_finite"
    if (candidates < 0).any() or (candidates > 1).any():
        return "out_of_range"
    # A ball of radius 0 holds no other image.
    if (candidates == x).all():
        return "" if threat.epsilon == 0 else "unperturbed"
    if threat.epsilon is not None:
        distances = threat.distance(candidates, x.expand_as(candidates))
        if not threat.allows(distances).all():
            return "out_of_ball"
    return ""
