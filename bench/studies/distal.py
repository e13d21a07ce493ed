"""Studies of distal adversarials: noise optimized for confidence in each class, and the calibration of confidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts.confidence import CONFIDENT, Calibration, calibrate
from bench.contracts.door import NO_DRAWS, drawn_logits
from bench.contracts.norms import NormName
from bench.contracts.protocols import Defense
from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.ledger.schema import NON_FINITE, Status
from bench.studies.cards import study
from bench.studies.counting import counted
from bench.studies.distal_ascent import distal_adversarials
from bench.studies.queries import spent
from bench.studies.study import Measured, OnSamples, records, schema

CALIBRATION_IMAGES = 500
"""Number of test images, from the first on, for the calibration of the confidence. The few images of a run could be
classified without error. Such images do not determine the scale of the logits."""
PER_CLASS = 2
"""Number of noise images that ascend to each class."""
SCHEMA = schema(
    ("target", pa.int64()),
    ("confidence", pa.float64()),
    ("steps", pa.int64()),
    ("alpha", pa.float64()),
    ("log_eta", pa.float64()),
)
"""One record per noise image. ``status`` is ``reached``, ``not_reached`` or ``failed``. ``alpha`` and ``log_eta`` are
the parameters of the graded softmax (`bench.contracts.confidence`), calibrated on the first test images. The
calibration's passes are divided among the noise images. Status and confidence come from separate passes
(`confidences`)."""


def norms_of(defense: Defense) -> Sequence[NormName | None]:
    """Returns a single None (no norm matters) for deterministic defenses with gradients, otherwise nothing."""
    return (None,) if defense.card.access == "gradient" and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """Returns the number of records: one per noise image, independent of the matrix's test images."""
    return dataset.classes * PER_CLASS


@study("distal", schema=SCHEMA, norms_of=norms_of, samples_of=samples_of)
def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Calibrates on clean images, then ascends from noise."""
    started = time.perf_counter()
    with counted(defense) as passes:
        calibration = calibrated(defense, dataset, study.batch_size, device)
    distal = distal_adversarials(
        defense, dataset.classes, dataset.shape, calibration, per_class=PER_CLASS, seed=study.seed, device=device
    )
    with counted(defense) as judged:
        confidence = confidences(defense, calibration, distal.images, distal.targets, study.batch_size)
    frame = records(
        SCHEMA,
        study,
        range(len(distal.images)),
        status=statuses(confidence),
        reason=np.where(np.isnan(confidence), NON_FINITE, ""),
        target=distal.targets.cpu().numpy(),
        confidence=confidence,
        steps=distal.steps.cpu().numpy(),
        alpha=calibration.alpha,
        log_eta=calibration.log_eta,
        **(spent(distal.oracle) + (pd.Series(asdict(passes)) + pd.Series(asdict(judged))) / study.samples),
        seconds=(time.perf_counter() - started) / len(distal.images),
    )
    on_samples(study.samples)
    return Measured(frame, distal.images.cpu().numpy())


def calibrated(defense: Defense, dataset: Dataset, batch_size: int, device: torch.device) -> Calibration:
    """Returns the calibration of a defense on the first `CALIBRATION_IMAGES` test images."""
    logits = _logits(defense, dataset.test.images[:CALIBRATION_IMAGES].to(device), batch_size)
    return calibrate(logits, dataset.test.labels[:CALIBRATION_IMAGES])


def confidences(
    defense: Defense, calibration: Calibration, images: Tensor, targets: Tensor, batch_size: int
) -> NDArray[np.float64]:
    """Returns the confidences (M,) float64 of images (M, C, H, W) in the classes ``targets`` (M,).

    The confidences come from separate passes. A confidence is NaN where the logits are not finite.
    """
    logits = _logits(defense, images, batch_size)
    confidence = calibration.confidence(logits).gather(1, targets[:, None])[:, 0]
    known: NDArray[np.float64] = confidence.masked_fill(~logits.isfinite().all(1), torch.nan).cpu().numpy()
    return known


def statuses(confidence: NDArray[np.float64]) -> NDArray[np.object_]:
    """Returns the status of each confidence (M,). NaN is a failure."""
    status = np.where(confidence >= CONFIDENT, "reached", "not_reached").astype(object)
    status[np.isnan(confidence)] = Status.FAILED
    return status


@torch.no_grad()
def _logits(defense: Defense, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([drawn_logits(defense, batch, NO_DRAWS) for batch in torch.split(x, batch_size)])
