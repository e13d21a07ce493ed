"""Studies of lower bounds: for each image, a distance within which a defense says that it has no adversarial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
import pyarrow as pa
import torch

from bench.counting import counted
from bench.datasets import Dataset
from bench.norms import Norm
from bench.protocols import Defense, HasLowerBound
from bench.randomness import Streams
from bench.studies import Measured, OnSamples, Study, batches, records, schema

AT_THRESHOLD = False
SCHEMA = schema(("lower_bound", pa.float64()), ("certificate", pa.bool_()), ("note", pa.string()))
"""``status`` is ``bound`` or ``failed``; ``certificate`` is false for an estimate that trusts a numeric minimum;
``note`` says what the number rests on. Passes are those through the defense's own logits and the like
(`bench.counting`); a search that leads around them is seen in the seconds only."""


def norms_of(defense: Defense) -> Sequence[Norm]:
    """The norms in which a defense bounds distances."""
    return defense.bound_norms if isinstance(defense, HasLowerBound) else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """One record for each test image of the matrix."""
    return samples


def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """One record per sample; 0 where the defense errs on the clean image."""
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
