"""Studies of distal adversarials: noise driven to confidence in each class, and the confidence's calibration."""

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

from bench.confidence import CONFIDENT, Calibration, calibrate
from bench.consistency import NON_FINITE
from bench.counting import counted
from bench.datasets import Dataset
from bench.distal import distal_adversarials
from bench.door import NO_DRAWS, drawn_logits
from bench.norms import Norm
from bench.protocols import Defense
from bench.studies import Measured, OnSamples, Study, records, schema
from bench.study_queries import spent

AT_THRESHOLD = False
CALIBRATION_IMAGES = 500
"""Test images, the first ones, that the confidence is calibrated on: a run's own few may be classified without error,
and then say nothing about the scale of the logits."""
PER_CLASS = 2
"""Noise images that ascend to each class."""
SCHEMA = schema(
    ("target", pa.int64()),
    ("confidence", pa.float64()),
    ("steps", pa.int64()),
    ("alpha", pa.float64()),
    ("log_eta", pa.float64()),
)
"""One record per noise image; ``status`` is ``reached``, ``not_reached`` or ``failed``. ``alpha`` and ``log_eta`` are
those of the graded softmax (`bench.confidence`), calibrated on the first test images, whose
passes are divided among the noise images. Status and confidence come
from passes of their own (`confidences`)."""


def norms_of(defense: Defense) -> Sequence[Norm | None]:
    """Once, whatever the norm, for deterministic defenses that give gradients."""
    return (None,) if defense.card.access == "gradient" and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """One record for each noise image, whatever the matrix's test images."""
    return dataset.classes * PER_CLASS


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
    """The calibration of a defense on the first `CALIBRATION_IMAGES` test images."""
    logits = _logits(defense, dataset.test.images[:CALIBRATION_IMAGES].to(device), batch_size)
    return calibrate(logits, dataset.test.labels[:CALIBRATION_IMAGES])


def confidences(
    defense: Defense, calibration: Calibration, images: Tensor, targets: Tensor, batch_size: int
) -> NDArray[np.float64]:
    """The confidence of images (M, C, H, W) in the classes ``targets`` (M,), from passes of their own; NaN where the
    logits are not finite."""
    logits = _logits(defense, images, batch_size)
    confidence = calibration.confidence(logits).gather(1, targets[:, None])[:, 0]
    known: NDArray[np.float64] = confidence.masked_fill(~logits.isfinite().all(1), torch.nan).cpu().numpy()
    return known


def statuses(confidence: NDArray[np.float64]) -> NDArray[np.object_]:
    """What confidences (M,) mean; an unknown one is a failure."""
    status = np.where(confidence >= CONFIDENT, "reached", "not_reached").astype(object)
    status[np.isnan(confidence)] = "failed"
    return status


@torch.no_grad()
def _logits(defense: Defense, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([drawn_logits(defense, batch, NO_DRAWS) for batch in torch.split(x, batch_size)])
