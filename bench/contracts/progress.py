"""Progress of long work: a bar with the time left in a terminal, plain lines in a log, nothing in a worker."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

SecondsLeft = Callable[[], float | None]
"""Returns an estimate of the seconds left, or None while there is none."""


class Bar(Protocol):
    """One piece of long work."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Reports that another ``amount`` of the work is done. ``note`` describes the current state."""


class Silent:
    """A bar that shows nothing."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Does nothing."""


class _Timed(ABC):
    """A bar that is shown at most every ``interval`` seconds, and at the end."""

    interval = 0.2

    def __init__(self, total: float, left: SecondsLeft | None) -> None:
        self._total, self._done, self._left = total, 0.0, left or self._in_proportion
        self._start = time.monotonic()
        self._last = self._start

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < self.interval and self._done < self._total:
            return
        self._last, left = now, self._left()
        elapsed = now - self._start
        share = 0.0 if left is None else elapsed / max(elapsed + left, 1e-9)
        self.show(1.0 if self._done >= self._total else share, left, note)

    @abstractmethod
    def show(self, share: float, left: float | None, note: str) -> None:
        """Shows the share of the time that has passed and the seconds left."""

    def _in_proportion(self) -> float:
        return (time.monotonic() - self._start) / max(self._done, 1e-9) * (self._total - self._done)


class _RichBar(_Timed):
    def __init__(self, title: str, total: float, left: SecondsLeft | None, bars: rich_progress.Progress) -> None:
        super().__init__(total, left)
        self._bars, self._task = bars, bars.add_task(title, total=1.0, note="", end=None)

    def show(self, share: float, left: float | None, note: str) -> None:
        end = None if left is None else time.monotonic() + left
        self._bars.update(self._task, completed=share, note=note, end=end)


class _LeftColumn(rich_progress.ProgressColumn):
    """Counts down the time left, until the next estimate."""

    def render(self, task: rich_progress.Task) -> Text:
        end = task.fields["end"]
        left = "-:--:--" if end is None else str(timedelta(seconds=max(0, round(end - time.monotonic()))))
        return Text(left, style="progress.remaining")


class _PlainBar(_Timed):
    interval = 5.0

    def __init__(self, title: str, total: float, left: SecondsLeft | None) -> None:
        super().__init__(total, left)
        self._title = title

    def show(self, share: float, left: float | None, note: str) -> None:
        remaining = "" if left is None else f", {left:.0f} s left"
        print(f"{self._title}: {share:4.0%}{remaining}  {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def bar(title: str, total: float, left: SecondsLeft | None = None) -> Iterator[Bar]:
    """Shows a progress bar on standard error for work of ``total`` units.

    ``left`` estimates the seconds left. By default they are in proportion to the units that are not done.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{title}: started", file=sys.stderr, flush=True)
        yield _PlainBar(title, total, left)
        return
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        _LeftColumn(),
        rich_progress.TextColumn("{task.fields[note]}", style="dim"),
    )
    with rich_progress.Progress(*columns, console=console) as bars:
        yield _RichBar(title, total, left, bars)
