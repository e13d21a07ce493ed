"""The pieces of Square and Sparse-RS."""

import pytest
import torch
from attack_problems import run

from attacks.parts.gradients import logit_margin
from attacks.sparse_rs import changed, corners, swapped, with_pixels
from attacks.square import edge_of_squares, l2_step, linf_step, to_surface, two_bumps
from bench.contracts.norms import NORMS, within


def images(n, seed=0, channels=2, size=7):
    return torch.rand(n, channels, size, size + 1, generator=torch.Generator().manual_seed(seed)).round(decimals=1)


def uniform(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_wrong_margin_is_positive_where_misclassified():
    assert logit_margin(torch.tensor([[3.0, 1, 2], [3, 1, 5]]), torch.tensor([0, 0])).tolist() == [-1, 2]


def test_squares_shrink_from_their_share_of_the_image_to_one_pixel():
    edges = [edge_of_squares(progress, 0.8, 28, 28) for progress in (0, 0.01, 0.3, 1)]
    assert edges == [25, 13, 3, 1]
    assert edge_of_squares(0, 0.8, 3, 28) == 3


def test_the_pattern_has_length_one_and_two_signs():
    pattern = two_bumps(5)
    assert pattern.norm() == pytest.approx(1)
    assert (pattern[:2] > 0).all()
    assert (pattern[2:] < 0).all()


@pytest.mark.parametrize(("norm", "step"), [("L2", l2_step), ("Linf", linf_step)])
def test_steps_stay_in_balls_of_every_radius(norm, step):
    x, radius = images(50), torch.linspace(0.01, 0.6, 50)
    z = to_surface(x, images(50, seed=2), radius, NORMS[norm])
    moved = step(x, z, radius, 3, uniform(50, 7))
    assert within(NORMS[norm].distance(moved, x), radius.double()).all()
    assert ((moved >= 0) & (moved <= 1)).all()
    assert (moved != z).flatten(1).any(1).all()


def test_a_linf_step_changes_one_square():
    x, radius = images(50), torch.full((50,), 0.2)
    z = to_surface(x, images(50, seed=2), radius, NORMS["Linf"])
    rows = (linf_step(x, z, radius, 3, uniform(50, 7)) != z).any(1)
    assert (rows.any(2).sum(1) <= 3).all()
    assert (rows.any(1).sum(1) <= 3).all()


def test_swaps_keep_the_number_of_changed_pixels_of_each_row():
    x, k = images(56), torch.arange(1, 57)
    z = with_pixels(x, x, k, uniform(56, 4, 7, 8))
    count = torch.minimum(k // 2, 56 - k).clamp_min(1)
    moved = swapped(x, z, count, uniform(56, 3, 7, 8, seed=3))
    assert torch.equal(changed(z, x).flatten(1).sum(1), k)
    assert torch.equal(changed(moved, x).flatten(1).sum(1), k)
    assert (moved != z).flatten(1).any(1)[:-1].all()
    assert torch.equal((changed(z, x) & ~changed(moved, x)).flatten(1).sum(1)[:-1], count[:-1])


def test_fewer_pixels_are_some_of_those_changed_before():
    x = images(4)
    z = with_pixels(x, x, torch.full((4,), 20), uniform(4, 4, 7, 8))
    fewer = with_pixels(x, z, torch.tensor([1, 5, 19, 20]), uniform(4, 4, 7, 8, seed=3))
    assert changed(fewer, x).flatten(1).sum(1).tolist() == [1, 5, 19, 20]
    assert (torch.where(changed(fewer, x)[:, None], fewer == z, True)).all()


def test_corners_are_never_the_clean_pixel():
    x = images(50).round()
    drawn = corners(x, uniform(*x.shape))
    assert changed(drawn, x).all()
    assert torch.equal(drawn, drawn.round())


@pytest.mark.parametrize(("name", "norm"), [("square", "L2"), ("square", "Linf"), ("sparse_rs", "L0")])
def test_more_queries_help(small_net, name, norm):
    parameters = ({"search_steps": 25}, {"search_steps": 100}) if name == "square" else ({"steps": 25}, {"steps": 200})
    few, many = (run(small_net, name, norm, samples=20, **p) for p in parameters)
    assert many.distance.mean() < few.distance.mean()
