"""Studies of distal adversarials: noise driven to confidence in each class, and the confidence's calibration."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from bench.confidence import calibrate
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
passes are divided among the noise images."""


def norms_of(defense: Defense) -> Sequence[Norm | None]:
    """Once, whatever the norm, for deterministic defenses that give gradients."""
    return (None,) if defense.card.access == "gradient" and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """One record for each noise image, whatever the matrix's test images."""
    return dataset.classes * PER_CLASS


def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Calibrates on clean images, then ascends from noise."""
    started = time.perf_counter()
    images, labels = dataset.test.images[:CALIBRATION_IMAGES], dataset.test.labels[:CALIBRATION_IMAGES]
    with torch.no_grad(), counted(defense) as passes:
        logits = [drawn_logits(defense, x.to(device), NO_DRAWS) for x in torch.split(images, study.batch_size)]
    calibration = calibrate(torch.cat(logits), labels)
    distal = distal_adversarials(
        defense, dataset.classes, dataset.shape, calibration, per_class=PER_CLASS, seed=study.seed, device=device
    )
    frame = records(
        study,
        range(len(distal.images)),
        status=np.where(distal.reached.cpu().numpy(), "reached", "not_reached"),
        target=distal.targets.cpu().numpy(),
        confidence=distal.confidences.cpu().numpy(),
        steps=distal.steps.cpu().numpy(),
        alpha=calibration.alpha,
        log_eta=calibration.log_eta,
        **(spent(distal.oracle) + pd.Series(asdict(passes)) / study.samples),
        seconds=(time.perf_counter() - started) / len(distal.images),
    )
    on_samples(study.samples)
    return Measured(frame, distal.images.cpu().numpy())
