"""Chooses the order of a run's shards and forecasts the time left, from the shards that are done.

The maximum cost of a shard says little about its seconds: attacks stop early, and defenses differ in their seconds per
pass. Both are learned while the run goes on. Shards of one kind, the same procedure on the same defense, take seconds
in proportion to their costs. For a kind without a measured shard, the seconds are modeled as a power of its cost,
times a factor of the defense, times a factor of the procedure.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EXPONENT = 1 / 3
"""Exponent of the maximum cost. With a larger one, attacks with huge budgets look as if they used them up."""
RIDGE = 0.3
"""Weight that pulls the logarithms of the factors to 0, relative to the weight of one measured kind."""
SCOUTS = 5
"""Number of kinds of each defense that run first."""
SHORTEST = 0.1
"""Seconds of the shortest cells. Differences below are noise."""

Kind = tuple[str, str]
"""A defense and a procedure."""


@dataclass(frozen=True)
class Task:
    """A shard, as a forecast sees it.

    Attributes:
        id: its id.
        defense: name of the defense.
        procedure: what is done to the defense: an attack with its norm and parameters, or a study.
        cost: maximum cost, in passes.
        after: ids of tasks that must be done before it starts.
    """

    id: str
    defense: str
    procedure: str
    cost: float
    after: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """The defense and the procedure."""
        return self.defense, self.procedure


def scouts(tasks: Sequence[Task], known: Sequence[Task] = ()) -> list[Task]:
    """Returns the tasks that should run first because they tell a forecast what it needs early, the cheapest first.

    Scouts are the first task of the cheapest kind of each procedure, and of the `SCOUTS` cheapest kinds of each defense
    whose procedures also run on other defenses. Tasks in ``known`` are done and count, too. If most tasks would be
    scouts there are none: the costliest should run first then, because long tasks at the end leave processes idle.
    """
    firsts: dict[Kind, Task] = {}
    for task in [*known, *sorted((task for task in tasks if not task.after), key=lambda task: task.cost)]:
        firsts.setdefault(task.kind, task)
    done = {task.kind for task in known}
    cheapest: dict[str, Kind] = {}
    for kind in firsts:
        cheapest.setdefault(kind[1], kind)
    spread = Counter(procedure for _, procedure in firsts)
    chosen = set(cheapest.values())
    met = Counter(defense for defense, procedure in chosen if spread[procedure] > 1)
    for kind in firsts:
        defense, procedure = kind
        if kind not in chosen and spread[procedure] > 1 and met[defense] < SCOUTS:
            met[defense] += 1
            chosen.add(kind)
    found = [task for kind, task in firsts.items() if kind in chosen and kind not in done]
    return found if 2 * len(found) < len(tasks) else []


def seconds_per_cost(costs: Mapping[Kind, float], measured: Mapping[Kind, float]) -> dict[Kind, float]:
    """Returns the predicted seconds per cost of each kind, given those ``measured`` of at least one kind.

    Args:
        costs: cost of all shards of each kind.
        measured: seconds per cost of some kinds. They are returned unchanged.

    The logarithms of the factors are fitted by ridge regression.
    """
    places = [(("defense", defense), ("procedure", procedure)) for defense, procedure in costs]
    columns = {place: i for i, place in enumerate(dict.fromkeys(place for pair in places for place in pair))}
    factors = np.array([[columns[place] for place in pair] for pair in places])
    cost = np.array([*costs.values()])
    power = EXPONENT * np.log(cost)
    rows = np.array([i for i, kind in enumerate(costs) if kind in measured])
    seconds = np.array([measured[kind] * costs[kind] for kind in costs if kind in measured])
    level = np.log(np.maximum(seconds, SHORTEST)) - power[rows]
    design = np.zeros((len(rows), len(columns)))
    np.put_along_axis(design, factors[rows], 1.0, axis=1)
    fitted = np.linalg.solve(design.T @ design + RIDGE * np.eye(len(columns)), design.T @ (level - level.mean()))
    predicted = np.exp(power + level.mean() + fitted[factors].sum(1)) / cost
    return dict(zip(costs, predicted.tolist(), strict=True)) | dict(measured)


class Schedule:
    """The tasks of a run in the order in which they should start, and the time left.

    As an iterator, it yields scouts first, then always the waiting task that should take longest by what is known. It
    yields None while all waiting tasks need others to be done.

    Args:
        tasks: the tasks to run.
        known: tasks that were done before.
        measured: seconds of the tasks in ``known``, by id.
        processes: number of processes.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        known: Sequence[Task] = (),
        measured: Mapping[str, float] | None = None,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes, self._clock = processes, clock
        self._running: dict[str, _Running] = {}
        self._open = {task.id for task in tasks}
        self._scouts = deque(scouts(tasks, known))
        first = {task.id for task in self._scouts}
        self._waiting: dict[Kind, deque[Task]] = {}
        for task in tasks:
            if task.id not in first:
                self._waiting.setdefault(task.kind, deque()).append(task)
        self._tasks = {task.id: task for task in [*known, *tasks]}
        self._costs: dict[Kind, float] = {}
        for task in self._tasks.values():
            self._costs[task.kind] = self._costs.get(task.kind, 0.0) + max(task.cost, 1.0)
        self._measured: dict[Kind, tuple[float, float]] = {}
        self._rates: dict[Kind, float] = {}
        for id, seconds in (measured or {}).items():
            self._measure(self._tasks[id], seconds)

    def __iter__(self) -> Schedule:
        return self

    def __next__(self) -> Task | None:
        if self._scouts:
            return self._scouts.popleft()
        if not self._waiting:
            raise StopIteration
        ready = (self._ready(tasks) for tasks in self._waiting.values())
        task = max((task for task in ready if task is not None), key=self._seconds, default=None)
        if task is not None:
            self._waiting[task.kind].remove(task)
            if not self._waiting[task.kind]:
                del self._waiting[task.kind]
        return task

    def _ready(self, tasks: Iterable[Task]) -> Task | None:
        """Returns the first task that needs no other to be done."""
        return next((task for task in tasks if self._open.isdisjoint(task.after)), None)

    def started(self, id: str) -> None:
        """Reports that a task runs now."""
        self._running[id] = _Running(self._clock())

    def advanced(self, id: str, share: float) -> None:
        """Reports that another share of a running task, in [0, 1], is done."""
        running = self._running[id]
        running.share += share
        running.seconds = self._clock() - running.start

    def finished(self, id: str, seconds: float | None) -> None:
        """Reports that a task is done, and the seconds it took; None if they say nothing about other tasks."""
        self._running.pop(id, None)
        self._open.discard(id)
        if seconds is not None:
            self._measure(self._tasks[id], seconds)

    def seconds_left(self) -> float | None:
        """Returns the seconds left, or None while nothing is known."""
        waiting = [*self._scouts, *(task for tasks in self._waiting.values() for task in tasks)]
        if not waiting and not self._running:
            return 0.0
        if not self._measured:
            return None
        now = self._clock()
        busy = [running.left(self._seconds(self._tasks[id]), now) for id, running in self._running.items()]
        # Tasks of lost workers are reported at the end only. Until then they count as running.
        loads = sorted([*busy, *[0.0] * self._processes])[-self._processes :]
        for seconds in sorted(map(self._seconds, waiting), reverse=True):
            heapq.heapreplace(loads, loads[0] + seconds)
        return max(loads)

    def _measure(self, task: Task, seconds: float) -> None:
        before = self._measured.get(task.kind, (0.0, 0.0))
        self._measured[task.kind] = (before[0] + seconds, before[1] + max(task.cost, 1.0))
        self._rates = {}

    def _seconds(self, task: Task) -> float:
        """Returns the predicted seconds of a task; its cost while nothing is measured."""
        if self._measured and not self._rates:
            rates = {kind: seconds / cost for kind, (seconds, cost) in self._measured.items()}
            self._rates = seconds_per_cost(self._costs, rates)
        return self._rates.get(task.kind, 1.0) * max(task.cost, 1.0)


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
