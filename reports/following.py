"""Checks whether the numbers of a report on disk follow from its run's ledger."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.contracts.errors import UserError
from bench.contracts.work import SCHEMA_VERSION
from reports.report import LAYOUT, OPTIONS, write_run_report
from reports.runs.run import load_run
from reports.runs.selection import selected

ROUNDING = 1e-9
"""Relative difference between two numbers that a change of library version may cause."""


def not_following(run_dir: Path) -> list[str]:
    """Returns one line for each entry in the CSV files of a run's report that does not follow from its ledger.

    A line about an entry names the file, row and column. Pages, figures and other formats are not read.

    Raises:
        UserError: when the ledger is damaged.
    """
    report = run_dir / "report"
    if not any(report.glob("*.csv")):
        return []
    run = load_run(run_dir)
    options = _options(report / OPTIONS)
    if options is None and run.manifest.schema_version < SCHEMA_VERSION:
        return []  # its contents were defined differently; rewrite it with: assay report
    chosen = options or {}
    if chosen.get("layout") != LAYOUT:
        return [f"{report}: its tables are laid out as in an earlier version; rewrite it with: assay report {run_dir}"]
    with TemporaryDirectory() as folder:
        try:
            own = selected(run, chosen.get("norms"), chosen.get("attacks"))
            write_run_report(own, Path(folder), formats=["csv"], baseline=chosen.get("baseline"))
        except (UserError, TypeError) as error:
            return [f"{report / OPTIONS}: {error}"]
        return differences(report, Path(folder))


def differences(report: Path, expected: Path) -> list[str]:
    """Returns one line for each difference between the CSV files of a report's folder and those in ``expected``."""
    return [line for path in sorted(report.glob("*.csv")) for line in _differences(path, expected / path.name)]


def _options(path: Path) -> dict[str, Any] | None:
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return options if isinstance(options, dict) else None


def _differences(stored: Path, fresh: Path) -> Iterator[str]:
    if not fresh.exists():
        yield f"{stored}: the ledger gives no such table; delete it, or write the report again"
        return
    before, now = _rows(stored), _rows(fresh)
    if before is None or now is None or not now:
        yield f"{stored}: not a table of comma-separated values"
        return
    if len(before) != len(now):
        yield f"{stored}: it has {len(before)} rows; the ledger gives {len(now)}"
        return
    for number, (old, new) in enumerate(zip(before, now, strict=True)):
        if len(old) != len(new):
            yield f"{stored}: row {number} has {len(old)} fields; the ledger gives {len(new)}"
            continue
        for column, own, right in zip(now[0], old, new, strict=True):
            if not _same(own, right):
                yield f"{stored}: row {number} ({new[0]}) {column!r} is {own!r}; the ledger gives {right!r}"


def _rows(path: Path) -> list[list[str]] | None:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file, strict=True))
    except (OSError, ValueError, csv.Error):
        return None


def _same(stored: str, fresh: str) -> bool:
    if stored == fresh:
        return True
    try:
        return math.isclose(float(stored), float(fresh), rel_tol=ROUNDING)
    except ValueError:
        return False
