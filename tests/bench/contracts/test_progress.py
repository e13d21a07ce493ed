"""A bar says which share of the time has passed and how much is left."""

import re

import pytest

from bench.contracts import progress
from bench.contracts.progress import bar


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys):
    """The lines after the first, which says at once that the work has begun."""
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "work: started"
    return others


def test_without_an_estimate_the_time_left_is_in_proportion_to_the_work(clock, capsys):
    with bar("work", 4) as shown:
        clock.now += 10
        shown.advance(1, "first")
    assert lines(capsys) == ["work:  25%, 30 s left  first"]


def test_an_estimate_gives_the_time_left_and_the_share_that_has_passed(clock, capsys):
    with bar("work", 4, lambda: 90.0) as shown:
        clock.now += 10
        shown.advance(3)
    assert lines(capsys) == ["work:  10%, 90 s left"]


def test_before_there_is_an_estimate_no_time_is_shown(clock, capsys):
    with bar("work", 4, lambda: None) as shown:
        clock.now += 10
        shown.advance(1)
    assert lines(capsys) == ["work:   0%"]


def test_plain_lines_are_seconds_apart_but_for_the_last(clock, capsys):
    with bar("work", 10) as shown:
        for _ in range(10):
            clock.now += 2
            shown.advance(1)
    shares = [int(re.search(r"(\d+)%", line)[1]) for line in lines(capsys)]
    assert shares == [30, 60, 90, 100]
