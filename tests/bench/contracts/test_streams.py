"""Each sample's random numbers are its own."""

import pytest
import torch

from bench.contracts.streams import Streams

ALL = torch.arange(4)
DRAWS = {
    "normal": lambda s, ids: s.normal(ids, (2, 3)),
    "uniform": lambda s, ids: s.uniform(ids, (2, 3)),
    "permutation": lambda s, ids: s.permutation(ids, 6),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_a_sample_draws_the_same_alone_in_company_and_in_any_order(draw):
    together = draw(Streams(1, [10, 11, 12, 13], "attack"), ALL)
    reversed_order = draw(Streams(1, [10, 11, 12, 13], "attack"), ALL.flip(0)).flip(0)
    alone = draw(Streams(1, [12], "attack"), torch.tensor([0]))
    assert torch.equal(together, reversed_order)
    assert torch.equal(together[2:3], alone)


def test_streams_differ_by_seed_sample_and_purpose_and_advance():
    streams = Streams(1, [10, 11], "attack")
    first = streams.normal(torch.tensor([0]), (8,))
    assert not torch.equal(first, streams.normal(torch.tensor([0]), (8,)))
    assert not torch.equal(first, Streams(1, [10, 11], "attack").normal(torch.tensor([1]), (8,)))
    assert not torch.equal(first, Streams(2, [10, 11], "attack").normal(torch.tensor([0]), (8,)))
    assert not torch.equal(first, Streams(1, [10, 11], "judge").normal(torch.tensor([0]), (8,)))


def test_draws_are_float32_in_their_range():
    streams = Streams(0, range(100), "attack")
    uniform = streams.uniform(torch.arange(100), (100,))
    assert uniform.dtype == torch.float32
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(streams.normal(torch.arange(100), (100,)).std() - 1) < 0.05


def test_rows_of_a_randomized_defense_draw_from_their_samples_streams():
    rows = Streams(3, [5, 6], "noise").rows(torch.tensor([1, 0]))
    direct = Streams(3, [5, 6], "noise").normal(torch.tensor([1, 0]), (4,))
    assert torch.equal(rows.normal((4,)), direct)
