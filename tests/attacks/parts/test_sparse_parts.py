"""The pieces of the attacks that change few pixels: sigma-zero and VFGA."""

import torch
from attack_problems import Problem, run

from attacks.sigma_zero import SIGMA, smooth_l0_gradient, undo_small
from attacks.vfga import expected_moves
from bench.contracts.cards import DefenseCard


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_smooth_l0_norm_counts_a_pixel_of_several_channels_once():
    delta = (images(2, 3, 4, 4) - 0.5).double().requires_grad_(True)
    squared = delta.square().sum(1)
    (squared / (squared + SIGMA)).mean((1, 2)).sum().backward()
    assert torch.allclose(smooth_l0_gradient(delta.detach()), delta.grad)


def test_small_changes_are_undone_by_pixels():
    """The largest channel decides for all of a pixel's."""
    x = torch.zeros(1, 2, 1, 3)
    z = torch.tensor([[[0.1, 0.5, 0.0]], [[0.2, 0.1, 0.3]]])[None]
    assert undo_small(x, z, torch.tensor([0.3])).tolist() == [[[[0, 0.5, 0.0]], [[0, z[0, 1, 0, 1], z[0, 1, 0, 2]]]]]


def test_moves_reach_to_the_end_of_the_range_and_only_where_they_help():
    z, gradient = torch.tensor([0.2, 0.2]).reshape(1, 1, 1, 2), torch.tensor([3.0, -3.0]).reshape(1, 1, 1, 2)
    upwards, downwards = expected_moves(gradient, torch.stack([1 - z, -z], 1))[0]
    assert torch.equal(upwards.flatten(), torch.tensor([0.8, 0.0]))
    assert torch.equal(downwards.flatten(), torch.tensor([0.0, -0.2]))


class Scaled:
    """Another defense's logits, times a number."""

    card = DefenseCard(name="scaled", datasets=("random",))

    def __init__(self, defense, factor):
        self.defense, self.factor = defense, factor

    def logits(self, x):
        return self.factor * self.defense.logits(x)


def test_the_logits_scale_does_not_matter_to_sigma_zero(linear):
    problem = Problem(Scaled(linear.defense, 2.0**-20), linear.x, linear.y, linear.classes, linear.pool)
    expected = run(linear, "sigma_zero", "L0", steps=40).distance
    assert torch.equal(run(problem, "sigma_zero", "L0", steps=40).distance, expected)


def test_sigma_zero_needs_fewer_passes_than_pointwise_on_many_pixels():
    """784 pixels of which each moves the logits a little: Pointwise asks about single ones, a gradient about all."""
    generator = torch.Generator().manual_seed(0)
    x, weight = images(8, 1, 28, 28), torch.randn(10, 784, generator=generator)

    class Linear(Scaled):
        def __init__(self):
            pass

        def logits(self, x):
            return x.flatten(1) @ weight.T

    y = Linear().logits(x).argmax(1)
    problem = Problem(Linear(), x, y, 10, (x, y))
    sparse = run(problem, "sigma_zero", "L0")
    pointwise = run(problem, "pointwise_10x", "L0")
    assert sparse.distance.mean() <= pointwise.distance.mean()
    assert (sparse.forwards + sparse.backwards).mean() <= 0.6 * pointwise.forwards.mean()
