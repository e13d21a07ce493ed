"""Progress of long work: a bar with the time left in a terminal, plain lines in a log, nothing in a worker."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich import progress as rich_progress
from rich.console import Console


class Bar(Protocol):
    """One piece of long work."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Reports that another ``amount`` of the work is done. ``note`` describes the current state."""


class Silent:
    """A bar that shows nothing."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Does nothing."""


class _RichBar:
    def __init__(self, bars: rich_progress.Progress, task: rich_progress.TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._bars.update(self._task, advance=amount, note=note)


class _PlainBar:
    """A bar that prints one line at most every ``interval`` seconds, and one at the end."""

    interval = 5.0

    def __init__(self, title: str, total: float) -> None:
        self._title, self._total, self._done = title, total, 0.0
        self._start = time.monotonic()
        self._last = self._start

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < self.interval and self._done < self._total:
            return
        self._last = now
        left = (now - self._start) / max(self._done, 1e-9) * (self._total - self._done)
        share = self._done / max(self._total, 1e-9)
        print(f"{self._title}: {share:4.0%}, {left:.0f} s left  {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def bar(title: str, total: float) -> Iterator[Bar]:
    """Shows a progress bar on standard error for work of ``total`` units."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainBar(title, total)
        return
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", style="dim"),
    )
    with rich_progress.Progress(*columns, console=console) as bars:
        yield _RichBar(bars, bars.add_task(title, total=total, note=""))
