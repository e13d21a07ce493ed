"""Runs a matrix: loads and trains its defenses, plans its cells, runs those that are missing, keeps the ledger."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.bundles import plugin_entry
from bench.cells import Cell, NotApplicable, plan, transfers
from bench.consistency import Images, sample_hash
from bench.datasets import Dataset, load_dataset
from bench.errors import DefenseFault, UserError
from bench.guard import refuse_unguarded
from bench.importing import attack_entries, outdated
from bench.ledger import (
    SCHEMA_VERSION,
    Reader,
    is_done,
    ledger_dir,
    load_manifest,
    read_provenance,
    write_clean,
    write_manifest,
)
from bench.loading import LoadedDefense, load_trained, make_defense, needs_training, train_side_by_side
from bench.matrix import Matrix
from bench.progress import bar
from bench.protocols import HasInnerSteps, HasUnrolledGradient
from bench.provenance import provenance
from bench.refutation import KIND as REFUTATION
from bench.refutation import put_to_test
from bench.registry import Registry
from bench.runners import Failures, Job, Work, run_processes, run_serial
from bench.source import engine_code
from bench.staleness import IMAGES, Answers, answers, difference
from bench.studies import ENTRY, Study, code_of, plan_studies

RunnerName = Literal["auto", "serial", "process"]
RUNNERS: tuple[RunnerName, ...] = ("auto", "serial", "process")


@dataclass(frozen=True)
class Planned:
    """A matrix with its defenses, its cells and what is already there.

    Attributes:
        studies: of its defenses, besides the cells.
        substitute: the defense that attacks transfer from, where some do.
        done: ids of cells and studies whose result exists and is kept.
        stale: why results that exist are not kept, by id.
        imported: what the run's manifest says of cells imported into it.
        left_out: why some of these are not part of the run any more, by id.
        untrained: defenses that were not trained; their cells' ids are not known yet.
        broken: defenses that could not be built, and why; they have no cells.
    """

    matrix: Matrix
    dataset: Dataset
    registry: Registry
    defenses: dict[str, LoadedDefense]
    cells: list[Cell]
    not_applicable: list[NotApplicable]
    studies: list[Study]
    substitute: LoadedDefense | None
    done: set[str]
    stale: dict[str, str]
    imported: list[Any]
    left_out: dict[str, str]
    untrained: set[str]
    broken: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        ran: cells and studies run now.
        kept: cells and studies that were there.
        failed: a line for each defense that could not be built, and for each reason why samples of a defense failed.
    """

    ran: int
    kept: int
    failed: list[str]


def choose_device(name: str) -> torch.device:
    """The torch device of a name; ``auto`` is a GPU where there is one.

    Raises:
        UserError: when there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device {name}: not available here. Allowed: auto, cpu, cuda, cuda:N") from None
    return device


def prepare(
    matrix: Matrix,
    registry: Registry,
    run: Path,
    data_dir: Path | None,
    device: torch.device,
    trainers: int,
    *,
    check: bool = True,
) -> Planned:
    """Plans a matrix; trains the defenses that are not, in up to ``trainers`` processes (0: leaves them untrained).

    A defense that cannot be built leaves the others alone. Where ``check`` is set, a result counts as done only if its
    defense still answers as it did then.

    Raises:
        UserError: for whatever the user has to mend, and when no defense is left.
    """
    refuse_unguarded()
    registry = Registry(registry.plugins, matrix.variants, reuse=True)
    dataset = load_dataset(matrix.dataset, data_dir)
    available = len(dataset.test.labels)
    if matrix.samples > available:
        raise UserError(f"samples is {matrix.samples}; the test set of {dataset.name} has {available} images")
    names = list(matrix.labels)
    if transfers(matrix, registry) and matrix.substitute not in names:
        names.append(matrix.substitute)
    broken: dict[str, str] = {}
    defenses = _all_but(broken, names, lambda name: make_defense(name, dataset, registry))
    untrained = [name for name, made in defenses.items() if needs_training(made, dataset, matrix.seed)]
    if trainers:
        learners = list(dict.fromkeys(defenses[name].learner.card.name for name in untrained))
        if min(trainers, len(learners)) > 1 and device.type == "cpu":
            faults = train_side_by_side(learners, dataset, registry, matrix.seed, trainers)
            trained_with = {name: defenses[name].learner.card.name for name in untrained}
            broken |= {name: faults[learner] for name, learner in trained_with.items() if learner in faults}
        untrained = []
    ready = [name for name in defenses if name not in untrained and name not in broken]
    loaded = _all_but(broken, ready, lambda name: load_trained(name, dataset, registry, matrix.seed, device))
    defenses = {name: loaded.get(name, made) for name, made in defenses.items() if name not in broken}
    if not set(defenses) & set(matrix.labels):
        raise UserError(next(iter(broken.values())))
    cells, not_applicable = plan(matrix, dataset, defenses, defenses.get(matrix.substitute), registry, broken)
    tested = {name: defenses[name] for name in matrix.labels if name in defenses}
    studies = plan_studies(matrix, dataset, tested)
    works: list[Work] = [*cells, *studies]
    known = [work for work in works if not {work.defense, work.substitute} & set(untrained)]
    before = _known(run)
    files = _reader(run, before, matrix, dataset, tested)
    done = {work.id: work.file for work in known if is_done(entry_of(work), files)}
    imported = before.get("imported", [])
    left_out = outdated(imported, tested, dataset, matrix.samples)
    stale: dict[str, str] = {}
    if check:
        current = [entry for entry in imported if entry["id"] not in left_out]
        kept = {entry["id"]: entry["file"] for entry in current if (ledger_dir(run) / entry["file"]).exists()}
        stale = _stale({**done, **kept}, run, defenses, dataset, device)
    return Planned(
        matrix,
        dataset,
        registry,
        tested,
        cells,
        not_applicable,
        studies,
        defenses.get(matrix.substitute) if transfers(matrix, registry) else None,
        done.keys() - stale.keys(),
        {id: reason for id, reason in stale.items() if id in done},
        imported,
        left_out | {id: reason for id, reason in stale.items() if id not in done},
        set(untrained),
        broken,
    )


def _stale(
    files: Mapping[str, str], run: Path, defenses: Mapping[str, LoadedDefense], dataset: Dataset, device: torch.device
) -> dict[str, str]:
    """Why results that are there may not be kept, by id: a defense answers fixed images in another way than before."""
    now: dict[str, Answers] = {}
    reasons = {}
    for id, file in files.items():
        for name, before in read_provenance(ledger_dir(run) / file).get("logits", {}).items():
            if name in defenses and name not in now:
                now[name] = answers(defenses[name].defense, dataset, device)
            found = difference(before, now.get(name))
            if found:
                reasons[id] = f"{name} answers {IMAGES} fixed images differently ({found})"
    return reasons


def entry_of(work: Work) -> dict[str, Any]:
    """What the manifest says of a cell or a study, as far as its file must agree."""
    if isinstance(work, Study):
        return {key: getattr(work, key) for key in ENTRY}
    keys = ("id", "defense", "attack", "norm", "epsilon", "file", "parameters", "budget", "identity")
    judging = {key: work.judging and getattr(work.judging, key) for key in ("alpha", "estimation_draws")}
    return {**{key: getattr(work, key) for key in keys}, **judging}


def _known(run: Path) -> dict[str, Any]:
    """The manifest of what is there already; empty where there is none of this schema version."""
    known = load_manifest(run) if (ledger_dir(run) / "manifest.json").exists() else {}
    return known if known.get("schema") == SCHEMA_VERSION else {}


def _reader(
    run: Path, known: Mapping[str, Any], matrix: Matrix, dataset: Dataset, defenses: Mapping[str, LoadedDefense]
) -> Reader:
    """Reads what is there of a run, which has this manifest."""
    images = Images(
        dataset=dataset.name,
        classes=dataset.classes,
        shape=tuple(dataset.shape),
        samples=range(matrix.samples),
        hashes=[sample_hash(image) for image in dataset.test.images[: matrix.samples].numpy()],
        labels=dataset.test.labels[: matrix.samples].numpy(),
        randomized={name: loaded.card.randomized for name, loaded in defenses.items()},
    )
    return Reader(ledger_dir(run), images, known.get("files", {}))


def _all_but(
    broken: dict[str, str], names: Sequence[str], make: Callable[[str], LoadedDefense]
) -> dict[str, LoadedDefense]:
    """Returns the defenses of these names; enters into ``broken`` what is wrong with the others."""
    made: dict[str, LoadedDefense] = {}
    for name in names:
        try:
            made[name] = make(name).readable()
        except DefenseFault as error:
            broken[name] = str(error)
    return made


def process_count(workers: int | None, runner: RunnerName, device: torch.device) -> int:
    """The number of processes asked for; by default one per core, one on a GPU. The serial runner has one."""
    if runner == "serial":
        return 1
    return workers or (1 if device.type != "cpu" else len(os.sched_getaffinity(0)))


def execute(
    planned: Planned, run: Path, data_dir: Path | None, device: torch.device, processes: int, runner: RunnerName
) -> Outcome:
    """Runs cells and studies that are not done, in ``processes`` unless the runner is serial, and writes the manifest.

    Every cell computes with one thread on a CPU, so that its result does not depend on it.
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
    pending = sorted(
        (work for work in works if work.id not in planned.done),
        key=lambda work: -cost(work, planned.defenses[work.defense]),
    )
    failed: defaultdict[tuple[str, str], list[Work]] = defaultdict(list)
    write_manifest(run, content, finished=not pending)
    if pending:
        samples = sum(work.samples for work in pending)
        with bar(f"{matrix.name}: {len(pending)} cells", samples) as progress:

            def on_chunk(cell: Work, amount: int) -> None:
                progress.advance(amount, cell.title)

            def on_done(cell: Work, failures: Failures) -> None:
                for reason in failures:
                    failed[cell.defense, reason].append(cell)

            if runner == "serial" or (runner == "auto" and min(processes, len(pending)) == 1):
                run_serial(job, pending, on_done, on_chunk)
            else:
                run_processes(job, pending, processes, on_done, on_chunk)
    put_to_test(run, planned.defenses, planned.dataset, matrix.seed, device, job.provenance)
    write_manifest(run, load_manifest(run), finished=True)
    lines = [_failure(works, reason) for (_, reason), works in failed.items()]
    return Outcome(len(pending), len(planned.done), [*planned.broken.values(), *lines])


def _failure(works: Sequence[Work], reason: str) -> str:
    """One line on the cells of a defense that failed for the same reason."""
    others = "" if len(works) == 1 else f" and {len(works) - 1} more"
    return f"{works[0].title}{others}: {reason}"


def _remarks(planned: Planned) -> list[str]:
    """What a user is told of results that are there and not kept."""
    again, out = Counter(planned.stale.values()), Counter(planned.left_out.values())
    return [
        *(f"{count} cells run again: {reason}" for reason, count in again.items()),
        *(f"{count} imported cells are left out: {reason}" for reason, count in out.items()),
    ]


def cost(cell: Work, loaded: LoadedDefense) -> float:
    """A cell's or study's cost at most, in forward and backward passes, an inner optimisation step counting as one."""
    inner = loaded.defense.inner_steps if isinstance(loaded.defense, HasInnerSteps) else 0
    return cell.budget * cell.samples * (1.0 + inner)


def manifest(planned: Planned, run: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """What a run is, for `bench.ledger.write_manifest`, with what was imported into it; also writes the clean images it
    names."""
    matrix, dataset = planned.matrix, planned.dataset
    images = dataset.test.images[: matrix.samples].numpy()
    labels = dataset.test.labels[: matrix.samples].numpy()
    cards = {entry.label: planned.registry.get("attacks", entry.name).attack_card for entry in matrix.attacks}
    first = {entry.label: entry for entry in reversed(matrix.attacks)}
    norms = {
        label: [n for e in matrix.attacks if e.label == label for n in matrix.norms_of(e, cards[label])]
        for label in cards
    }
    # `put_to_test` says which of these still hold.
    refutations = [study for study in _known(run).get("studies", []) if study["kind"] == REFUTATION]
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
        "turns": _known(run).get("turns", []),
        "modules": modules(planned),
        "not_applicable": [asdict(place) for place in planned.not_applicable],
        "provenance": origin,
    }


def _defense_entry(planned: Planned, name: str) -> dict[str, Any]:
    """Returns what the manifest says of a defense; one that could not be built has no weights."""
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
    """Digests of all modules that the run's results depend on, by name."""
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
    """Where a matrix runs unless told otherwise."""
    return Path("runs") / matrix.name
