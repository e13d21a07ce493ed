"""The closest adversarial example of each sample, and when the first one was found."""

import math

import torch

from bench.engine.closest import ClosestFound, nearest_first
from bench.engine.meter import Meter

CPU = torch.device("cpu")


def test_the_closest_is_kept_and_the_passes_up_to_the_first():
    closest, meter = ClosestFound(torch.zeros(2, 1, 1, 1)), Meter(2, 100, 8, None, CPU)
    assert closest.found.tolist() == [False, False]
    assert closest.found_after.tolist() == [math.inf, math.inf]
    for image, distance in ((0.9, 0.9), (0.4, 0.4)):
        meter.pay(torch.tensor([1]), forwards=3)
        closest.keep(torch.full((1, 1, 1, 1), image), torch.tensor([distance]).double(), torch.tensor([1]), meter)
    assert closest.found.tolist() == [False, True]
    assert closest.images.flatten().tolist() == [0, torch.tensor(0.4).item()]
    assert closest.found_after.tolist() == [math.inf, 3]


def test_passes_without_ids_hide_when_it_was_found():
    closest, meter = ClosestFound(torch.zeros(1, 1, 1, 1)), Meter(1, 100, 8, None, CPU)
    meter.pay_together(forwards=5)
    closest.keep(torch.ones(1, 1, 1, 1), torch.ones(1).double(), torch.tensor([0]), meter)
    assert closest.found_after.isnan().all()


def test_rows_are_sorted_by_sample_and_distance():
    ids, distances = torch.tensor([1, 0, 1, 0]), torch.tensor([3.0, 2.0, 1.0, 5.0])
    assert nearest_first(torch.arange(4), distances, ids).tolist() == [1, 3, 2, 0]
    assert nearest_first(torch.tensor([1, 2]), distances, ids).tolist() == [1, 2]
