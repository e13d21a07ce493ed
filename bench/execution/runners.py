"""Runners: the ways in which shards of cells and studies are executed. Each is declared in a module of this package.

A result depends only on its shard, not on the runner or the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench.contracts.cards import attach
from bench.contracts.errors import unknown
from bench.contracts.work import Shard
from bench.plugins.catalog import Catalog

if TYPE_CHECKING:  # light: the command line shows the names of the runners
    from bench.execution.worker import Failures, Job


class Listener(Protocol):
    """Hears what happens to the shards of a run."""

    def started(self, shard: Shard) -> None:
        """A shard was given to a worker."""

    def advanced(self, shard: Shard, samples: int) -> None:
        """Another ``samples`` of its samples are finished."""

    def done(self, shard: Shard, failures: Failures) -> None:
        """It is finished, and its result is written."""


class Run(Protocol):
    """The function of a runner."""

    def __call__(self, job: Job, shards: Iterator[Shard | None], processes: int, listener: Listener) -> None:
        """Executes shards, in at most ``processes`` processes.

        The iterator gives the shard that should run next, by what the listener has heard so far. It gives None while
        all that are left wait for shards that run.
        """


@dataclass(frozen=True, kw_only=True)
class RunnerCard:
    """The declaration of a runner.

    Attributes:
        name: the runner's name in commands.
        parallel: whether it may use several processes.
    """

    name: str
    parallel: bool = False


def runner(name: str, *, parallel: bool = False) -> Callable[[Run], Run]:
    """Declares `Run`, the function that executes, as a runner. The arguments are those of `RunnerCard`."""
    return attach(RunnerCard(name=name, parallel=parallel))


RUNNERS: Catalog[RunnerCard, Run] = Catalog("runner", "bench.execution", RunnerCard)
AUTO = "auto"
"""Chooses a runner: worker processes if there is more than one shard and more than one process."""


def runner_names() -> list[str]:
    """Returns the values that a user may choose from."""
    return [AUTO, *RUNNERS.names()]


def check_runner(name: str, where: str = "") -> None:
    """Raises `UserError` if there is no runner of this name."""
    if name not in runner_names():
        raise unknown("runner", name, runner_names(), where)


def chosen_runner(name: str, processes: int) -> Run:
    """Returns the runner of a name, given the number of processes that could have work."""
    return RUNNERS.get(("serial" if processes == 1 else "process") if name == AUTO else name).function
