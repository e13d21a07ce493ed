"""Reports of ledgers with millions of records: seconds and memory of `assay report` in a process of its own."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import INF, RunMaker, lawful

from bench.ledger.files import write_cell
from bench.ledger.manifest_file import write_manifest
from bench.ledger.reader import write_clean
from bench.ledger.schema import ledger_dir

THRESHOLDS = {"L2": 1.5, "Linf": 0.3}
LARGEST = {"L2": 2.0, "Linf": 1.0}
"""Distances that no two images of four pixels exceed."""
MEASURED = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from reports import load_run, write_run_report
write_run_report(load_run(Path(sys.argv[1])), Path(sys.argv[2]), formats=["csv", "md", "tex", "figures"])
spent, memory = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": spent, "GiB": memory / 2**20}))
"""


def write_ledger(folder, defenses, attacks, samples):
    """Made-up distances of every attack on every defense in two norms, on disk; the images are of four pixels."""
    random = np.random.default_rng(0)
    maker = RunMaker([f"d{i}" for i in range(defenses)], samples, thresholds=THRESHOLDS)
    images = np.zeros((samples, 1, 2, 2), np.float32)
    for attack in range(attacks):
        maker.attack(f"a{attack}", list(THRESHOLDS))
        for place, defense in enumerate(maker.defenses):
            for norm, threshold in THRESHOLDS.items():
                distances = threshold * random.gamma(2, 0.4 + 0.1 * place / defenses, samples)
                distances = np.minimum(distances, LARGEST[norm])
                distances[random.random(samples) < 0.05] = INF
                distances[random.random(samples) < 0.02] = 0
                maker.cell(defense, f"a{attack}", norm, distances)
                records = lawful(replace(maker.make(images), records=maker.frames.pop()))
                write_cell(ledger_dir(folder) / maker.cells[-1]["files"][0], records, images, {})
    maker.frames.append(pd.DataFrame())
    name = write_clean(folder, images, np.arange(samples) % 10)
    write_manifest(folder, maker.make(images).manifest.model_copy(update={"images": name}))


@pytest.mark.parametrize(
    ("defenses", "attacks", "samples", "most_seconds", "most_memory"),
    [(10, 25, 10_000, 60, 2), (40, 250, 100, 120, 3)],
    ids=["few_long_cells", "many_short_cells"],
)
def test_tables_and_figures(benchmark, report, tmp_path, defenses, attacks, samples, most_seconds, most_memory):
    write_ledger(tmp_path, defenses, attacks, samples)
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(tmp_path / "report")]
    done = benchmark.pedantic(
        subprocess.run, (command,), {"capture_output": True, "text": True, "check": True}, rounds=1
    )
    measured = json.loads(done.stdout)
    cells = defenses * attacks * len(THRESHOLDS)
    what = f"report on {cells:,} cells of {samples:,}"
    report(what, f"{measured['seconds']:.0f} s, {measured['GiB']:.2f} GiB")
    assert measured["seconds"] < most_seconds
    assert measured["GiB"] < most_memory
