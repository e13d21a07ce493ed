"""One cell on several workers: its chunks are shared out, and the result is the same to the byte."""

import time
from pathlib import Path

import bench

SAMPLES = 10_000
MATRIX = f"""
dataset = "mnist"
samples = {SAMPLES}
defenses = ["cnn"]
studies = []
attacks = [{{ name = "pgd", variant = "bounded", bounded = true, parameters = {{ steps = 40, restarts = 1 }} }}]
[thresholds]
Linf = 0.02
"""
"""A ball in which hardly any image breaks, so that all take all steps."""
SPEEDUP = 1.8


def files_of(folder: Path) -> dict[str, bytes]:
    """The images of a run, by file name."""
    return {path.name: path.read_bytes() for path in (folder / "ledger").glob("*--*.npz")}


def test_two_workers_share_one_cell(benchmark, report, data_dir, tmp_path):
    matrix = tmp_path / "one_cell.toml"
    matrix.write_text(MATRIX)
    options = {"data_dir": data_dir, "device": "cpu", "runner": "process"}
    started = time.perf_counter()
    alone = bench.run(matrix, out=tmp_path / "1", workers=1, **options)
    spent = time.perf_counter() - started
    together = benchmark.pedantic(
        bench.run, (matrix,), {"out": tmp_path / "2", "workers": 2, **options}, rounds=1, iterations=1
    )
    shared = benchmark.stats.stats.min
    report(
        f"one cell of {SAMPLES} images, cnn on mnist, pgd",
        f"{spent:.0f} s with one worker, {shared:.0f} s with two: {spent / shared:.2f} times faster",
    )
    assert together.drop(columns="seconds").equals(alone.drop(columns="seconds"))
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    assert spent >= SPEEDUP * shared
