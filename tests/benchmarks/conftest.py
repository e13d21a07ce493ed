"""Ratios that benchmarks measure in one run, printed as a table at its end."""

from collections.abc import Callable

import pytest

ROWS = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def report(request) -> Callable[[str, str], None]:
    """Adds a line, (what, figure), to the table."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda what, figure: rows.append((what, figure))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("ratios, measured in this run")
        width = max(len(what) for what, _ in rows)
        for what, figure in rows:
            terminalreporter.write_line(f"{what:{width}}  {figure}")
