"""What is installed: the four packages, whole, and nothing else."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("attacks", "bench", "defenses", "reports")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names of the files in the wheel that a copy of this source tree builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("assay-*.whl"))) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_four_packages_only(wheel):
    top_level = {name.partition("/")[0] for name in wheel}
    assert {name for name in top_level if not name.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_holds_every_module_and_data_file(wheel):
    files = {
        path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()
    }
    assert {name for name in files if "__pycache__" not in name} - wheel == set()


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="only tox installs the wheel it tests")
@pytest.mark.parametrize("name", PACKAGES)
def test_tests_run_against_the_installed_wheel(name):
    package = importlib.import_module(name)
    assert Path(package.__file__).is_relative_to(sysconfig.get_path("purelib"))
