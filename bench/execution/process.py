"""The process runner: executes cells and studies in worker processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from bench.contracts.guard import UNGUARDED, unguarded
from bench.contracts.work import Work
from bench.engine.cell import OUT_OF_MEMORY
from bench.execution.runners import Listener, runner
from bench.execution.worker import Job, Worker

_GRACE_SECONDS = 60
"""Seconds after a cell's timeout at which its worker is killed. Between queries a worker notices the timeout itself."""
SIGKILLED = -9
"""Exit code of a worker that was killed. The system kills workers when memory runs out."""


class _WorkerProcess:
    """A worker process and its current cell."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(job, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.cell: Work | None = None
        self.started = 0.0

    def give(self, cell: Work) -> None:
        self.cell, self.started = cell, time.monotonic()
        self.connection.send(cell)

    @property
    def overdue(self) -> bool:
        limit = None if self.cell is None else self.cell.timeout
        return limit is not None and time.monotonic() - self.started > limit + _GRACE_SECONDS

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@runner("process", parallel=True)
def run_processes(job: Job, works: Sequence[Work], processes: int, listener: Listener) -> None:
    """Runs cells in ``processes`` worker processes.

    If a worker dies or hangs, its cell fails and the worker is replaced.
    """
    waiting = iter(works)
    lost: list[tuple[Work, str]] = []
    workers = [_WorkerProcess(job) for _ in range(min(processes, len(works)))]
    try:
        workers = [worker for worker in workers if _assign(worker, waiting, listener)]
        while workers:
            ready = wait([worker.connection for worker in workers], timeout=1.0)
            for worker in list(workers):
                reason = None
                if worker.connection in ready:
                    reason = _receive(worker, listener)
                elif worker.overdue:
                    reason = "timeout: its worker hung and was killed"
                if reason is not None:
                    assert worker.cell is not None
                    lost.append((worker.cell, reason))
                    workers.remove(worker)
                    worker.stop()
                    worker = _WorkerProcess(job)
                    workers.append(worker)
                    worker.cell = None
                if worker.cell is None and not _assign(worker, waiting, listener):
                    workers.remove(worker)
                    worker.stop()
    finally:
        for worker in workers:
            worker.stop()
    if lost:
        here = Worker(job)
        for cell, reason in lost:
            listener.done(cell, here.fail(cell, reason))


def _assign(worker: _WorkerProcess, waiting: Iterator[Work], listener: Listener) -> bool:
    cell = next(waiting, None)
    if cell is not None:
        worker.give(cell)
        listener.started(cell)
    return cell is not None


def _receive(worker: _WorkerProcess, listener: Listener) -> str | None:
    """Handles one message from a worker. Returns the reason if the worker is lost, otherwise None."""
    assert worker.cell is not None
    try:
        what, value = worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join(timeout=5)
        if worker.process.exitcode == UNGUARDED:
            raise unguarded() from None
        killed = f"; if {OUT_OF_MEMORY}" if worker.process.exitcode == SIGKILLED else ""
        return f"worker lost (exit code {worker.process.exitcode}{killed})"
    if what == "chunk":
        listener.advanced(worker.cell, value)
        return None
    if what == "crashed":
        return f"worker crashed: {value}"
    listener.done(worker.cell, value)
    worker.cell = None
    return None


def _serve(job: Job, connection: Connection) -> None:
    """Runs a worker's main loop: receives cells, runs them, reports. The loop ends when the connection is closed."""
    try:
        worker = Worker(job)
        while True:
            cell = connection.recv()
            failed = worker.execute(cell, lambda samples: connection.send(("chunk", samples)))
            connection.send(("done", failed))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:
        connection.send(("crashed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
