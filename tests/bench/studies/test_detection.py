"""The detector, and attacks on it, where it is known what is possible."""

import math

import numpy as np
import pytest
import torch
from planned_study import planned_study
from torch import nn

from bench.conformance.checks import ClassMeans
from bench.contracts.cards import DefenseCard
from bench.contracts.chunk import Chunk
from bench.contracts.protocols import as_defense
from bench.contracts.threat import ThreatModel
from bench.datasets.dataset import load_dataset
from bench.engine.ballot import classify
from bench.studies.detection import Examiner, measure, norms_of
from bench.studies.detectors import Detector, evade, fit_detector, mislead
from bench.studies.queries import spent, study_oracle
from bench.studies.study import COSTS

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
    detector = fit_detector(clean, adversarial)
    boundary = -detector.bias / detector.weight / unit
    assert 1.3 < boundary < 2.7


def test_both_kinds_weigh_the_same():
    """Where nine in ten are clean, an unweighted regression accepts nearly everything."""
    random = np.random.default_rng(0)
    clean, adversarial = random.normal(0, 1, 9000), random.normal(1, 1, 1000)
    detector = fit_detector(torch.from_numpy(clean), torch.from_numpy(adversarial))
    assert -detector.bias / detector.weight == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("clean", "adversarial"), [([], [1.0]), ([1.0], []), ([1.0, math.nan], [2.0])])
def test_a_detector_needs_scores_of_both_kinds(clean, adversarial):
    with pytest.raises(ValueError, match=r"none of one kind|not finite"):
        fit_detector(torch.tensor(clean), torch.tensor(adversarial))


# The margin is .2; being accepted costs the second pixel .15 more, sideways.
MARGIN, EXCESS = 0.2, 0.15
NEEDED = {"L2": {False: MARGIN, True: math.hypot(MARGIN, EXCESS)}, "Linf": {False: MARGIN, True: MARGIN}}


def asked(defense, x, y, norm, epsilon):
    threat = ThreatModel(norm, epsilon)
    return study_oracle(defense, "gradient", threat, Chunk(x, y, range(len(x)), 2), seed=0, purpose="test")


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("factor", [0.97, 1.05])
def test_the_attacks_find_what_exists_and_nothing_else(norm, aware, factor):
    defense, detector = made(Corner()), Detector(weight=10.0, bias=-5.0)
    x, y = torch.tensor([0.5 + MARGIN, 0.5 + EXCESS, 0.5, 0.5]).reshape(1, *IMAGE), torch.tensor([1])
    oracle = asked(defense, x, y, norm, factor * NEEDED[norm][aware])
    if aware:
        found = evade(oracle, x, y, oracle.ids, detector, start=x, steps=200)
    else:
        found = mislead(oracle, x, y, oracle.ids, start=x, steps=200)
    examiner = Examiner(defense, oracle.threat, 2)
    accepted = not aware or examiner.suspicion(detector, found) <= 0
    assert bool(examiner.fooled(found, x, y) & accepted) == (factor > 1)


def test_an_attacker_who_knows_no_detector_does_not_mind_it():
    defense = made(Corner())
    x, y = torch.tensor([0.7, 0.65, 0.5, 0.5]).reshape(1, *IMAGE), torch.tensor([1])
    oracle = asked(defense, x, y, "L2", 0.22)
    found = mislead(oracle, x, y, oracle.ids, start=x, steps=50)
    assert Examiner(defense, oracle.threat, 2).fooled(found, x, y)
    assert defense.detection_score(found) > 0.6
    assert oracle.found


def test_what_is_misclassified_and_accepted_is_asked_about_once():
    """The first image is both from the start, the second needs a way of .2 for which each step is a tenth of it."""
    x = torch.tensor([[0.4, 0.2, 0.5, 0.5], [0.7, 0.2, 0.5, 0.5]]).reshape(2, *IMAGE)
    oracle = asked(made(Corner()), x, torch.tensor([1, 1]), "Linf", 0.3)
    found = evade(oracle, x, torch.tensor([1, 1]), oracle.ids, Detector(10.0, -5.0), start=x, steps=75)
    assert torch.equal(found[0], x[0])
    costs = spent(oracle)
    # One query of the margin and one of the score, each a forward and a backward pass.
    assert costs.loc[0, ["forwards", "backwards"]].tolist() == [2, 2]
    assert 20 <= costs.loc[1, "forwards"] < 30


def test_what_has_left_the_ball_does_not_count():
    x, y = torch.full((1, *IMAGE), 0.7), torch.tensor([1])
    examiner = Examiner(made(Corner()), ThreatModel("Linf", 0.3), 2)
    assert not examiner.fooled(torch.zeros_like(x), x, y)
    assert examiner.fooled(torch.full_like(x, 0.4), x, y)


def test_verdicts_are_taken_in_batches_of_the_cards_size():
    """Float arithmetic depends on the batch shape."""
    seen = []

    class Watched(Corner):
        def logits(self, x):
            seen.append(len(x))
            return super().logits(x)

        def detection_score(self, x):
            seen.append(len(x))
            return super().detection_score(x)

    examiner, x = Examiner(made(Watched(), batch_size=4), ThreatModel("Linf", 1), 2), torch.rand(6, *IMAGE)
    fooled, scores = examiner.fooled(x, x, torch.ones(6, dtype=torch.int64)), examiner.scores(x)
    assert seen == [4, 4, 4, 4]
    assert torch.equal(fooled, x[:, 0, 0, 0] <= 0.5)
    assert torch.equal(scores, x[:, 0, 0, 1])


# The study.


def studied(epsilon=0.3, batch_size=64, model=None, samples=40):
    dataset = load_dataset("digits")
    defense = made(model or Means(dataset), batch_size)
    study = planned_study("detection", norm="Linf", epsilon=epsilon, samples=samples, batch_size=batch_size)
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


def test_records_say_what_the_attacks_spent_and_the_training_of_the_detector():
    """Each of 500 training images takes 40 steps, divided among 40 test images; these take 40 steps or more."""
    costs = studied()[list(COSTS)]
    assert (costs["forwards"] == costs["backwards"]).all()
    assert costs["forwards"].min() == 40 + 500 * 40 / 40
    assert costs["forwards"].max() <= costs["forwards"].min() + 3 * 2 * 200
    assert (costs["inner_steps"] == 0).all()


def test_an_image_is_fooled_where_the_judge_says_so():
    """A defense whose answer hangs on the batch's shape is judged in batches of its card's size, as in cells."""

    class Shaped(Means):
        def logits(self, x):
            return super().logits(x) if len(x) == 16 else super().logits(1 - x)

    records = studied(model=Shaped(load_dataset("digits")), batch_size=16)
    test = load_dataset("digits").test
    x, y = test.images[:40], test.labels[:40]
    judged = classify(made(Means(load_dataset("digits")), 16), x, y, 10)
    assert ((records["status"] == "clean_error").to_numpy() == judged.misclassified.numpy()).all()


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
