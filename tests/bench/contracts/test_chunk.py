"""A chunk keeps images, labels, samples and streams together."""

import torch

from bench.contracts.chunk import Chunk

CHUNK = Chunk(torch.arange(3.0).reshape(3, 1, 1, 1), torch.tensor([2, 0, 1]), range(10, 13), 3)


def test_selected_rows_keep_what_belongs_to_them():
    chosen = CHUNK.select(torch.tensor([2, 0, 2]))
    assert chosen.images.flatten().tolist() == [2, 0, 2]
    assert chosen.labels.tolist() == [1, 2, 1]
    assert (chosen.samples, chosen.classes, len(chosen)) == ([12, 10, 12], 3, 3)


def test_a_samples_stream_does_not_depend_on_the_others():
    ids = torch.arange(1)
    alone = CHUNK.select(torch.tensor([1])).streams(0, "test").uniform(ids, (4,))
    assert torch.equal(alone, CHUNK.streams(0, "test").uniform(ids + 1, (4,)))


def test_a_copy_shares_no_tensor():
    copy = CHUNK.copied()
    copy.images.zero_()
    assert CHUNK.images.sum() == 3
    assert torch.equal(CHUNK.showing(copy.images).labels, CHUNK.labels)
