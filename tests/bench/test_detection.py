"""The detector, and attacks on it, where it is known what is possible."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.cards import DefenseCard
from bench.conformance import ClassMeans
from bench.datasets import load_dataset
from bench.detection import Detector, fit_detector, pgd, predictions
from bench.detection_study import judged, measure, norms_of
from bench.protocols import as_defense
from bench.studies import Study

IMAGE = (1, 1, 4)


class Corner(nn.Module):
    """Class 1 where the first pixel is the larger of it and a half; the second pixel is suspicious."""

    def logits(self, x):
        first = x[:, 0, 0, 0]
        return torch.stack([torch.full_like(first, 0.5), first], 1)

    def detection_score(self, x):
        return x[:, 0, 0, 1]


class Means(ClassMeans):
    """Suspects what is far from all class means."""

    def detection_score(self, x):
        return -self.logits(x).amax(1)


def made(model, batch_size=64, **card):
    return as_defense(DefenseCard(name="model", datasets=("none",), batch_size=batch_size, **card), model)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_the_detector_separates_scores_in_any_unit(unit):
    clean, adversarial = unit * torch.linspace(0, 1, 50), unit * torch.linspace(3, 4, 20)
    detector = fit_detector(made(Corner()), clean, adversarial)
    boundary = -detector.bias / detector.weight / unit
    assert 1.3 < boundary < 2.7


def test_both_kinds_weigh_the_same():
    """Where nine in ten are clean, an unweighted regression accepts nearly everything."""
    random = np.random.default_rng(0)
    clean, adversarial = random.normal(0, 1, 9000), random.normal(1, 1, 1000)
    detector = fit_detector(made(Corner()), torch.from_numpy(clean), torch.from_numpy(adversarial))
    assert -detector.bias / detector.weight == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("clean", "adversarial"), [([], [1.0]), ([1.0], []), ([1.0, math.nan], [2.0])])
def test_a_detector_needs_scores_of_both_kinds(clean, adversarial):
    with pytest.raises(ValueError, match=r"none of one kind|not finite"):
        fit_detector(made(Corner()), torch.tensor(clean), torch.tensor(adversarial))


# The margin is .2; being accepted costs the second pixel .15 more, sideways.
MARGIN, EXCESS = 0.2, 0.15
NEEDED = {"L2": {False: MARGIN, True: math.hypot(MARGIN, EXCESS)}, "Linf": {False: MARGIN, True: MARGIN}}


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("factor", [0.97, 1.05])
def test_pgd_finds_what_exists_and_nothing_else(norm, aware, factor):
    defense = made(Corner())
    x, y = torch.tensor([0.5 + MARGIN, 0.5 + EXCESS, 0.5, 0.5]).reshape(1, *IMAGE), torch.tensor([1])
    detector = Detector(defense, weight=10.0, bias=-5.0)
    epsilon = factor * NEEDED[norm][aware]
    found = pgd(defense, x, y, norm, epsilon, start=x, steps=200, detector=detector if aware else None)
    wrong, suspicion = judged(defense, detector, x, found, y, norm, epsilon)
    assert bool(wrong[0] & (suspicion[0] <= 0 if aware else True)) == (factor > 1)


def test_an_attacker_who_knows_no_detector_does_not_mind_it():
    defense = made(Corner())
    x, y = torch.tensor([0.7, 0.65, 0.5, 0.5]).reshape(1, *IMAGE), torch.tensor([1])
    found = pgd(defense, x, y, "L2", 0.22, start=x, steps=50)
    assert predictions(defense, found) == 0
    assert defense.detection_score(found) > 0.6


def test_what_has_left_the_ball_does_not_count():
    defense = made(Corner())
    x, y = torch.full((1, *IMAGE), 0.7), torch.tensor([1])
    wrong, _ = judged(defense, Detector(defense, 1, 0), x, torch.zeros_like(x), y, "Linf", 0.3)
    assert not wrong


# The study.


def studied(epsilon=0.3, batch_size=64, model=None, samples=40):
    dataset = load_dataset("digits")
    defense = made(model or Means(dataset), batch_size)
    study = Study("detection", "digits", "model", "Linf", epsilon, 0, samples, batch_size, None, {})
    return measure(study, defense, dataset, torch.device("cpu"), lambda samples: None).records


def test_a_study_attacks_every_image_with_and_without_knowledge_of_the_detector():
    records = studied()
    assert set(records["status"]) == {"attacked", "clean_error"}
    past = records["fooled"] & (records["adversarial_suspicion"] <= 0)
    refused = records["fooled"] & (records["adversarial_suspicion"] > 0)
    assert records.loc[past, "evaded"].all()
    assert records.loc[refused, "evaded"].any()
    errors = records["status"] == "clean_error"
    assert records.loc[errors & (records["clean_suspicion"] <= 0), "evaded"].all()


def test_the_batch_does_not_matter():
    """But for rounding, which may tip an image that lies at the boundary."""
    one, many = studied(batch_size=7), studied(batch_size=40)
    np.testing.assert_allclose(one["clean_suspicion"], many["clean_suspicion"], rtol=1e-3, atol=1e-3)
    assert (one["evaded"] == many["evaded"]).mean() >= 0.95


def test_a_larger_ball_hides_more():
    assert studied(epsilon=0.05)["evaded"].mean() < studied(epsilon=0.3)["evaded"].mean()


def test_it_applies_to_deterministic_defenses_with_a_score_and_gradients():
    assert norms_of(made(Corner())) == ("L2", "Linf")
    assert norms_of(made(Corner(), access="score")) == ()
    assert norms_of(made(Corner(), randomized=True)) == ()
    assert norms_of(made(ClassMeans(load_dataset("digits")))) == ()


def test_a_defense_that_nothing_fools_has_no_detector_and_no_failed_study():
    records = studied(epsilon=1e-6)
    assert records["clean_suspicion"].isna().all()
    errors = records["status"] == "clean_error"
    assert records.loc[errors, "evaded"].all()


def test_a_score_that_is_not_finite_fails_the_study():
    class Broken(Means):
        def detection_score(self, x):
            return super().detection_score(x) * torch.nan

    with pytest.raises(ValueError, match="not finite"):
        studied(model=Broken(load_dataset("digits")))
