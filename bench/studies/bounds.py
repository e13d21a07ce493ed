"""Studies of lower bounds: the distance within which a defense claims that an image has no adversarial example."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
import pyarrow as pa
import torch

from bench.contracts.norms import NormName
from bench.contracts.protocols import Defense, HasLowerBound
from bench.contracts.streams import Streams
from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.studies.cards import study
from bench.studies.counting import counted
from bench.studies.study import Measured, OnSamples, batches, records, schema

SCHEMA = schema(("lower_bound", pa.float64()), ("certificate", pa.bool_()), ("note", pa.string()))
"""``status`` is ``bound`` or ``failed``. ``certificate`` is false for an estimate that trusts a numeric minimum.
``note`` says what the bound rests on. The pass counts cover the defense's own methods, such as its logits
(`bench.studies.counting`). A search that bypasses these methods shows only in the seconds."""


def norms_of(defense: Defense) -> Sequence[NormName]:
    """Returns the norms in which a defense bounds distances."""
    return defense.bound_norms if isinstance(defense, HasLowerBound) else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """Returns the number of records: one per test image of the matrix."""
    return samples


@study("lower_bound", schema=SCHEMA, norms_of=norms_of, samples_of=samples_of)
def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Measures one record per sample. The bound is 0 where the defense misclassifies the clean image."""
    assert isinstance(defense, HasLowerBound)
    assert study.norm is not None
    frames = []
    for indices, x, y in batches(study, dataset, device):
        started = time.perf_counter()
        with counted(defense) as passes:
            bound = defense.lower_bound(
                x.clone(), y.clone(), study.norm, Streams(study.seed, indices, "lower bound", device)
            )
        if bool(bound.values.isnan().any()):
            raise ValueError("the defense's lower bound is NaN")
        frames.append(
            records(
                SCHEMA,
                study,
                indices,
                status="bound",
                lower_bound=bound.values.clamp_min(0).double().cpu().numpy(),
                certificate=bound.certificate,
                note=bound.note,
                **(pd.Series(asdict(passes)) / len(indices)),
                seconds=(time.perf_counter() - started) / len(indices),
            )
        )
        on_samples(len(indices))
    return Measured(pd.concat(frames, ignore_index=True))
