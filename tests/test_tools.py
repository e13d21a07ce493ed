"""Tests that need a tool are skipped where it is missing, the run says so, and with CI=true they fail."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
TOOLS = re.findall(r'^    "(\w+)": "([\w -]+)",$', CONFTEST, re.MULTILINE)
"""Each command with its Debian packages."""
pytest_plugins = ["pytester"]


@pytest.fixture
def inner(pytester):
    """A test that needs a browser which is not there, in a run of its own with these hooks."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("import pytest\n@pytest.mark.needs('chromium', 'node')\ndef test_page(): pass")
    return pytester


def run(pytester, monkeypatch, ci):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", ci)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider")


def test_a_missing_tool_skips_and_the_last_line_says_how_to_get_it(inner, monkeypatch):
    result = run(inner, monkeypatch, "false")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["skipped: 1 needs chromium, node (apt-get install chromium nodejs)"])


def test_on_ci_a_missing_tool_fails_in_one_line(inner, monkeypatch):
    result = run(inner, monkeypatch, "true")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["needs chromium, node (apt-get install chromium nodejs)"])


def test_a_tool_that_is_there_is_used(inner, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda command: command)
    run(inner, monkeypatch, "true").assert_outcomes(passed=1)


def test_ci_installs_every_tool():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands, packages = (re.search(pattern, script)[1] for pattern in (r"for tool in (.*);", r'packages="(.*)"'))
    assert TOOLS
    assert set(commands.split()) == {command for command, _ in TOOLS}
    assert set(packages.split()) == {package for _, names in TOOLS for package in names.split()}
