"""Studies of reconstruction: how a generative defense reconstructs images and their adversarial examples.

The study follows Maggipinto, Terzi & Susto 2020, section 6.4.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from bench.contracts.chunk import Chunk
from bench.contracts.norms import NormName
from bench.contracts.protocols import Defense, HasDecodedImage, HasReconstruction
from bench.contracts.threat import ThreatModel
from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.engine.ballot import classify
from bench.studies.cards import study
from bench.studies.detectors import mislead
from bench.studies.queries import spent, study_oracle
from bench.studies.study import Measured, OnSamples, records, schema

IMAGES = 5
"""Number of test images, from the first on, that are reconstructed."""
SHARES = (0.0, 0.5, 1.0)
"""Radii of the attacked balls as fractions of epsilon. The first ball contains only the clean image."""
STEPS = 40
"""Steps of projected gradient descent in each ball."""
SCHEMA = schema(
    ("image", pa.int64()),
    ("label", pa.int64()),
    ("epsilon", pa.float64()),
    ("prediction", pa.int64()),
    ("error", pa.float64()),
)
"""One record per test image and radius ``epsilon``. ``status`` is ``reconstructed`` or ``failed``. ``error`` is the
mean squared difference between the candidate in the ball and its reconstruction. ``prediction`` is the predicted class
of the candidate. Candidate and reconstruction are stored as images, one after the other."""


def norms_of(defense: Defense) -> Sequence[NormName]:
    """Returns L2 and Linf for deterministic defenses with reconstructions and gradients, otherwise no norm."""
    studied = isinstance(defense, HasReconstruction | HasDecodedImage) and defense.card.access == "gradient"
    return ("L2", "Linf") if studied and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """Returns the number of records: one per radius and test image, for at most `IMAGES` test images."""
    return min(samples, IMAGES) * len(SHARES)


@study("reconstruction", schema=SCHEMA, norms_of=norms_of, samples_of=samples_of, at_threshold=True)
def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Attacks the first test images in balls of growing radius, then reconstructs the candidates."""
    assert study.norm is not None
    assert study.epsilon is not None
    count = study.samples // len(SHARES)
    x, y = dataset.test.images[:count].to(device), dataset.test.labels[:count].to(device)
    frames, images = [], []
    for level, share in enumerate(SHARES):
        started = time.perf_counter()
        epsilon = share * study.epsilon
        threat = ThreatModel(study.norm, epsilon)
        attacked, decoding = (
            study_oracle(
                defense,
                access,
                threat,
                Chunk(x, y, range(count), dataset.classes),
                seed=study.seed,
                purpose="reconstruction",
            )
            for access in ("gradient", "latent")
        )
        found = mislead(attacked, x, y, attacked.ids, start=x, steps=STEPS) if share else x
        predicted = classify(defense, found, y, dataset.classes).prediction
        decoded = decoding.reconstruct(found, predicted, decoding.ids)
        frames.append(
            records(
                SCHEMA,
                study,
                range(level * count, (level + 1) * count),
                status="reconstructed",
                image=range(count),
                label=y.tolist(),
                epsilon=epsilon,
                prediction=predicted.tolist(),
                error=(found - decoded).square().flatten(1).mean(1).double().cpu().numpy(),
                **spent(attacked, decoding),
                seconds=(time.perf_counter() - started) / count,
            )
        )
        images.append(torch.stack([found, decoded], 1).flatten(0, 1).clamp(0, 1).cpu().numpy())
        on_samples(count)
    return Measured(pd.concat(frames, ignore_index=True), np.concatenate(images))
