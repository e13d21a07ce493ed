"""The leaderboard's JavaScript computes what Python does, in Node.js: without a page, in a second."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from reading import table_of, values
from synthetic_runs import every_status, random_answers

import reports
from bench.ledger.intervals import wilson_interval
from reports.measures.measure import measure
from reports.render.leaderboard import leaderboard
from reports.runs.rows import all_attacks
from reports.statistics.protocols import survival

SCRIPT = Path(reports.__file__).parent / "templates" / "leaderboard.js"
pytestmark = pytest.mark.needs("node")


def computed(expression, argument):
    """An expression of ``argument`` and the script's functions; infinity comes as 1e999."""
    code = f"""
        globalThis.document = {{ querySelectorAll: () => [] }};
        {SCRIPT.read_text(encoding="utf-8")}
        const argument = JSON.parse(require("fs").readFileSync(0, "utf-8"));
        console.log(JSON.stringify({expression}, (_, value) => value === Infinity ? "inf" : value));
    """
    done = subprocess.run(["node", "-e", code], input=json.dumps(argument), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_wilsons_interval_is_pythons():
    """Also at the ends, where rounding must not leave [0, 1]."""
    places = [(k / n, n) for n in (1, 2, 7, 40, 1000, 250_000) for k in {0, 1, n // 3, n - 1, n}]
    ends = [wilson_interval(share, samples) for share, samples in places]
    found = computed("argument.map(place => wilson(...place))", places)
    np.testing.assert_allclose(found, np.array(ends, dtype=float), rtol=0, atol=1e-12)


def test_survival_is_pythons():
    places = [(k, n, times) for n in (10, 20, 400) for k in {0, 1, n // 2, n} for times in (1, 2, 10)]
    found = computed("argument.map(place => survival(...place))", places)
    np.testing.assert_allclose(found, [float(survival(*place)) for place in places], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("run", "norm"), [(every_status(), "L2"), (every_status(), "Linf"), (random_answers(), "Linf")]
)
def test_the_worst_case_over_all_attacks_is_the_tables(run, norm):
    measured = measure(run)
    standings = computed(
        "argument.defenses.map(d => standing(argument, argument.attacks, argument.epsilon, d))",
        leaderboard(measured, measured.norms[norm]),
    )
    cells = table_of(run, "strength", norm).row(all_attacks(norm))
    for row in standings:
        shown = values(cells[row["name"]])
        if not shown:
            assert row["accuracy"] is None
            continue
        median = None if row["median"] is None else float(row["median"])
        assert (median, row["accuracy"]) == pytest.approx((shown.get("median"), shown["accuracy"]))
        others = [shown.get(name, shown["accuracy"]) for name in ("one draw", "best of 10")]
        assert (row["oneDraw"], row["bestOf"]) == pytest.approx(tuple(others))
