"""Lower bounds: their formulas, and that nothing adversarial lies within them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planned_study import planned_study

import bench
from bench.contracts.cards import DefenseCard
from bench.contracts.protocols import HasLowerBound, LowerBound
from bench.contracts.streams import Streams
from bench.datasets.dataset import Dataset, load_dataset
from bench.plugins.registry import Registry
from bench.studies.bounds import measure, norms_of
from bench.studies.study import COSTS
from bench.training.loading import load_trained, make_defense
from defenses.abs import bounds
from defenses.abs.model import at
from defenses.nearest_neighbour import NearestNeighbour
from defenses.smoothing import CERTIFYING_DRAWS, RandomizedSmoothing

CPU = torch.device("cpu")
positive = st.floats(0.01, 10)


def streams(n, seed=0):
    return Streams(seed, range(n), "test")


# The formulas.


@given(own_error=positive, own_penalty=st.floats(0, 10), distance=positive, penalty=st.floats(0, 10))
def test_the_tighter_bound_is_never_below_the_published_one(own_error, own_penalty, distance, penalty):
    """With any penalty of the other class, its d_c is at most the root of its energy."""
    energy, error = torch.tensor([own_error**2 + own_penalty]), torch.tensor([own_error])
    published = bounds.published_l2(energy, error, torch.tensor([[distance, torch.inf]]))
    tighter = bounds.tighter_l2(energy, error, torch.tensor([[distance**2 + penalty, torch.inf]]))
    assert tighter >= published - 1e-4 * (1 + published.abs())


@given(own_error=positive, own_penalty=st.floats(0, 10), energy=positive)
def test_at_the_tighter_bound_both_estimates_of_the_energies_meet(own_error, own_penalty, energy):
    own_energy = own_error**2 + own_penalty
    if energy <= own_energy:
        return
    bound = bounds.tighter_l2(
        torch.tensor([own_energy], dtype=torch.float64),
        torch.tensor([own_error], dtype=torch.float64),
        torch.tensor([[energy]], dtype=torch.float64),
    ).item()
    assert own_energy + 2 * bound * own_error + bound**2 == pytest.approx((math.sqrt(energy) - bound) ** 2, rel=1e-6)


def test_the_published_bound_by_hand():
    """(9 - 2) / (2 (3 + 1)) for one class, (16 - 2) / (2 (4 + 1)) for the other."""
    bound = bounds.published_l2(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([[3.0, 4.0, torch.inf]]))
    assert bound.tolist() == [pytest.approx(7 / 8)]


def test_scaled_energies_by_hand():
    """Roots 6 = sqrt(4 9) against 2 = sqrt(1 4): (6 - 2) / (2 + 1)."""
    bound = bounds.scaled_l2(torch.tensor([[4.0, 9.0]]), torch.tensor([0]), torch.tensor([1.0, 4.0]))
    assert bound.tolist() == [pytest.approx(4 / 3)]


def test_linf_of_two_points():
    """Classes that can draw one image each, without penalties: black and white, seen from gray .25 with 4 pixels.

    Class y loses at epsilon where (.25 + epsilon)^2 = (.75 - epsilon)^2.
    """

    def white(epsilon):
        return 4 * (0.75 - epsilon).clamp_min(0) ** 2

    bound = bounds.linf(torch.full((1, 4), 0.25), torch.zeros(1), white)
    assert 0.25 - 2.0**-bounds.BISECTIONS <= bound.item() <= 0.25
    wrong = bounds.linf(torch.full((1, 4), 0.9), torch.zeros(1), white)
    assert wrong.item() == 0


def test_pixels_that_must_flip():
    assert bounds.flips(torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.5])).tolist() == [0, 0, 1, 1, 3]
    x = torch.tensor([[[[0.4, 0.9], [0.55, 0.0]]]])
    assert bounds.flipping(x, torch.tensor([2]), 0.5).sum().item() == pytest.approx(0.05 + 0.1)
    assert bounds.flipping(x, torch.tensor([0]), 0.5).sum() == 0


# The defenses.


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.mark.parametrize("name", ["nearest_neighbour", "abs", "binary_abs", "randomized_smoothing:cnn_gaussian"])
def test_no_perturbation_inside_the_bound_changes_the_class(name, digits):
    """Random directions, and the one towards the nearest image of another class, at just under the bound."""
    defense = load_trained(name, digits, Registry(), 0, CPU).defense
    x, y = digits.test.images[:12], digits.test.labels[:12]
    train, labels = digits.train.images, digits.train.labels
    other = torch.stack(
        [
            train[labels != label][(train[labels != label] - image).flatten(1).norm(dim=1).argmin()]
            for image, label in zip(x, y, strict=True)
        ]
    )
    generator = torch.Generator().manual_seed(0)
    draws = 100 if defense.card.randomized else 1
    for norm in defense.bound_norms:
        bound = defense.lower_bound(x, y, norm, streams(12)).values.clamp_min(0)
        assert (bound > 0).any()
        for direction in [*(torch.randn(x.shape, generator=generator) for _ in range(5)), other - x]:
            if norm == "L0":
                continue
            flat = direction.flatten(1)
            length = flat.norm(dim=1) if norm == "L2" else flat.abs().amax(1)
            moved = x + (0.99 * bound / length).reshape(-1, 1, 1, 1) * direction
            hits = torch.zeros(12)
            for seed in range(draws):
                rng = [streams(12, seed).rows(torch.arange(12))] if defense.card.randomized else []
                hits += defense.logits(moved, *rng).argmax(1) == y
            assert (hits[bound > 0] > draws / 2).all()


def test_nearest_neighbours_bound_is_met_between_two_images():
    """Two prototypes: the certificate is the distance to the plane between them for an image on their line."""
    model = NearestNeighbour(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([0, 1]), 2)
    bound = model.lower_bound(
        torch.tensor([0.2, 0.5, 0.9]).reshape(3, 1, 1, 1), torch.tensor([0, 0, 0]), "L2", streams(3)
    )
    torch.testing.assert_close(bound.values, torch.tensor([0.3, 0.0, -0.4]))
    assert bound.certificate


@pytest.mark.parametrize("name", ["abs", "eabs", "abs:ju2020", "a_abs", "v_abs"])
def test_estimates_of_latent_classifiers_hold_for_their_own_energies(name):
    """At random perturbations of the bound's length, energies obey the inequalities that the bound is made of."""
    torch.manual_seed(0)
    dataset = Dataset("digits", 10, (1, 8, 8))
    model = make_defense(name, dataset, Registry()).defense
    x, y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 2, 3, 4])
    assert isinstance(model, HasLowerBound)
    energies, errors = model.minima(x)
    assert (at(energies, y) >= at(errors, y).square().sum(1) - 1e-4).all()
    delta = 0.3 * torch.nn.functional.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(2)))
    moved, _ = model.minima(x + delta.view_as(x))
    root = energies.sqrt()
    assert (moved.sqrt() <= root + 0.3 + 1e-3).all()
    assert (moved.sqrt() >= root - 0.3 - 1e-3).all()
    tighter = model.lower_bound(x, y, "L2", streams(4))
    assert not tighter.certificate
    assert "5 starts" in tighter.note
    assert (model.published_l2_bound(x, y) <= tighter.values + 1e-4).all()


def test_the_radius_of_randomized_smoothing_by_hand():
    """A base that names class 0 left of zero: the smoothed class is left at probability Phi(distance / sigma)."""

    class Sign(torch.nn.Module):
        card = DefenseCard(name="sign", datasets=("digits",))

        def logits(self, x):
            return torch.stack([-x.flatten(1)[:, 0], x.flatten(1)[:, 0]], 1)

    model = RandomizedSmoothing(Sign(), sigma=0.5)
    x = torch.tensor([-0.5, -5.0, 0.5]).reshape(3, 1, 1, 1)
    bound = model.lower_bound(x, torch.zeros(3, dtype=torch.int64), "L2", streams(3))
    values = bound.values.tolist()
    assert 0.33 < values[0] < 0.5
    # All draws hit: the bound is that of (alpha)^(1 / n).
    p = 0.001 ** (1 / CERTIFYING_DRAWS)
    assert values[1] == pytest.approx(0.5 * torch.special.ndtri(torch.tensor(p)).item(), rel=1e-3)
    assert values[2] == 0
    assert bound.certificate
    assert "0.001" in bound.note


def test_defenses_without_bounds_have_no_study(digits):
    assert norms_of(make_defense("cnn", digits, Registry()).defense) == ()


def test_a_pixel_of_binary_abs_may_flip_in_every_channel():
    """L0 counts pixels: the values that must flip, in groups of three."""
    torch.manual_seed(0)
    model = make_defense("binary_abs", Dataset("cifar2", 2, (3, 32, 32)), Registry()).defense
    model.setting = replace(model.setting, search=replace(model.setting.search, starts=20, iterations=3))
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    values = bounds.flips(model.binary_bound(x, y))
    pixels = model.lower_bound(x, y, "L0", streams(2)).values
    assert pixels.tolist() == [math.ceil(value / 3) for value in values.tolist()]
    assert pixels.max() > 0


@pytest.mark.slow
def test_the_released_models_mean_bounds_are_those_of_the_notes(data_dir):
    """Every 50th image from 7 on: eq. 8 .576 +- .012 and the tighter bound 1.021 +- .012 on all 1000 (abs-notes)."""
    dataset = load_dataset("mnist", data_dir)
    model = bench.load_defense("abs:schott2019", "mnist", data_dir=data_dir, device="cpu")
    x, y = dataset.test.images[7::50], dataset.test.labels[7::50]
    tighter = model.lower_bound(x, y, "L2", streams(len(x))).values.clamp_min(0)
    published = model.published_l2_bound(x, y).clamp_min(0)
    assert (published <= tighter + 1e-4).all()
    for values, mean in ((tighter, 1.021), (published, 0.576)):
        assert abs(values.mean() - mean) < 3 * values.std() / math.sqrt(len(values))


def test_a_study_holds_one_record_per_sample(digits):
    study = planned_study("lower_bound", defense="nearest_neighbour", norm="L2", samples=10, batch_size=4)
    defense = load_trained("nearest_neighbour", digits, Registry(), 0, CPU).defense
    seen = []
    frame = measure(study, defense, digits, CPU, seen.append).records
    assert seen == [4, 4, 2]
    assert frame["sample"].tolist() == list(range(10))
    assert frame["certificate"].all()
    assert (frame["lower_bound"] >= 0).all()
    # It compares images, and asks for no logits.
    assert (frame[list(COSTS)] == 0).all(axis=None)
    expected = defense.lower_bound(digits.test.images[:10], digits.test.labels[:10], "L2", streams(10)).values
    assert frame["lower_bound"].tolist() == pytest.approx(expected.clamp_min(0).tolist(), rel=1e-5)


def test_a_study_counts_the_passes_that_a_bound_takes(digits):
    defense = load_trained("randomized_smoothing:cnn_gaussian", digits, Registry(), 0, CPU).defense
    study = planned_study(
        "lower_bound", defense="randomized_smoothing:cnn_gaussian", norm="L2", samples=3, batch_size=2
    )
    frame = measure(study, defense, digits, CPU, lambda samples: None).records
    assert (frame["forwards"] == CERTIFYING_DRAWS).all()
    assert (frame[["backwards", "inner_steps"]] == 0).all(axis=None)


def test_a_bound_that_writes_on_its_images_leaves_the_data_alone(digits):
    class Careless:
        bound_norms = ("L2",)

        def lower_bound(self, x, y, norm, streams):
            return LowerBound(x.fill_(1).mean((1, 2, 3)), certificate=False)

    before = digits.test.images.clone()
    study = planned_study("lower_bound", defense="careless", norm="L2", samples=3, batch_size=2)
    frame = measure(study, Careless(), digits, CPU, lambda samples: None).records
    assert frame["lower_bound"].tolist() == [1, 1, 1]
    assert torch.equal(digits.test.images, before)
