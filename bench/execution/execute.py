"""Executes a plan: runs the missing cells and studies, and updates the manifest."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.contracts.errors import UserError
from bench.contracts.progress import bar
from bench.contracts.protocols import HasInnerSteps, HasUnrolledGradient
from bench.contracts.source import engine_code
from bench.contracts.work import Work
from bench.execution.certificates import put_to_test
from bench.execution.forecast import Schedule
from bench.execution.progress import RunProgress, seconds_in, tasks_of
from bench.execution.runners import AUTO, RUNNERS, check_runner, chosen_runner
from bench.execution.worker import Job
from bench.ledger.bundles import plugin_entry
from bench.ledger.entries import (
    AttackEntry,
    CellEntry,
    DatasetEntry,
    DefenseEntry,
    GapEntry,
    StudyEntry,
    attacks_of_imports,
)
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest, manifest_there, write_manifest
from bench.ledger.provenance import provenance
from bench.ledger.reader import write_clean
from bench.planning.matrix import Matrix
from bench.planning.plan import Planned
from bench.studies.catalog import code_of
from bench.studies.refutation import KIND as REFUTATION


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        ran: number of cells and studies that ran now.
        kept: number of cells and studies with existing results.
        failed: one line per defense that could not be built, and one per reason why samples of a defense failed.
    """

    ran: int
    kept: int
    failed: list[str]


def choose_device(name: str) -> torch.device:
    """Returns the torch device of a name. ``auto`` is a GPU if there is one, otherwise the CPU.

    Raises:
        UserError: when the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device {name}: not available here. Allowed: auto, cpu, cuda, cuda:N") from None
    return device


def process_count(workers: int | None, runner: str, device: torch.device) -> int:
    """Returns the number of processes: ``workers``, or by default one per core, or one on a GPU.

    A runner that is not parallel always has one.

    Raises:
        UserError: when there is no such runner.
    """
    check_runner(runner)
    if runner != AUTO and not RUNNERS.get(runner).card.parallel:
        return 1
    return workers or (1 if device.type != "cpu" else len(os.sched_getaffinity(0)))


def execute(planned: Planned, processes: int, runner: str) -> Outcome:
    """Runs the cells and studies that are not done, and writes the manifest.

    A parallel runner uses at most ``processes`` processes. Every cell computes with one thread on a
    CPU. Therefore its result does not depend on the number of threads.
    """
    matrix, run, device = planned.matrix, planned.site.run, planned.site.device
    job = Job(
        run=run,
        dataset=matrix.dataset,
        data_dir=planned.site.data_dir,
        plugins=planned.registry.plugins,
        variants=planned.registry.variants,
        seed=matrix.seed,
        device=str(device),
        provenance={**provenance(str(device), matrix.seed), "arithmetic": _arithmetic(planned)},
    )
    for line in _remarks(planned):
        print(line, file=sys.stderr, flush=True)
    content = manifest(planned, job.provenance)
    write_manifest(run, content, finished=not planned.pending)
    failed = _carry_out(planned, job, processes, runner) if planned.pending else {}
    put_to_test(run, planned.defenses, planned.dataset, matrix.seed, device, job.provenance)
    write_manifest(run, load_manifest(run), finished=True)
    lines = [_failure(works, reason) for (_, reason), works in failed.items()]
    kept = len(planned.works) - len(planned.pending)
    return Outcome(len(planned.pending), kept, [*planned.broken.values(), *lines])


def _carry_out(planned: Planned, job: Job, processes: int, runner: str) -> Mapping[tuple[str, str], Sequence[Work]]:
    """Runs the missing shards, and returns the cells and studies with failed samples, by defense and reason."""
    shards = {shard.id: shard for own in planned.shards.values() for shard in own}
    there = [shard for id, shard in shards.items() if id in planned.done]
    pending = [shard for id, shard in shards.items() if id not in planned.done]
    processes = min(processes, len(pending))
    seconds = {shard.id: seconds_in(job.run, shard) for shard in there}
    schedule = Schedule(
        tasks_of(pending, planned.defenses),
        tasks_of(there, planned.defenses),
        {id: each for id, each in seconds.items() if each is not None},
        processes,
    )
    title = f"{planned.matrix.name}: {len(planned.pending)} cells"
    with bar(title, sum(len(shard.samples) for shard in pending), schedule.seconds_left) as shown:
        progress = RunProgress(shown, schedule, job.run)
        chosen_runner(runner, processes)(
            job, (None if task is None else shards[task.id] for task in schedule), processes, progress
        )
    return progress.failed


def _arithmetic(planned: Planned) -> str:
    """Returns the ways in which this machine computes those defenses that have several; empty without such defenses."""
    return ", ".join(sorted({loaded.arithmetic for loaded in planned.defenses.values()} - {""}))


def _failure(works: Sequence[Work], reason: str) -> str:
    """Returns one line on the cells of a defense that failed for the same reason."""
    others = "" if len(works) == 1 else f" and {len(works) - 1} more"
    return f"{works[0].title}{others}: {reason}"


def _remarks(planned: Planned) -> list[str]:
    """Returns the messages to the user before a run: how it computes, and which existing results are not kept."""
    again, out = Counter(planned.stale.values()), Counter(planned.left_out.values())
    ways = _arithmetic(planned)
    return [
        *([f"{planned.matrix.name}: inference by {ways}"] if ways else []),
        *(f"{count} cells run again: {reason}" for reason, count in again.items()),
        *(f"{count} imported cells are left out: {reason}" for reason, count in out.items()),
    ]


def manifest(planned: Planned, origin: dict[str, Any]) -> Manifest:
    """Returns a run's manifest, including imported cells. It also writes the clean images that the manifest names."""
    matrix, dataset, run = planned.matrix, planned.dataset, planned.site.run
    images = dataset.test.images[: matrix.samples].numpy()
    labels = dataset.test.labels[: matrix.samples].numpy()
    before = manifest_there(run)
    # Kept provisionally: `put_to_test` decides later which of them still hold.
    refutations = [study for study in before.studies if study.kind == REFUTATION] if before is not None else []
    imported = [entry for entry in planned.imported if entry.id not in planned.left_out]
    return Manifest(
        matrix=matrix.name,
        definition=matrix.model_dump(mode="json"),
        plugins=tuple(plugin_entry(Path(plugin)) for plugin in planned.registry.plugins),
        dataset=DatasetEntry(name=dataset.name, classes=dataset.classes, shape=dataset.shape),
        samples=tuple(range(matrix.samples)),
        images=write_clean(run, images, labels),
        seed=matrix.seed,
        thresholds=dict(matrix.thresholds),
        estimation_draws=matrix.estimation_draws,
        resubmissions=matrix.resubmissions,
        defenses=tuple(_defense_entry(planned, name) for name in matrix.labels),
        attacks=(*_attack_entries(planned), *attacks_of_imports(imported)),
        cells=(*(CellEntry.of(cell, planned.shards[cell.id]) for cell in planned.cells), *imported),
        studies=(*map(StudyEntry.of, planned.studies), *refutations),
        imported=planned.imported,
        turns=before.turns if before is not None else (),
        modules=modules(planned),
        not_applicable=tuple(GapEntry(**asdict(place)) for place in planned.not_applicable),
        provenance=origin,
    )


def _defense_entry(planned: Planned, name: str) -> DefenseEntry:
    """Returns the manifest's entry of a defense. A defense that could not be built has empty ``weights``."""
    loaded = planned.defenses.get(name)
    made = None if loaded is None else loaded.defense
    optimizes = isinstance(made, HasInnerSteps) and made.inner_steps > 0
    card = planned.registry.get("defenses", name).defense_card
    plugin, parameters = planned.matrix.variants.get(name, ("", {}))
    return DefenseEntry(
        name=name,
        citation=card.citation,
        randomized=card.randomized,
        unrolled=optimizes and isinstance(made, HasUnrolledGradient),
        optimizes=optimizes,
        parameters=card.parameters,
        family=card.family,
        parts=card.parts,
        weights="" if loaded is None else loaded.fingerprint,
        plugin=plugin,
        set=dict(parameters),
        samples=None if planned.matrix.samples_of(name) == planned.matrix.samples else planned.matrix.samples_of(name),
    )


def _attack_entries(planned: Planned) -> Iterator[AttackEntry]:
    """Yields the manifest's entries of the matrix's attacks, each with all its norms."""
    matrix = planned.matrix
    for label in dict.fromkeys(entry.label for entry in matrix.attacks):
        entries = [entry for entry in matrix.attacks if entry.label == label]
        card = planned.registry.get("attacks", entries[0].name).attack_card
        norms = [norm for entry in entries for norm in matrix.norms_of(entry, card)]
        yield AttackEntry(
            name=label,
            norms=tuple(norm for norm in matrix.thresholds if norm in norms),
            kind=entries[0].kind,
            access=card.access,
            parameters=entries[0].effective(card, norms),
            budget=entries[0].budget or card.budget,
            citation=card.citation,
        )


def modules(planned: Planned) -> dict[str, str]:
    """Returns the digests of all modules that the run's results depend on, by name."""
    attacks = [planned.registry.get("attacks", entry.name) for entry in planned.matrix.attacks]
    closures = [
        engine_code(),
        *(attack.code for attack in attacks),
        *(loaded.code for loaded in planned.defenses.values()),
        *([planned.substitute.code] if planned.substitute is not None else []),
        *(code_of(kind) for kind in planned.matrix.studies),
    ]
    return dict(sorted({name: digest for of in closures for name, digest in of.modules.items()}.items()))


def default_out(matrix: Matrix) -> Path:
    """Returns the default folder of a matrix's run."""
    return Path("runs") / matrix.name
