"""Runners: where cells are executed. A result depends on the cell alone, whatever the runner and the order."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.cells import Cell
from bench.contract import examined
from bench.datasets import Dataset, load_dataset
from bench.engine import (
    CELL_THREADS,
    OUT_OF_MEMORY,
    CellResult,
    CleanVerdicts,
    Substitute,
    cause,
    failed_result,
    run_cell,
)
from bench.errors import UserError
from bench.gpu import rows_per_pass
from bench.guard import UNGUARDED, unguarded
from bench.isolation import kept_defaults
from bench.ledger import ledger_dir, write_cell, write_study
from bench.loading import LoadedDefense, load_trained
from bench.registry import Registry, Variants
from bench.source import engine_code
from bench.staleness import Answers, answers
from bench.studies import Measured, Study, code_of, failed_study, kind_of

_GRACE_SECONDS = 60
"""How long after a cell's timeout its worker is killed: between two queries a worker notices the timeout itself."""
SIGKILLED = -9
"""Exit code of a worker that was killed, as the system does when memory runs out."""

Work = Cell | Study
Failures = Counter[str]
"""How many samples failed, by the reason."""
OnDone = Callable[[Work, Failures], None]
"""Told of a cell or study that is done, and of what failed."""
OnChunk = Callable[[Work, int], None]
"""Told of samples of a cell or study that are done."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know besides the cell; it can be sent to another process."""

    run: Path
    dataset: str
    data_dir: Path | None
    plugins: tuple[str, ...]
    variants: Variants
    seed: int
    device: str
    provenance: dict[str, Any]


class Workshop:
    """Runs cells in this process; loads and examines each defense once, and judges it once on each chunk of clean
    images."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._registry = Registry(job.plugins, job.variants, reuse=True)
        self._engine = engine_code().digest
        self._dataset: Dataset = load_dataset(job.dataset, job.data_dir)
        self._defenses: dict[str, LoadedDefense] = {}
        self._remarks: dict[str, tuple[str, ...]] = {}
        self._clean_verdicts: dict[str, CleanVerdicts] = {}
        self._substitutes: dict[str, Substitute] = {}
        self._answers: dict[str, Answers] = {}

    def execute(self, work: Work, on_chunk: Callable[[int], None] = lambda samples: None) -> Failures:
        """Runs one cell or study, writes its result, and returns its failures."""
        with kept_defaults():
            try:
                if isinstance(work, Study):
                    return self._write_study(work, self._measured(work, on_chunk))
                return self.write(work, self._run(work, on_chunk))
            except UserError as error:
                return self.fail(work, str(error))
            except SystemExit as error:  # of a plugin: the run goes on
                return self.fail(work, f"exception: SystemExit: {error.code}")
            except Exception as error:
                return self.fail(work, f"{cause(error)}: {type(error).__name__}: {error}")

    def write(self, cell: Cell, result: CellResult) -> Failures:
        """Writes a cell's result and returns its failures."""
        provenance = {
            **self._job.provenance,
            "parameters": cell.parameters,
            "budget": cell.budget,
            "chunk": cell.chunk,
            "batch_size": rows_per_pass(cell.batch_size, torch.device(self._job.device)),
            "judging": cell.judging and asdict(cell.judging),
            "state": cell.state,
            "logits": self._answers_of(cell),
        }
        path = ledger_dir(self._job.run) / cell.file
        write_cell(path, result.records, result.adversarials, provenance, result.likeliest)
        return _failures(result.records)

    def fail(self, work: Work, reason: str) -> Failures:
        """Writes a failed result for a cell or study that nobody could run, and returns its failures."""
        if isinstance(work, Study):
            return self._write_study(work, failed_study(work, reason))
        return self.write(work, failed_result(work, self._dataset, reason))

    def _measured(self, study: Study, on_chunk: Callable[[int], None]) -> Measured:
        device = torch.device(self._job.device)
        torch.set_num_threads(CELL_THREADS)
        try:
            loaded = self._loaded(study.defense, device, study.state)
            _check("study", code_of(study.kind).digest, study.state)
            return kind_of(study).measure(study, loaded.defense, self._dataset, device, on_chunk)
        except UserError as error:
            return failed_study(study, str(error))
        except Exception as error:
            return failed_study(study, f"{cause(error)}: {type(error).__name__}: {error}")

    def _write_study(self, study: Study, measured: Measured) -> Failures:
        provenance = {
            **self._job.provenance,
            "batch_size": study.batch_size,
            "state": study.state,
            "logits": self._answers_of(study),
        }
        path = ledger_dir(self._job.run) / study.file
        write_study(path, measured.records, kind_of(study).SCHEMA, provenance, measured.images)
        return _failures(measured.records)

    def _run(self, cell: Cell, on_chunk: Callable[[int], None]) -> CellResult:
        device = torch.device(self._job.device)
        loaded = self._loaded(cell.defense, device, cell.state)
        attack = self._registry.get("attacks", cell.function)
        _check("engine", self._engine, cell.state)
        _check("attack", attack.code.digest, cell.state)
        clean_verdicts = self._clean_verdicts.setdefault(cell.defense, {})
        substitute = None
        if cell.substitute is not None:
            loaded_substitute = self._loaded(cell.substitute, device)
            _check("substitute", loaded_substitute.digest, cell.state)
            source = Substitute(loaded_substitute.defense)
            substitute = self._substitutes.setdefault(cell.substitute, source)
        return run_cell(
            cell,
            loaded.defense,
            attack.function,
            self._dataset,
            device,
            on_chunk,
            clean_verdicts,
            substitute,
            self._remarks[cell.defense],
        )

    def _loaded(self, name: str, device: torch.device, state: Mapping[str, str] | None = None) -> LoadedDefense:
        if name not in self._defenses:
            self._defenses[name] = load_trained(name, self._dataset, self._registry, self._job.seed, device)
            self._answers[name] = answers(self._defenses[name].defense, self._dataset, device)
        loaded = self._defenses[name]
        if state is not None:
            _check("defense", loaded.code.digest, state)
            if loaded.fingerprint != state["weights"]:
                raise UserError(f"defense {name!r} has other weights each time it is built; save and load them")
        if name not in self._remarks:
            self._remarks[name] = examined(loaded.defense, self._dataset, device)
        return loaded

    def _answers_of(self, work: Work) -> dict[str, Answers]:
        """The logits on fixed images of the defenses that a result depends on, as far as they were loaded."""
        names = filter(None, (work.defense, work.substitute))
        return {name: self._answers[name] for name in names if name in self._answers}


def _failures(records: pd.DataFrame) -> Failures:
    return Counter(records.loc[records["status"] == "failed", "reason"])


def _check(what: str, digest: str, state: Mapping[str, str]) -> None:
    """Makes sure that code is the same as when the run was planned: the id of a result holds its digest."""
    if digest != state[what]:
        raise UserError(f"the code of the {what} has changed while the run went on; repeat the command")


def run_serial(job: Job, cells: Sequence[Work], on_done: OnDone, on_chunk: OnChunk) -> None:
    """Runs cells one after the other in this process."""
    threads = torch.get_num_threads()
    workshop = Workshop(job)
    for cell in cells:
        on_done(cell, workshop.execute(cell, partial(on_chunk, cell)))
    torch.set_num_threads(threads)


class _Worker:
    """A process that runs cells, and the one it is at."""

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


def run_processes(job: Job, cells: Sequence[Work], workers: int, on_done: OnDone, on_chunk: OnChunk) -> None:
    """Runs cells in worker processes. A worker that dies or hangs fails its cell and is replaced."""
    waiting = iter(cells)
    lost: list[tuple[Work, str]] = []
    crew = [_Worker(job) for _ in range(min(workers, len(cells)))]
    try:
        crew = [worker for worker in crew if _assign(worker, waiting)]
        while crew:
            ready = wait([worker.connection for worker in crew], timeout=1.0)
            for worker in list(crew):
                reason = None
                if worker.connection in ready:
                    reason = _hear(worker, on_done, on_chunk)
                elif worker.overdue:
                    reason = "timeout: its worker hung and was killed"
                if reason is not None:
                    assert worker.cell is not None
                    lost.append((worker.cell, reason))
                    crew.remove(worker)
                    worker.stop()
                    worker = _Worker(job)
                    crew.append(worker)
                    worker.cell = None
                if worker.cell is None and not _assign(worker, waiting):
                    crew.remove(worker)
                    worker.stop()
    finally:
        for worker in crew:
            worker.stop()
    workshop = Workshop(job) if lost else None
    for cell, reason in lost:
        assert workshop is not None
        on_done(cell, workshop.fail(cell, reason))


def _assign(worker: _Worker, waiting: Iterator[Work]) -> bool:
    cell = next(waiting, None)
    if cell is not None:
        worker.give(cell)
    return cell is not None


def _hear(worker: _Worker, on_done: OnDone, on_chunk: OnChunk) -> str | None:
    """Takes one message of a worker; returns why it is lost, if it is."""
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
        on_chunk(worker.cell, value)
        return None
    if what == "crashed":
        return f"worker crashed: {value}"
    on_done(worker.cell, value)
    worker.cell = None
    return None


def _serve(job: Job, connection: Connection) -> None:
    """A worker's main loop: receives cells, runs them, reports; ends when the other side is gone."""
    try:
        workshop = Workshop(job)
        while True:
            cell = connection.recv()
            failed = workshop.execute(cell, lambda samples: connection.send(("chunk", samples)))
            connection.send(("done", failed))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:
        connection.send(("crashed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
