"""Plans a run: loads and trains its defenses, and finds the results that already exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from bench.contracts.errors import DefenseFault, UserError
from bench.contracts.guard import refuse_unguarded
from bench.contracts.protocols import HasInnerSteps
from bench.contracts.work import Cell, Shard, Study, Work
from bench.datasets.dataset import Dataset, load_dataset
from bench.ledger.consistency import Images
from bench.ledger.entries import CellEntry, entry_of
from bench.ledger.files import read_provenance
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import manifest_there
from bench.ledger.reader import Reader, is_done
from bench.ledger.schema import ledger_dir, sample_hash
from bench.planning.cells import NotApplicable, plan, transfers
from bench.planning.imported import outdated
from bench.planning.matrix import Matrix
from bench.planning.staleness import IMAGES, Answers, answers, difference
from bench.planning.studies import plan_studies
from bench.plugins.registry import Registry
from bench.training.loading import LoadedDefense, load_trained, make_defense, needs_training, train_side_by_side


@dataclass(frozen=True)
class Site:
    """Where a run takes place.

    Attributes:
        run: its folder.
        data_dir: folder with the datasets' files; None if there is none.
        device: the device of its defenses.
    """

    run: Path
    data_dir: Path | None
    device: torch.device


@dataclass(frozen=True)
class Planned:
    """A matrix with its defenses, its cells and the existing results.

    Attributes:
        studies: studies of its defenses.
        shards: the shards of its cells and studies, by the id of the cell or study.
        substitute: the defense that attacks transfer from, or None.
        done: ids of shards whose result exists and is kept.
        stale: reasons why existing results are not kept, by the id of their cell or study.
        imported: entries of imported cells in the run's manifest.
        left_out: reasons why imported cells no longer belong to the run, by id.
        untrained: defenses that are not trained. The ids of their cells are not known yet.
        broken: reasons why defenses could not be built, by name. These defenses have no cells.
    """

    matrix: Matrix
    site: Site
    dataset: Dataset
    registry: Registry
    defenses: dict[str, LoadedDefense]
    cells: list[Cell]
    not_applicable: list[NotApplicable]
    studies: list[Study]
    shards: dict[str, tuple[Shard, ...]]
    substitute: LoadedDefense | None
    done: set[str]
    stale: dict[str, str]
    imported: tuple[CellEntry, ...]
    left_out: dict[str, str]
    untrained: set[str]
    broken: dict[str, str]

    @property
    def works(self) -> tuple[Work, ...]:
        """The cells and studies."""
        return (*self.cells, *self.studies)

    @cached_property
    def pending(self) -> tuple[Work, ...]:
        """The cells and studies with shards to run."""
        return tuple(work for work in self.works if any(shard.id not in self.done for shard in self.shards[work.id]))


def prepare(matrix: Matrix, registry: Registry, site: Site, trainers: int, *, check: bool = True) -> Planned:
    """Plans a matrix and trains untrained defenses in up to ``trainers`` processes (0: leaves them untrained).

    A defense that cannot be built does not affect the others. With ``check``, a result counts as done only if its
    defense still gives the same answers as before.

    Raises:
        UserError: for anything that the user has to fix, and when no defense is left.
    """
    refuse_unguarded()
    registry = Registry(registry.plugins, matrix.variants, reuse=True)
    dataset = load_dataset(matrix.dataset, site.data_dir)
    available = len(dataset.test.labels)
    if matrix.samples > available:
        raise UserError(f"samples is {matrix.samples}; the test set of {dataset.name} has {available} images")
    broken: dict[str, str] = {}
    defenses, untrained = _defenses(matrix, registry, dataset, site.device, trainers, broken)
    if not set(defenses) & set(matrix.labels):
        raise UserError(next(iter(broken.values())))
    cells, not_applicable = plan(matrix, dataset, defenses, defenses.get(matrix.substitute), registry, broken)
    tested = {name: defenses[name] for name in matrix.labels if name in defenses}
    studies = plan_studies(matrix, dataset, tested)
    works: tuple[Work, ...] = (*cells, *studies)
    before = manifest_there(site.run)
    files = _reader(site.run, before, matrix, dataset, tested)
    shards = {work.id: work.shards(files.images.hashes) for work in works}
    done = _done([work for work in works if not work.needs & untrained], shards, files)
    imported = before.imported if before is not None else ()
    left_out = outdated(imported, tested, dataset, matrix.samples_of)
    stale: dict[str, str] = {}
    if check:
        current = [entry for entry in imported if entry.id not in left_out]
        kept = {
            entry.id: list(entry.files)
            for entry in current
            if all((files.folder / file).exists() for file in entry.files)
        }
        there = {id: [shard.file for shard in own if shard.id in done] for id, own in shards.items()}
        stale = _stale({**there, **kept}, site, defenses, dataset)
    return Planned(
        matrix=matrix,
        site=site,
        dataset=dataset,
        registry=registry,
        defenses=tested,
        cells=cells,
        not_applicable=not_applicable,
        studies=studies,
        shards=shards,
        substitute=defenses.get(matrix.substitute) if transfers(matrix, registry) else None,
        done=done - {shard.id for id in stale for shard in shards.get(id, ())},
        stale={id: reason for id, reason in stale.items() if id in shards},
        imported=imported,
        left_out=left_out | {id: reason for id, reason in stale.items() if id not in shards},
        untrained=untrained,
        broken=broken,
    )


def _defenses(
    matrix: Matrix,
    registry: Registry,
    dataset: Dataset,
    device: torch.device,
    trainers: int,
    broken: dict[str, str],
) -> tuple[dict[str, LoadedDefense], set[str]]:
    """Returns the matrix's defenses and the substitute, by name, and the names of those that stay untrained.

    Enters the reasons why others could not be built into ``broken``.
    """
    names = list(matrix.labels)
    if transfers(matrix, registry) and matrix.substitute not in names:
        names.append(matrix.substitute)
    made = _all_but(broken, names, lambda name: make_defense(name, dataset, registry))
    untrained = [name for name in made if needs_training(made[name], dataset, matrix.seed)]
    if trainers:
        learners = list(dict.fromkeys(made[name].learner.card.name for name in untrained))
        if min(trainers, len(learners)) > 1 and device.type == "cpu":
            faults = train_side_by_side(learners, dataset, registry, matrix.seed, trainers)
            trained_with = {name: made[name].learner.card.name for name in untrained}
            broken |= {name: faults[learner] for name, learner in trained_with.items() if learner in faults}
        untrained = []
    ready = [name for name in made if name not in untrained and name not in broken]
    loaded = _all_but(broken, ready, lambda name: load_trained(name, dataset, registry, matrix.seed, device))
    return {name: loaded.get(name, made[name]) for name in made if name not in broken}, set(untrained)


def _done(works: Sequence[Work], shards: Mapping[str, Sequence[Shard]], files: Reader) -> set[str]:
    """Returns the ids of the shards of cells and studies whose files exist and verify."""
    return {
        shard.id
        for work in works
        for shard, part in zip(shards[work.id], files.parts(entry_of(work, shards[work.id])), strict=True)
        if is_done(part, files)
    }


def _stale(
    files: Mapping[str, Sequence[str]], site: Site, defenses: Mapping[str, LoadedDefense], dataset: Dataset
) -> dict[str, str]:
    """Returns, by id, why existing results may not be kept: a defense gives different answers on fixed images."""
    now: dict[str, Answers] = {}
    reasons = {}
    for id, file in ((id, file) for id, own in files.items() for file in own):
        for name, before in read_provenance(ledger_dir(site.run) / file).get("logits", {}).items():
            if name in defenses and name not in now:
                now[name] = answers(defenses[name].defense, dataset, site.device)
            found = difference(before, now.get(name))
            if found:
                reasons[id] = f"{name} answers {IMAGES} fixed images differently ({found})"
    return reasons


def _reader(
    run: Path, known: Manifest | None, matrix: Matrix, dataset: Dataset, defenses: Mapping[str, LoadedDefense]
) -> Reader:
    """Returns a reader of the existing results of a run with the manifest ``known``, if there is one."""
    images = Images(
        dataset=dataset.name,
        classes=dataset.classes,
        shape=tuple(dataset.shape),
        samples=range(matrix.samples),
        hashes=[sample_hash(image) for image in dataset.test.images[: matrix.samples].numpy()],
        labels=dataset.test.labels[: matrix.samples].numpy(),
        randomized={name: loaded.card.randomized for name, loaded in defenses.items()},
        counts={name: matrix.samples_of(name) for name in defenses},
    )
    return Reader(ledger_dir(run), images, (known.files if known is not None else None) or {})


def _all_but(
    broken: dict[str, str], names: Sequence[str], make: Callable[[str], LoadedDefense]
) -> dict[str, LoadedDefense]:
    """Returns the defenses that can be made, by name. Enters the reasons for the others into ``broken``."""
    made: dict[str, LoadedDefense] = {}
    for name in names:
        try:
            made[name] = make(name).readable()
        except DefenseFault as error:
            broken[name] = str(error)
    return made


def cost(shard: Shard, loaded: LoadedDefense) -> float:
    """Returns the maximum cost of a shard, in forward and backward passes. An inner step counts as one pass."""
    inner = loaded.defense.inner_steps if isinstance(loaded.defense, HasInnerSteps) else 0
    steps = float(shard.work.passes * inner)
    if isinstance(shard.work, Cell) and shard.work.inner_budget is not None:
        steps = min(steps, shard.work.inner_budget)
    return (shard.work.passes + steps) * len(shard.samples)
