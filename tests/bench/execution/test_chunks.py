"""A cell's records are files of whole chunks: computed anywhere, never rewritten, extended by more samples."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from small_runs import CHEAP, results, run, write_matrix
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.contracts.errors import UserError
from bench.ledger.loading import load_adversarials
from bench.ledger.manifest_file import load_manifest, write_manifest
from bench.plugins.registry import BUILT_IN

CHUNKED = [*CHEAP, "chunk=2"]


def files_of(folder):
    """The bytes of the images and the time of writing of each file of records, by name."""
    ledger = folder / "ledger"
    images = {path.name: path.read_bytes() for path in ledger.glob("*--*.npz")}
    return images, {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.parquet")}


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    """A matrix of every built-in attack, and the folder of its run on 5 samples in chunks of 2, by one worker."""
    folder = tmp_path_factory.mktemp("chunked")
    matrix = write_matrix(folder, BUILT_IN["attacks"].names())
    run(matrix, folder / "whole", runner="serial", settings=CHUNKED, samples=5)
    return matrix, folder / "whole"


def test_every_cell_has_a_file_for_each_chunk_of_its_samples(chunked):
    _, whole = chunked
    for cell in load_manifest(whole).cells:
        parts = [pd.read_parquet(whole / "ledger" / file) for file in cell.files]
        assert [part["sample"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
        assert load_adversarials(whole, cell.id).shape == (5, 1, 8, 8)


def test_more_samples_run_only_the_new_ones_and_give_the_ledger_of_a_run_from_scratch(chunked, tmp_path):
    matrix, whole = chunked
    run(matrix, tmp_path, runner="serial", settings=CHUNKED, samples=3)
    _, before = files_of(tmp_path)
    run(matrix, tmp_path, runner="process", workers=2, settings=CHUNKED, samples=5)
    images, after = files_of(tmp_path)
    cells = load_manifest(whole).cells
    assert all(after[file] == time for file, time in before.items()), "no file is written again"
    assert len(after) - len(before) == 2 * len(cells), "the partial chunk and the one after it"
    pd.testing.assert_frame_equal(results(tmp_path), results(whole), check_exact=True)
    assert {name: images[name] for name in files_of(whole)[0]} == files_of(whole)[0]


def test_fewer_samples_run_the_partial_chunk_alone(chunked, tmp_path):
    matrix, whole = chunked
    run(matrix, tmp_path, runner="serial", settings=CHUNKED, samples=5, attacks=["ddn", "pointwise"])
    _, before = files_of(tmp_path)
    run(matrix, tmp_path, runner="serial", settings=CHUNKED, samples=3, attacks=["ddn", "pointwise"])
    cells = load_manifest(tmp_path).cells
    assert len(files_of(tmp_path)[1]) - len(before) == len(cells)
    expected = results(whole).query("sample < 3 and attack in ('ddn', 'pointwise')").reset_index(drop=True)
    pd.testing.assert_frame_equal(results(tmp_path), expected, check_exact=True)


@pytest.fixture
def interrupted(chunked, tmp_path):
    """A run of two cells that was interrupted before it wrote one chunk."""
    matrix, _ = chunked
    run(matrix, tmp_path, runner="serial", settings=CHUNKED, samples=5, attacks=["ddn", "deepfool"], norms=["L2"])
    cell = load_manifest(tmp_path).cells[0]
    (tmp_path / "ledger" / cell.files[1]).unlink()
    path = tmp_path / "ledger" / "manifest.json"
    content = json.loads(path.read_text())
    del content["files"], content["seal"]["files"]
    path.write_text(json.dumps(content))
    return matrix, tmp_path, cell


@pytest.mark.parametrize("kept", [1, 2])
def test_a_manifest_that_names_too_few_chunks_is_refused(chunked, tmp_path, kept):
    """Otherwise a cell could lose the samples that hurt."""
    _, whole = chunked
    shutil.copytree(whole, tmp_path / "run")
    manifest = load_manifest(tmp_path / "run")
    first, *others = manifest.cells
    fewer = first.model_copy(update={"files": first.files[:kept]})
    write_manifest(tmp_path / "run", manifest.model_copy(update={"cells": (fewer, *others)}), finished=True)
    with pytest.raises(UserError, match=rf"{kept} files; 5 samples in chunks of 2 have 3"):
        bench.load_ledger(tmp_path / "run")


def test_a_cell_counts_only_when_all_its_chunks_are_there(interrupted):
    _, folder, cell = interrupted
    assert cell.id not in set(bench.load_ledger(folder)["cell"])
    result = CliRunner().invoke(app, ["status", str(folder)])
    assert "1/2" in result.output, "cells"
    assert "5/6" in result.output, "files"


def test_an_interrupted_cell_loses_only_the_chunks_that_are_missing(interrupted, chunked):
    matrix, folder, cell = interrupted
    _, before = files_of(folder)
    run(matrix, folder, runner="serial", settings=CHUNKED, samples=5, attacks=["ddn", "deepfool"], norms=["L2"])
    _, after = files_of(folder)
    assert after.keys() - before.keys() == {Path(cell.files[1]).name}
    assert all(after[file] == time for file, time in before.items())
    expected = results(chunked[1])
    expected = expected[expected["cell"].isin(set(results(folder)["cell"]))].reset_index(drop=True)
    pd.testing.assert_frame_equal(results(folder), expected, check_exact=True)


def test_a_failed_chunk_is_run_again_and_the_others_are_kept(tmp_path, monkeypatch):
    matrix = write_matrix(tmp_path, ["fails_on_demand"])
    monkeypatch.setenv("ASSAY_TEST_FAILS", "1")
    run(matrix, tmp_path / "run", runner="serial", settings=["chunk=2"])
    _, before = files_of(tmp_path / "run")
    frame = bench.load_ledger(tmp_path / "run")
    assert frame["status"].tolist() == ["found", "found", "failed", "failed"]
    monkeypatch.delenv("ASSAY_TEST_FAILS")
    run(matrix, tmp_path / "run", runner="serial", settings=["chunk=2"])
    _, after = files_of(tmp_path / "run")
    assert bench.load_ledger(tmp_path / "run")["status"].tolist() == ["found"] * 4
    assert len([file for file in after if after[file] == before[file]]) == 1
