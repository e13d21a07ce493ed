"""A worker: runs shards of cells and studies in its process and writes their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.conformance.examination import examined
from bench.contracts.devices import rows_per_pass
from bench.contracts.errors import UserError
from bench.contracts.norms import norm_named
from bench.contracts.source import engine_code
from bench.contracts.work import Cell, Shard, Study, Work
from bench.datasets.dataset import Dataset, load_dataset
from bench.engine.cell import (
    CELL_THREADS,
    Adversary,
    CellResult,
    Substitute,
    Target,
    cause,
    failed_result,
    run_cell,
)
from bench.ledger.files import images_beside, read_result, write_cell, write_study
from bench.ledger.schema import Status, ledger_dir
from bench.planning.staleness import Answers, answers
from bench.plugins.isolation import kept_defaults
from bench.plugins.registry import Registry, Variants
from bench.studies.catalog import STUDIES, code_of
from bench.studies.study import Measured, failed_study
from bench.training.loading import LoadedDefense, load_trained

Failures = Counter[str]
"""Number of failed samples, by reason."""


@dataclass(frozen=True)
class Job:
    """The information that a worker needs besides the cell. A job can be sent to another process."""

    run: Path
    dataset: str
    data_dir: Path | None
    plugins: tuple[str, ...]
    variants: Variants
    seed: int
    device: str
    provenance: dict[str, Any]


class Worker:
    """Runs shards of cells and studies in this process.

    Each defense is loaded and examined once, and judged once on each chunk of clean images.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._registry = Registry(job.plugins, job.variants, reuse=True)
        self._engine = engine_code().digest
        self._dataset: Dataset = load_dataset(job.dataset, job.data_dir)
        self._defenses: dict[str, LoadedDefense] = {}
        self._targets: dict[str, Target] = {}
        self._substitutes: dict[str, Substitute] = {}
        self._answers: dict[str, Answers] = {}

    def execute(self, shard: Shard, on_samples: Callable[[int], None] = lambda samples: None) -> Failures:
        """Runs one shard, writes its result, and returns its failures.

        A study calls ``on_samples`` with the number of samples that it has just finished.
        """
        with kept_defaults():
            try:
                return self._write(shard, self._result(shard, on_samples))
            except UserError as error:
                return self.fail(shard, str(error))
            except SystemExit as error:  # raised by a plugin, and the run must go on
                return self.fail(shard, f"exception: SystemExit: {error.code}")
            except Exception as error:
                return self.fail(shard, f"{cause(error)}: {type(error).__name__}: {error}")

    def fail(self, shard: Shard, reason: str) -> Failures:
        """Writes a failed result for a shard that could not run, and returns its failures."""
        work = shard.work
        if isinstance(work, Cell):
            return self._write(shard, failed_result(work, self._dataset, shard.samples, reason))
        assert isinstance(work, Study)
        return self._write(shard, failed_study(STUDIES.get(work.kind).card.schema, work, reason))

    def _result(self, shard: Shard, on_samples: Callable[[int], None]) -> CellResult | Measured:
        if isinstance(shard.work, Cell):
            return self._run(shard.work, shard)
        assert isinstance(shard.work, Study)
        return self._measure(shard.work, on_samples)

    def _write(self, shard: Shard, result: CellResult | Measured) -> Failures:
        """Writes a result and returns its failures."""
        work, path = shard.work, ledger_dir(self._job.run) / shard.file
        facts = {**self._job.provenance, "state": work.state, "logits": self._answers_of(work)}
        if isinstance(work, Cell) and isinstance(result, CellResult):
            facts |= {
                "parameters": work.parameters,
                "budget": work.budget,
                "inner_budget": work.inner_budget,
                "chunk": work.chunk,
                "batch_size": rows_per_pass(work.batch_size, torch.device(self._job.device)),
                "judging": work.judging and asdict(work.judging),
            }
            write_cell(path, result.records, result.adversarials, facts, result.likeliest)
        elif isinstance(work, Study) and isinstance(result, Measured):
            facts["batch_size"] = work.batch_size
            write_study(path, result.records, STUDIES.get(work.kind).card.schema, facts, result.images)
        return Counter(result.records.loc[result.records["status"] == Status.FAILED, "reason"])

    def _measure(self, study: Study, on_samples: Callable[[int], None]) -> Measured:
        device = torch.device(self._job.device)
        torch.set_num_threads(CELL_THREADS)
        loaded = self._loaded(study.defense, device, study.state)
        _check("study", code_of(study.kind).digest, study.state)
        return STUDIES.get(study.kind).function(study, loaded.defense, self._dataset, device, on_samples)

    def _run(self, cell: Cell, shard: Shard) -> CellResult:
        device = torch.device(self._job.device)
        self._loaded(cell.defense, device, cell.state)
        attack = self._registry.get("attacks", cell.function)
        _check("engine", self._engine, cell.state)
        _check("attack", attack.code.digest, cell.state)
        substitute = None
        if cell.substitute is not None:
            loaded_substitute = self._loaded(cell.substitute, device)
            _check("substitute", loaded_substitute.digest, cell.state)
            source = Substitute(loaded_substitute.defense)
            substitute = self._substitutes.setdefault(cell.substitute, source)
        return run_cell(
            cell,
            self._targets[cell.defense],
            Adversary(attack.function, substitute, self._starts(cell, shard)),
            self._dataset,
            device,
            shard.samples,
        )

    def _starts(self, cell: Cell, shard: Shard) -> tuple[Tensor, Tensor] | None:
        """Returns the nearest adversarial examples that the cells before found, and True where there is one."""
        if not shard.after:
            return None
        nearest = np.full(len(shard.samples), np.inf)
        rows = slice(shard.samples.start, shard.samples.stop)
        images = self._dataset.test.images[rows].numpy().copy()
        for before in shard.after:
            result = read_result(ledger_dir(self._job.run) / before.file)
            records = result.table.to_pandas()
            if records["status"].eq(Status.FAILED).any():
                raise UserError(f"{before.work.title}, from which it starts, failed")
            distances = np.where(records["broken"], records[norm_named(cell.norm).column], np.inf)
            nearer = distances < nearest
            nearest[nearer] = distances[nearer]
            images[nearer] = images_beside(result)["adversarial"][nearer]
        return torch.from_numpy(images), torch.from_numpy(np.isfinite(nearest))

    def _loaded(self, name: str, device: torch.device, state: Mapping[str, str] | None = None) -> LoadedDefense:
        if name not in self._defenses:
            self._defenses[name] = load_trained(name, self._dataset, self._registry, self._job.seed, device)
            self._answers[name] = answers(self._defenses[name].defense, self._dataset, device)
        loaded = self._defenses[name]
        if state is not None:
            _check("defense", loaded.code.digest, state)
            if loaded.arithmetic != state.get("arithmetic", ""):
                way = (
                    f"by {loaded.arithmetic or 'one way'}, the run was planned with {state.get('arithmetic') or 'one'}"
                )
                raise UserError(f"defense {name!r} is computed here {way}; use machines of one kind")
            if loaded.fingerprint != state["weights"]:
                raise UserError(f"defense {name!r} has other weights each time it is built; save and load them")
        if name not in self._targets:
            self._targets[name] = Target(loaded.defense, examined(loaded.defense, self._dataset, device))
        return loaded

    def _answers_of(self, work: Work) -> dict[str, Answers]:
        """Returns the logits on fixed images of the loaded defenses that a result depends on."""
        return {name: self._answers[name] for name in sorted(work.needs) if name in self._answers}


def _check(what: str, digest: str, state: Mapping[str, str]) -> None:
    """Checks that the code has not changed since the run was planned, because a result's id holds its digest."""
    if digest != state[what]:
        raise UserError(f"the code of the {what} has changed while the run went on; repeat the command")
