"""The kinds of studies, and the modules that run them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from bench.contracts.source import Closure, Sources, engine_code
from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.ledger.schema import Status

if TYPE_CHECKING:  # every study imports this module, and its closure is in its studies' ids
    from bench.training.loading import LoadedDefense
from bench.studies.study import Kind, Measured, records

KINDS = {
    "lower_bound": "bench.studies.bounds",
    "distal": "bench.studies.distal",
    "detection": "bench.studies.detection",
    "reconstruction": "bench.studies.reconstruction",
}
"""The modules of the kinds that a matrix may name."""
MODULES = {**KINDS, "refutation": "bench.studies.refutation"}
"""The modules of all kinds. A refutation uses the results of the other kinds and of the attacks, for every matrix."""


def kind_of(study: Study) -> Kind:
    """Returns the module of a study's kind."""
    return module_of(study.kind)


def code_of(kind: str) -> Closure:
    """Returns the modules that run the studies of a kind."""
    return Sources().closure(MODULES[kind])


def failed_study(study: Study, reason: str) -> Measured:
    """Returns the result of a study that could not run: every sample ``failed`` with this reason."""
    return Measured(
        records(
            kind_of(study).SCHEMA,
            study,
            range(study.samples),
            status=Status.FAILED,
            reason=" ".join(reason.split())[:300],
        )
    )


def module_of(name: str) -> Kind:
    """Returns the module of a kind."""
    return cast(Kind, importlib.import_module(MODULES[name]))


def state_of(kind: str, loaded: LoadedDefense, dataset: Dataset) -> dict[str, str]:
    """Returns the state of a study of this kind on a defense."""
    code = code_of(kind)
    libraries = (code | loaded.code).versions(without=engine_code())
    return {**loaded.state(dataset), "study": code.digest, "libraries": libraries}
