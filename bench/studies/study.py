"""Studies: what a run measures on a defense besides attacks, in separate cells and files.

A kind of study is a module of this package that declares a function with ``@study`` (`bench.studies.cards`). This
module holds what the kinds share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.ledger.schema import Status

COSTS = ("forwards", "backwards", "inner_steps")
"""Columns of every study: costs per sample, as in the records of cells. Costs shared by all samples are divided among
them. The judge's passes are not counted."""

OnSamples = Callable[[int], None]


@dataclass(frozen=True)
class Measured:
    """The result of a study.

    Attributes:
        records: table with the columns of the kind's schema.
        images: images (M, C, H, W) float32 in [0, 1] that belong to the records, or None.
    """

    records: pd.DataFrame
    images: NDArray[np.float32] | None = None


def schema(*own: tuple[str, pa.DataType]) -> pa.Schema:
    """Returns the schema with the columns common to all studies and the kind's ``own`` columns."""
    texts = [(name, pa.string()) for name in ("cell", "dataset", "defense", "norm", "status", "reason")]
    costs = [(name, pa.float64()) for name in (*COSTS, "seconds")]
    return pa.schema([*texts, ("sample", pa.int64()), *own, *costs])


def batches(study: Study, dataset: Dataset, device: torch.device) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Yields indices, images (N, C, H, W) and labels (N,) of a study's samples, in batches of ``study.batch_size``."""
    for start in range(0, study.samples, study.batch_size):
        indices = range(start, min(start + study.batch_size, study.samples))
        rows = slice(start, indices.stop)
        yield indices, dataset.test.images[rows].to(device), dataset.test.labels[rows].to(device)


def records(own: pa.Schema, study: Study, indices: range, **columns: Any) -> pd.DataFrame:
    """Returns one record per sample, with the study's identity and the given columns.

    Other columns of the schema ``own`` are NaN.
    """
    known = {
        "cell": study.id,
        "dataset": study.dataset,
        "defense": study.defense,
        "norm": study.norm or "",
        "reason": "",
    }
    frame = pd.DataFrame({"sample": np.array(indices)})
    for field in own:
        if field.name != "sample":
            frame[field.name] = {**known, **columns}.get(field.name, np.nan)
    return frame


def failed_study(own: pa.Schema, study: Study, reason: str) -> Measured:
    """Returns the result of a study that could not run: every sample ``failed`` with this reason."""
    line = " ".join(reason.split())[:300]
    return Measured(records(own, study, range(study.samples), status=Status.FAILED, reason=line))
