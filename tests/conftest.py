"""Fixtures for all tests: nothing a test trains or caches leaves its session's temporary folder."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# How long an example takes depends on what else the machine does.
settings.register_profile("assay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("assay")

TOOLS = {
    "cc": "gcc libc6-dev",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "node": "nodejs",
    "pdflatex": "texlive-latex-recommended texlive-science",
}
"""Commands that some tests run, and the Debian packages that hold them."""
NO_DATA = "needs the data sets' files (ASSAY_DATA=FOLDER)"


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*commands): skipped without these commands; with CI=true it fails")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    commands = [command for marker in item.iter_markers("needs") for command in marker.args]
    if missing := [command for command in commands if shutil.which(command) is None]:
        packages = " ".join(TOOLS[command] for command in missing)
        what = f"needs {', '.join(missing)} (apt-get install {packages})"
        if os.environ.get("CI") == "true":
            pytest.fail(what, pytrace=False)
        pytest.skip(what)


def pytest_terminal_summary(terminalreporter):
    """Says in one line what was skipped and how to get it."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.write_line("skipped: " + "; ".join(f"{count} {reason}" for reason, count in reasons.items()))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Checkpoints of tests go to ``ASSAY_TEST_CACHE`` where it is set (to reuse them), else to a temporary folder."""
    before = os.environ.get("ASSAY_CACHE")
    os.environ["ASSAY_CACHE"] = os.environ.get("ASSAY_TEST_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    if before is None:
        del os.environ["ASSAY_CACHE"]
    else:
        os.environ["ASSAY_CACHE"] = before


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets, where this machine has one."""
    if "ASSAY_DATA" not in os.environ:
        pytest.skip(NO_DATA)
    return Path(os.environ["ASSAY_DATA"])
