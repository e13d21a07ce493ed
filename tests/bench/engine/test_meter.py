"""The meter stops each sample at its budget, and nothing else."""

import time

import pytest
import torch

from bench.contracts.oracle import BudgetExhausted, CellTimeout
from bench.engine.meter import Meter

CPU = torch.device("cpu")


def meter(samples=3, budget=4, batch_size=2, deadline=None):
    return Meter(samples, budget, batch_size, deadline, CPU)


def test_passes_are_counted_for_each_row_of_a_sample():
    counted = meter()
    counted.pay(torch.tensor([0, 0, 2]), forwards=1, backwards=2)
    assert counted.forwards.tolist() == [2, 0, 1]
    assert counted.backwards.tolist() == [4, 0, 2]


def test_passes_without_ids_are_shared():
    counted = meter()
    assert not counted.hides_samples
    counted.pay_together(forwards=6, backwards=3)
    assert counted.forwards.tolist() == [2, 2, 2]
    assert counted.backwards.tolist() == [1, 1, 1]
    assert counted.hides_samples


def test_rows_of_spent_samples_are_refused_and_the_others_come_in_batches():
    counted = meter()
    counted.pay(torch.tensor([1]), forwards=4)
    batches = counted.admit(torch.tensor([0, 1, 2, 2]))
    assert [batch.tolist() for batch in batches] == [[0, 2], [3]]
    assert counted.refused.tolist() == [False, True, False]
    assert counted.affordable(torch.tensor([1, 2])).tolist() == [False, True]


def test_rows_are_refused_after_the_steps_of_the_optimization_that_they_may_take():
    taken = torch.tensor([0.0, 9.0, 10.0])
    counted = Meter(3, 4, 2, None, CPU, inner_budget=10, inner_steps=lambda: taken)
    assert counted.affordable(torch.arange(3)).tolist() == [True, True, False]
    taken += 1
    assert counted.affordable(torch.arange(3)).tolist() == [True, False, False]
    assert counted.refused.tolist() == [False, True, True]


def test_all_rows_come_as_slices():
    assert list(meter().admit(torch.tensor([0, 1, 2]))) == [slice(0, 2), slice(2, 4)]


def test_nothing_is_left_when_all_are_spent():
    counted = meter(samples=1)
    counted.pay_together(forwards=4)
    with pytest.raises(BudgetExhausted):
        counted.admit(torch.tensor([0]))


def test_nothing_is_evaluated_after_the_deadline():
    with pytest.raises(CellTimeout):
        meter(deadline=time.monotonic() - 1).admit(torch.tensor([0]))
