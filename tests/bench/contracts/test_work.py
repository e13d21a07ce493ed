"""A cell is cut into chunks whose ids know their own samples and nothing of the others."""

from dataclasses import replace

import pytest

from bench.contracts.work import Cell, Study

HASHES = [f"image {i}" for i in range(10)]
COMMON = {"dataset": "d", "defense": "net", "norm": "L2", "epsilon": None, "seed": 0, "batch_size": 8, "state": {}}
CELL = Cell(
    **COMMON,
    attack="pgd",
    function="pgd",
    access="gradient",
    parameters={},
    budget=9,
    chunk=4,
    samples=10,
    timeout=20.0,
)


def test_chunks_are_cut_in_the_order_of_the_samples_and_cover_them():
    assert [shard.samples for shard in CELL.shards(HASHES)] == [range(4), range(4, 8), range(8, 10)]


@pytest.mark.parametrize("samples", [4, 8, 9])
def test_a_chunk_is_the_same_however_many_samples_the_cell_has(samples):
    fewer, more = replace(CELL, samples=samples).shards(HASHES), CELL.shards(HASHES)
    whole = samples // CELL.chunk
    assert [(s.id, s.file) for s in fewer[:whole]] == [(s.id, s.file) for s in more[:whole]]
    assert not {shard.id for shard in fewer[whole:]} & {shard.id for shard in more}


def test_a_chunk_of_another_image_or_of_another_cell_is_another():
    mine = {shard.id for shard in CELL.shards(HASHES)}
    assert len(mine & {shard.id for shard in CELL.shards([*HASHES[:5], "another", *HASHES[6:]])}) == 2
    assert not mine & {shard.id for shard in replace(CELL, seed=1).shards(HASHES)}


def test_equal_images_of_different_samples_are_different_chunks():
    """The random streams are those of the sample, not of the image."""
    assert len({shard.id for shard in CELL.shards(["same"] * 10)}) == 3


def test_a_chunk_has_its_share_of_the_timeout():
    assert [shard.timeout for shard in CELL.shards(HASHES)] == [8.0, 8.0, 4.0]


def test_a_study_is_one_shard():
    study = Study(**COMMON, kind="distal", samples=10, timeout=None)
    (shard,) = study.shards(HASHES)
    assert (shard.id, shard.file, shard.samples, shard.timeout) == (study.id, study.file(), range(10), None)
