"""Executes a plan: runs the missing cells and studies, and updates the manifest."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.contracts.errors import UserError
from bench.contracts.progress import bar
from bench.contracts.protocols import HasInnerSteps, HasUnrolledGradient
from bench.contracts.source import engine_code
from bench.contracts.work import Work
from bench.execution.certificates import put_to_test
from bench.execution.forecast import TimeLeft, in_order
from bench.execution.importing import attack_entries
from bench.execution.progress import RunProgress, seconds_in, tasks_of
from bench.execution.runners import run_processes, run_serial
from bench.execution.worker import Job
from bench.ledger.bundles import plugin_entry
from bench.ledger.manifest import load_manifest, write_manifest
from bench.ledger.provenance import provenance
from bench.ledger.reader import write_clean
from bench.planning.matrix import Matrix
from bench.planning.plan import Planned, entry_of, manifest_there
from bench.studies.catalog import code_of
from bench.studies.refutation import KIND as REFUTATION

RunnerName = Literal["auto", "serial", "process"]
RUNNERS: tuple[RunnerName, ...] = ("auto", "serial", "process")


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


def process_count(workers: int | None, runner: RunnerName, device: torch.device) -> int:
    """Returns the number of processes: ``workers``, or by default one per core, or one on a GPU.

    The serial runner always has one.
    """
    if runner == "serial":
        return 1
    return workers or (1 if device.type != "cpu" else len(os.sched_getaffinity(0)))


def execute(
    planned: Planned, run: Path, data_dir: Path | None, device: torch.device, processes: int, runner: RunnerName
) -> Outcome:
    """Runs the cells and studies that are not done, and writes the manifest.

    They run in ``processes`` worker processes unless the runner is serial. Every cell computes with one thread on a
    CPU. Therefore its result does not depend on the number of threads.
    """
    matrix = planned.matrix
    job = Job(
        run=run,
        dataset=matrix.dataset,
        data_dir=data_dir,
        plugins=planned.registry.plugins,
        variants=planned.registry.variants,
        seed=matrix.seed,
        device=str(device),
        provenance=provenance(str(device), matrix.seed),
    )
    for line in _remarks(planned):
        print(line, file=sys.stderr, flush=True)
    content = manifest(planned, run, job.provenance)
    works: list[Work] = [*planned.cells, *planned.studies]
    pending = [work for work in works if work.id not in planned.done]
    write_manifest(run, content, finished=not pending)
    failed = _carry_out(planned, job, pending, processes, runner) if pending else {}
    put_to_test(run, planned.defenses, planned.dataset, matrix.seed, device, job.provenance)
    write_manifest(run, load_manifest(run), finished=True)
    lines = [_failure(works, reason) for (_, reason), works in failed.items()]
    return Outcome(len(pending), len(planned.done), [*planned.broken.values(), *lines])


def _carry_out(
    planned: Planned, job: Job, pending: Sequence[Work], processes: int, runner: RunnerName
) -> Mapping[tuple[str, str], Sequence[Work]]:
    """Runs cells and studies, and returns those with failed samples, by defense and reason."""
    name, by_id = planned.matrix.name, {work.id: work for work in pending}
    works: list[Work] = [*planned.cells, *planned.studies]
    there = [work for work in works if work.id in planned.done]
    known, missing = tasks_of(there, planned.defenses), tasks_of(pending, planned.defenses)
    order = in_order(missing, known)
    measured = {work.id: seconds_in(job.run, work) for work in there}
    time_left = TimeLeft(order, known, measured, processes)
    samples = sum(work.samples for work in pending)
    with bar(f"{name}: {len(pending)} cells", samples, time_left.seconds) as shown:
        progress, ordered = RunProgress(shown, time_left, job.run), [by_id[task.id] for task in order]
        if runner == "serial" or (runner == "auto" and min(processes, len(pending)) == 1):
            run_serial(job, ordered, progress)
        else:
            run_processes(job, ordered, processes, progress)
    return progress.failed


def _failure(works: Sequence[Work], reason: str) -> str:
    """Returns one line on the cells of a defense that failed for the same reason."""
    others = "" if len(works) == 1 else f" and {len(works) - 1} more"
    return f"{works[0].title}{others}: {reason}"


def _remarks(planned: Planned) -> list[str]:
    """Returns the user's messages on existing results that are not kept."""
    again, out = Counter(planned.stale.values()), Counter(planned.left_out.values())
    return [
        *(f"{count} cells run again: {reason}" for reason, count in again.items()),
        *(f"{count} imported cells are left out: {reason}" for reason, count in out.items()),
    ]


def manifest(planned: Planned, run: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a run's manifest, including imported cells, for `bench.ledger.manifest.write_manifest`.

    It also writes the clean images that the manifest names.
    """
    matrix, dataset = planned.matrix, planned.dataset
    images = dataset.test.images[: matrix.samples].numpy()
    labels = dataset.test.labels[: matrix.samples].numpy()
    cards = {entry.label: planned.registry.get("attacks", entry.name).attack_card for entry in matrix.attacks}
    first = {entry.label: entry for entry in reversed(matrix.attacks)}
    norms = {
        label: [n for e in matrix.attacks if e.label == label for n in matrix.norms_of(e, cards[label])]
        for label in cards
    }
    # Kept provisionally: `put_to_test` decides later which of them still hold.
    refutations = [study for study in manifest_there(run).get("studies", []) if study["kind"] == REFUTATION]
    imported = [entry for entry in planned.imported if entry["id"] not in planned.left_out]
    return {
        "matrix": matrix.name,
        "definition": matrix.model_dump(mode="json"),
        "plugins": [plugin_entry(Path(plugin)) for plugin in planned.registry.plugins],
        "dataset": {"name": dataset.name, "classes": dataset.classes, "shape": list(dataset.shape)},
        "samples": list(range(matrix.samples)),
        "images": write_clean(run, images, labels),
        "seed": matrix.seed,
        "thresholds": dict(matrix.thresholds),
        "estimation_draws": matrix.estimation_draws,
        "resubmissions": matrix.resubmissions,
        "defenses": [_defense_entry(planned, name) for name in matrix.labels],
        "attacks": [
            {
                "name": label,
                "norms": [norm for norm in matrix.thresholds if norm in norms[label]],
                "kind": first[label].kind,
                "access": card.access,
                "parameters": first[label].effective(card, norms[label]),
                "budget": first[label].budget or card.budget,
                "citation": card.citation,
            }
            for label, card in cards.items()
        ]
        + attack_entries(imported),
        "cells": [entry_of(cell) for cell in planned.cells] + imported,
        "studies": [*(entry_of(study) for study in planned.studies), *refutations],
        "imported": planned.imported,
        "turns": manifest_there(run).get("turns", []),
        "modules": modules(planned),
        "not_applicable": [asdict(place) for place in planned.not_applicable],
        "provenance": origin,
    }


def _defense_entry(planned: Planned, name: str) -> dict[str, Any]:
    """Returns the manifest's entry of a defense. A defense that could not be built has empty ``weights``."""
    loaded = planned.defenses.get(name)
    card = planned.registry.get("defenses", name).defense_card
    plugin, parameters = planned.matrix.variants.get(name, ("", {}))
    return {
        "name": name,
        "citation": card.citation,
        "randomized": card.randomized,
        "unrolled": loaded is not None
        and all(isinstance(loaded.defense, of) for of in (HasInnerSteps, HasUnrolledGradient)),
        "parameters": card.parameters,
        "family": card.family,
        "parts": list(card.parts),
        "weights": "" if loaded is None else loaded.fingerprint,
        "plugin": plugin,
        "set": parameters,
    }


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
