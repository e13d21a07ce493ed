"""The numbers of a report on disk follow from its ledger, or are named."""

import csv
import json

import numpy as np
import pytest
from synthetic_runs import every_status
from test_report import stored

from reports import load_run, not_following, selected, write_run_report
from reports.report import LAYOUT


@pytest.fixture
def run(tmp_path):
    stored(every_status(), tmp_path)
    write_run_report(load_run(tmp_path), tmp_path / "report", formats=["csv"])
    return tmp_path


def alter(path, row, column, change):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[row][column] = change(rows[row][column])
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def test_an_untouched_report_follows(run):
    assert not_following(run) == []


def test_a_run_without_a_report_has_nothing_that_does_not_follow(run):
    for path in (run / "report").iterdir():
        path.unlink()
    assert not_following(run) == []


def test_every_altered_number_is_named_with_file_row_and_column(run):
    random, altered = np.random.default_rng(0), {}
    for path in sorted((run / "report").glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        numbers = [(r, c) for r in range(1, len(rows)) for c, text in enumerate(rows[r]) if is_number(text)]
        if numbers:
            row, column = numbers[random.integers(len(numbers))]
            alter(
                path, row, column, lambda text: f"{float(text) * 1.001 + 1e-6:.9g}" if np.isfinite(float(text)) else "3"
            )
            altered[f"{path}: row {row} "] = rows[0][column]
    lines = not_following(run)
    assert len(lines) == len(altered) > 10
    for place, column in altered.items():
        assert any(line.startswith(place) and repr(column) in line for line in lines)


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("change", ["row", "field", "heading", "file"])
def test_what_is_missing_or_added_is_named(run, change):
    path = run / "report" / "summary_L2.csv"
    lines = path.read_text().splitlines()
    altered = {
        "row": lines[:-1],
        "field": [*lines[:-1], f"{lines[-1]},1"],
        "heading": [lines[0].replace("cnn", "cnm"), *lines[1:]],
        "file": lines,
    }
    (path if change != "file" else path.with_name("summary_L3.csv")).write_text("\n".join(altered[change]) + "\n")
    assert not_following(run)


def test_what_was_chosen_for_a_report_is_chosen_again(run):
    chosen = selected(load_run(run), ["L2"], ["pgd"])
    for path in (run / "report").iterdir():
        path.unlink()
    write_run_report(chosen, run / "report", formats=["csv"], baseline="cnn")
    assert json.loads((run / "report" / "options.json").read_text()) == {
        "layout": LAYOUT,
        "norms": ["L2"],
        "attacks": ["pgd", "pgd:bounded"],
        "baseline": "cnn",
    }
    assert not_following(run) == []
