"""The kinds of studies: each is declared in a module of this package, with ``@study``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contracts.source import Closure, Sources, engine_code
from bench.plugins.catalog import Catalog
from bench.studies.cards import Measure, StudyCard

if TYPE_CHECKING:
    from bench.datasets.dataset import Dataset
    from bench.training.loading import LoadedDefense

STUDIES: Catalog[StudyCard, Measure] = Catalog("study", "bench.studies", StudyCard)
"""The kinds that a matrix may name. `bench.studies.refutation` is none: it uses the results of all the others."""


def code_of(kind: str) -> Closure:
    """Returns the modules that run the studies of a kind."""
    return Sources().closure(STUDIES.module(kind))


def state_of(code: Closure, loaded: LoadedDefense, dataset: Dataset) -> dict[str, str]:
    """Returns the state of a study that ``code`` runs on a defense."""
    libraries = (code | loaded.code).versions(without=engine_code())
    return {**loaded.state(dataset), "study": code.digest, "libraries": libraries}
