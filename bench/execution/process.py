"""The process runner: executes shards in worker processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from bench.contracts.guard import UNGUARDED, unguarded
from bench.contracts.work import Shard
from bench.engine.cell import OUT_OF_MEMORY
from bench.execution.runners import Listener, runner
from bench.execution.worker import Job, Worker

_GRACE_SECONDS = 60
"""Seconds after a shard's timeout at which its worker is killed. Between queries the worker notices it itself."""
SIGKILLED = -9
"""Exit code of a worker that was killed. The system kills workers when memory runs out."""


class _WorkerProcess:
    """A worker process and its current shard."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(job, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.shard: Shard | None = None
        self.started = 0.0

    def give(self, shard: Shard) -> None:
        self.shard, self.started = shard, time.monotonic()
        self.connection.send(shard)

    @property
    def overdue(self) -> bool:
        limit = None if self.shard is None else self.shard.timeout
        return limit is not None and time.monotonic() - self.started > limit + _GRACE_SECONDS

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@runner("process", parallel=True)
def run_processes(job: Job, shards: Iterator[Shard | None], processes: int, listener: Listener) -> None:
    """Runs shards in ``processes`` worker processes.

    If a worker dies or hangs, its shard fails and the worker is replaced.
    """
    here: Worker | None = None
    workers = [_WorkerProcess(job) for _ in range(processes)]
    try:
        workers = [worker for worker in workers if _assign(worker, shards, listener)]
        while workers:
            ready = wait([worker.connection for worker in workers], timeout=1.0)
            for worker in list(workers):
                reason = None
                if worker.connection in ready:
                    reason = _receive(worker, listener)
                elif worker.overdue:
                    reason = "timeout: its worker hung and was killed"
                if reason is not None:
                    assert worker.shard is not None
                    here = here or Worker(job)
                    listener.done(worker.shard, here.fail(worker.shard, reason))
                    workers.remove(worker)
                    worker.stop()
                    worker = _WorkerProcess(job)
                    workers.append(worker)
                if worker.shard is None and not _assign(worker, shards, listener):
                    workers.remove(worker)
                    worker.stop()
    finally:
        for worker in workers:
            worker.stop()


def _assign(worker: _WorkerProcess, shards: Iterator[Shard | None], listener: Listener) -> bool:
    """Gives a worker the next shard, unless it has to wait. Returns False if there are no more."""
    try:
        shard = next(shards)
    except StopIteration:
        return False
    if shard is not None:
        worker.give(shard)
        listener.started(shard)
    return True


def _receive(worker: _WorkerProcess, listener: Listener) -> str | None:
    """Handles one message from a worker. Returns the reason if the worker is lost, otherwise None."""
    assert worker.shard is not None
    try:
        what, value = worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join(timeout=5)
        if worker.process.exitcode == UNGUARDED:
            raise unguarded() from None
        killed = f"; if {OUT_OF_MEMORY}" if worker.process.exitcode == SIGKILLED else ""
        return f"worker lost (exit code {worker.process.exitcode}{killed})"
    if what == "samples":
        listener.advanced(worker.shard, value)
        return None
    if what == "crashed":
        return f"worker crashed: {value}"
    listener.done(worker.shard, value)
    worker.shard = None
    return None


def _serve(job: Job, connection: Connection) -> None:
    """Runs a worker's main loop: receives shards, runs them, reports. The loop ends when the connection is closed."""
    try:
        worker = Worker(job)
        while True:
            shard = connection.recv()
            failed = worker.execute(shard, lambda samples: connection.send(("samples", samples)))
            connection.send(("done", failed))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:
        connection.send(("crashed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
