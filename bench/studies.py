"""Studies: what a run finds out about a defense besides attacks on it, in cells and files of their own.

A study's kind is a module here (`Kind`): ``AT_THRESHOLD``, whether it is made at the matrix's threshold in
its norm; ``SCHEMA``, its columns in the ledger; ``norms_of(defense)``, the norms it applies to (nothing where it does
not); ``samples_of(dataset, samples)``, how many records it has; and ``measure(study, defense, dataset, device,
on_samples)``, what it found.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.datasets import Dataset
from bench.ledger import SCHEMA_VERSION
from bench.norms import Norm
from bench.protocols import Defense
from bench.source import Closure, Sources, engine_code, identity_hash

if TYPE_CHECKING:  # every study's module imports this one, and its closure is in its studies' ids
    from bench.loading import LoadedDefense
    from bench.matrix import Matrix

KINDS = {
    "lower_bound": "bench.bounds",
    "distal": "bench.distal_study",
    "detection": "bench.detection_study",
    "reconstruction": "bench.reconstruction_study",
}
"""The modules of the kinds that a matrix may name."""
_MODULES = {**KINDS, "refutation": "bench.refutation"}
"""The modules of all kinds: the last is made of what the others and the attacks found, whatever the matrix."""
COSTS = ("forwards", "backwards", "inner_steps")
"""Columns of every study: what it spent per sample, as in cells' records. What it spent on behalf of all of its samples
is divided among them; the judge's passes are not counted."""
ENTRY = ("id", "kind", "defense", "norm", "epsilon", "file", "identity")
"""What a manifest says of a study."""
PASSES = 200
"""What a study is reckoned to cost per sample, in forward passes: the longest cells go first."""

OnSamples = Callable[[int], None]


@dataclass(frozen=True)
class Study:
    """One (kind, dataset, defense, norm, samples, seed).

    Attributes:
        kind: one of `KINDS`, or ``refutation``.
        norm: None where it makes no difference.
        epsilon: radius of the ball in that norm; None where it makes no difference.
        samples: records it will have, of the first so many test images where it is about these.
        batch_size: images that are measured together.
        timeout: seconds after which its worker is killed; does not change what a finished study holds.
        state: hashes of everything else that can change the result.
    """

    kind: str
    dataset: str
    defense: str
    norm: Norm | None
    epsilon: float | None
    seed: int
    samples: int
    batch_size: int
    timeout: float | None
    state: dict[str, str]

    substitute: None = None
    budget: int = PASSES

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the result, and nothing else."""
        left_out = ("timeout", "id", "budget", "substitute")
        return {"schema": SCHEMA_VERSION, **{key: value for key, value in vars(self).items() if key not in left_out}}

    @cached_property
    def id(self) -> str:
        """A hash of the identity."""
        return identity_hash(self.identity)

    @property
    def file(self) -> str:
        """The name of its result in the ledger's folder."""
        stem = "--".join((self.defense, self.kind, *([self.norm] if self.norm else []), self.id))
        return re.sub(r"[^A-Za-z0-9_-]", "+", stem) + ".parquet"

    @property
    def title(self) -> str:
        """For people: defense, kind and norm."""
        return " · ".join((self.defense, self.kind.replace("_", " "), *([self.norm] if self.norm else [])))


@dataclass(frozen=True)
class Measured:
    """What a study found.

    Attributes:
        records: with the columns of its kind's ``SCHEMA``.
        images: that belong to the records, (M, C, H, W) float32 in [0, 1], or None.
    """

    records: pd.DataFrame
    images: NDArray[np.float32] | None = None


class Kind(Protocol):
    """What a kind's module offers."""

    AT_THRESHOLD: bool
    SCHEMA: pa.Schema

    def samples_of(self, dataset: Dataset, samples: int) -> int:
        """How many records a study has in a matrix of ``samples`` test images."""

    def norms_of(self, defense: Defense) -> Sequence[Norm | None]:
        """The norms in which a defense can be studied; None where they make no difference."""

    def measure(
        self, study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples
    ) -> Measured:
        """What it finds; ``on_samples`` is told of samples that are done."""


def schema(*own: tuple[str, pa.DataType]) -> pa.Schema:
    """The columns that all studies have, and a kind's own."""
    texts = [(name, pa.string()) for name in ("cell", "dataset", "defense", "norm", "status", "reason")]
    costs = [(name, pa.float64()) for name in (*COSTS, "seconds")]
    return pa.schema([*texts, ("sample", pa.int64()), *own, *costs])


def kind_of(study: Study) -> Kind:
    """The module of a study's kind."""
    return _kind(study.kind)


def code_of(kind: str) -> Closure:
    """The modules that make the studies of a kind."""
    return Sources().closure(_MODULES[kind])


def state_of(kind: str, loaded: LoadedDefense, dataset: Dataset) -> dict[str, str]:
    """The state of a study of a kind on a defense."""
    code = code_of(kind)
    libraries = (code | loaded.code).versions(without=engine_code())
    return {**loaded.state(dataset), "study": code.digest, "libraries": libraries}


def plan_studies(matrix: Matrix, dataset: Dataset, defenses: dict[str, LoadedDefense]) -> list[Study]:
    """The studies of a matrix: its kinds for each defense and norm to which they apply."""
    return [
        Study(
            kind=kind,
            dataset=dataset.name,
            defense=name,
            norm=norm,
            epsilon=matrix.thresholds[norm] if norm is not None and _kind(kind).AT_THRESHOLD else None,
            seed=matrix.seed,
            samples=_kind(kind).samples_of(dataset, matrix.samples),
            batch_size=loaded.card.batch_size,
            timeout=matrix.cell_timeout,
            state=state_of(kind, loaded, dataset),
        )
        for name, loaded in defenses.items()
        for kind in matrix.studies
        if name in matrix.studied(kind)
        for norm in _kind(kind).norms_of(loaded.defense)
        if norm is None or norm in matrix.thresholds
    ]


def batches(study: Study, dataset: Dataset, device: torch.device) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Indices, images (N, C, H, W) and labels (N,) of a study's samples, as many at once as it says."""
    for start in range(0, study.samples, study.batch_size):
        indices = range(start, min(start + study.batch_size, study.samples))
        rows = slice(start, indices.stop)
        yield indices, dataset.test.images[rows].to(device), dataset.test.labels[rows].to(device)


def failed_study(study: Study, reason: str) -> Measured:
    """A study that could not be made: every sample ``failed`` with this reason."""
    return Measured(records(study, range(study.samples), status="failed", reason=" ".join(reason.split())[:300]))


def records(study: Study, indices: range, **columns: Any) -> pd.DataFrame:
    """Records of samples: the study's own columns, those given, and NaN in the others of its schema."""
    known = {
        "cell": study.id,
        "dataset": study.dataset,
        "defense": study.defense,
        "norm": study.norm or "",
        "reason": "",
    }
    frame = pd.DataFrame({"sample": np.array(indices)})
    for field in kind_of(study).SCHEMA:
        if field.name != "sample":
            frame[field.name] = {**known, **columns}.get(field.name, np.nan)
    return frame


def _kind(name: str) -> Kind:
    return cast(Kind, importlib.import_module(_MODULES[name]))
