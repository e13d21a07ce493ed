"""Follows a run: shows its progress with the time left, and collects the failures."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from bench.contracts.progress import Bar
from bench.contracts.work import Cell, Shard, Work
from bench.execution.forecast import Schedule, Task
from bench.execution.worker import Failures
from bench.ledger.files import seconds_of
from bench.ledger.schema import ledger_dir
from bench.planning.plan import cost
from bench.training.loading import LoadedDefense


class RunProgress:
    """Hears what happens to shards (`bench.execution.runners.Listener`) and passes it on.

    Attributes:
        failed: the cells and studies with failed samples, by defense and reason.
    """

    def __init__(self, bar: Bar, schedule: Schedule, run: Path) -> None:
        self._bar, self._schedule, self._run = bar, schedule, run
        self._shown: Counter[str] = Counter()
        self.failed: defaultdict[tuple[str, str], list[Work]] = defaultdict(list)

    def started(self, shard: Shard) -> None:
        """Enters the shard into the forecast."""
        self._schedule.started(shard.id)

    def advanced(self, shard: Shard, samples: int) -> None:
        """Shows the newly finished samples."""
        self._schedule.advanced(shard.id, samples / len(shard.samples))
        self._shown[shard.id] += samples
        self._bar.advance(samples, shard.work.title)

    def done(self, shard: Shard, failures: Failures) -> None:
        """Enters the seconds into the forecast, unless samples failed: a failure may come early or late."""
        self._schedule.finished(shard.id, None if failures else seconds_in(self._run, shard))
        self._bar.advance(len(shard.samples) - self._shown.pop(shard.id, 0), shard.work.title)
        for reason in failures:
            works = self.failed[shard.work.defense, reason]
            if shard.work not in works:
                works.append(shard.work)


def seconds_in(run: Path, shard: Shard) -> float | None:
    """Returns the seconds that a finished shard of a run took, or None if its file cannot be read just now.

    Loading and examining the defense do not count. The first shard of a worker would look slow otherwise.
    """
    try:
        return seconds_of(ledger_dir(run) / shard.file)
    except (OSError, pa.ArrowException):  # a shared folder may lag
        return None


def tasks_of(shards: Iterable[Shard], defenses: Mapping[str, LoadedDefense]) -> list[Task]:
    """Returns the shards as a forecast sees them."""
    return [
        Task(
            shard.id,
            shard.work.defense,
            _procedure(shard.work),
            cost(shard, defenses[shard.work.defense]),
            tuple(before.id for before in shard.after),
        )
        for shard in shards
    ]


def _procedure(work: Work) -> str:
    settings = json.dumps(work.parameters, sort_keys=True) if isinstance(work, Cell) else ""
    return f"{work.subject} {work.norm} {settings}"
