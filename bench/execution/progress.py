"""Follows a run: shows its progress with the time left, and collects the failures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from bench.contracts.progress import Bar
from bench.contracts.work import Cell, Work
from bench.execution.forecast import Task, TimeLeft
from bench.execution.worker import Failures
from bench.ledger.files import seconds_of
from bench.ledger.schema import ledger_dir
from bench.planning.plan import cost
from bench.training.loading import LoadedDefense


class RunProgress:
    """Hears what happens to cells and studies (`bench.execution.runners.Listener`) and passes it on.

    Attributes:
        failed: the cells and studies with failed samples, by defense and reason.
    """

    def __init__(self, bar: Bar, time_left: TimeLeft, run: Path) -> None:
        self._bar, self._time_left, self._run = bar, time_left, run
        self.failed: defaultdict[tuple[str, str], list[Work]] = defaultdict(list)

    def started(self, work: Work) -> None:
        """Enters the work into the forecast."""
        self._time_left.started(work.id)

    def advanced(self, work: Work, samples: int) -> None:
        """Shows the newly finished samples."""
        self._time_left.advanced(work.id, samples / work.samples)
        self._bar.advance(samples, work.title)

    def done(self, work: Work, failures: Failures) -> None:
        """Enters the seconds into the forecast, unless samples failed: a failure may come early or late."""
        self._time_left.finished(work.id, None if failures else seconds_in(self._run, work))
        for reason in failures:
            self.failed[work.defense, reason].append(work)


def seconds_in(run: Path, work: Work) -> float | None:
    """Returns the seconds that a finished cell or study of a run took, or None if its file cannot be read just now.

    Loading and examining the defense do not count. The first cell of a worker would look slow otherwise.
    """
    try:
        return seconds_of(ledger_dir(run) / work.file)
    except (OSError, pa.ArrowException):  # a shared folder may lag
        return None


def tasks_of(works: Sequence[Work], defenses: Mapping[str, LoadedDefense]) -> list[Task]:
    """Returns the cells and studies as a forecast sees them."""
    return [Task(work.id, work.defense, _procedure(work), cost(work, defenses[work.defense])) for work in works]


def _procedure(work: Work) -> str:
    settings = json.dumps(work.parameters, sort_keys=True) if isinstance(work, Cell) else ""
    return f"{work.subject} {work.norm} {settings}"
