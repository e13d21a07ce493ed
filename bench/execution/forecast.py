"""Forecasts the time left of a run from the cells and studies that are done.

The maximum cost of a cell says little about its seconds: attacks stop early, and defenses differ in their seconds per
pass. Both are learned while the run goes on. The seconds of a cell are modeled as a power of its maximum cost, times a
factor of its defense, times a factor of its attack.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EXPONENT = 1 / 3
"""Exponent of the maximum cost. With a larger one, attacks with huge budgets look as if they used them up."""
RIDGE = 0.3
"""Weight that pulls the logarithms of the factors to 0, relative to the weight of one measured task."""
SCOUTS = 5
"""Number of tasks of each defense that run first."""
SHORTEST = 0.1
"""Seconds of the shortest tasks. Differences below are noise."""


@dataclass(frozen=True)
class Task:
    """A cell or a study, as a forecast sees it.

    Attributes:
        id: its id.
        defense: name of the defense.
        procedure: what is done to the defense: an attack with its norm and parameters, or a study.
        cost: maximum cost, in passes.
    """

    id: str
    defense: str
    procedure: str
    cost: float


def in_order(tasks: Sequence[Task], known: Sequence[Task] = ()) -> list[Task]:
    """Returns tasks in the order in which they should run: scouts first, then the costliest.

    Scouts tell a forecast what it needs early: the cheapest task of each procedure, and the `SCOUTS` cheapest tasks of
    each defense whose procedures also run on other defenses. Tasks in ``known`` are done and count, too. If most tasks
    would be scouts, all run as the costliest first, because long tasks at the end leave processes idle.
    """
    cheapest = [*known, *sorted(tasks, key=lambda task: task.cost)]
    first = {task.procedure: task.id for task in reversed(cheapest)}
    defenses = {(task.procedure, task.defense) for task in cheapest}
    spread = Counter(procedure for procedure, _ in defenses)
    scouts = set(first.values())
    met = Counter(task.defense for task in cheapest if task.id in scouts and spread[task.procedure] > 1)
    for task in cheapest:
        if task.id not in scouts and spread[task.procedure] > 1 and met[task.defense] < SCOUTS:
            met[task.defense] += 1
            scouts.add(task.id)
    costliest = sorted(tasks, key=lambda task: -task.cost)
    early = [task for task in reversed(costliest) if task.id in scouts]
    late = [task for task in costliest if task.id not in scouts]
    return [*early, *late] if len(early) < len(late) else costliest


def predicted_seconds(tasks: Sequence[Task], measured: Mapping[str, float]) -> dict[str, float]:
    """Returns the predicted seconds of each task, by id, from the ``measured`` seconds of at least one of them.

    The logarithms of the factors are fitted by ridge regression.
    """
    places = [(("defense", task.defense), ("procedure", task.procedure)) for task in tasks]
    columns = {place: i for i, place in enumerate(dict.fromkeys(place for pair in places for place in pair))}
    factors = np.array([[columns[place] for place in pair] for pair in places])
    power = EXPONENT * np.log([max(task.cost, 1.0) for task in tasks])
    rows = np.array([i for i, task in enumerate(tasks) if task.id in measured])
    level = np.log([max(measured[tasks[i].id], SHORTEST) for i in rows]) - power[rows]
    design = np.zeros((len(rows), len(columns)))
    np.put_along_axis(design, factors[rows], 1.0, axis=1)
    fitted = np.linalg.solve(design.T @ design + RIDGE * np.eye(len(columns)), design.T @ (level - level.mean()))
    predicted = np.exp(power + level.mean() + fitted[factors].sum(1))
    return dict(zip((task.id for task in tasks), predicted.tolist(), strict=True))


class TimeLeft:
    """The time left of a run whose tasks start in a given order in several processes.

    Args:
        waiting: the tasks to run, in order.
        known: tasks that were done before.
        measured: seconds of the tasks in ``known``, by id.
        processes: number of processes.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        waiting: Sequence[Task],
        known: Sequence[Task],
        measured: Mapping[str, float],
        processes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks, self._measured = [*known, *waiting], dict(measured)
        self._waiting = dict.fromkeys(task.id for task in waiting)
        self._running: dict[str, _Running] = {}
        self._processes, self._clock = processes, clock
        self._predicted: dict[str, float] = {}

    def started(self, id: str) -> None:
        """Reports that a task runs now."""
        self._waiting.pop(id, None)
        self._running[id] = _Running(self._clock())

    def advanced(self, id: str, share: float) -> None:
        """Reports that another share of a running task, in [0, 1], is done."""
        running = self._running[id]
        running.share += share
        running.seconds = self._clock() - running.start

    def finished(self, id: str, seconds: float | None) -> None:
        """Reports that a task is done, and the seconds it took; None if they say nothing about other tasks."""
        self._running.pop(id, None)
        if seconds is not None:
            self._measured[id] = seconds
            self._predicted = {}

    def seconds(self) -> float | None:
        """Returns the seconds left, or None while nothing is known."""
        if not self._waiting and not self._running:
            return 0.0
        if not self._measured:
            return None
        self._predicted = self._predicted or predicted_seconds(self._tasks, self._measured)
        now = self._clock()
        busy = [running.left(self._predicted[id], now) for id, running in self._running.items()]
        # Tasks of lost workers are reported at the end only. Until then they count as running.
        loads = sorted([*busy, *[0.0] * self._processes])[-self._processes :]
        for id in self._waiting:
            heapq.heapreplace(loads, loads[0] + self._predicted[id])
        return max(loads)


@dataclass
class _Running:
    """A running task: when it started, the share that is done, and the seconds after which this share was done."""

    start: float
    share: float = 0.0
    seconds: float = 0.0

    def left(self, predicted: float, now: float) -> float:
        """Returns the seconds left. The share that is done replaces the prediction."""
        whole = self.seconds / self.share if self.share else predicted
        return max(whole - (now - self.start), 0.0)
