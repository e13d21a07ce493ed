"""Ratios that benchmarks measure in one run, printed as a table at its end."""

from collections.abc import Callable

import pytest
import torch
from measuring import NO_GPU

ROWS = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request) -> torch.device:
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)


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
