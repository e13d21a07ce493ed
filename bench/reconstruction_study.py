"""Studies of reconstructions: what a generative defense makes of images and of their adversarials (Maggipinto, Terzi &
Susto 2020, section 6.4)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from bench.ballot import classify
from bench.datasets import Dataset
from bench.detection import mislead
from bench.norms import Norm
from bench.protocols import Defense, HasDecodedImage, HasReconstruction
from bench.studies import Measured, OnSamples, Study, records, schema
from bench.study_queries import spent, study_oracle
from bench.threat import ThreatModel

AT_THRESHOLD = True
IMAGES = 5
"""Test images, the first ones, that are reconstructed."""
SHARES = (0.0, 0.5, 1.0)
"""Of epsilon, the radii of the balls whose adversarials are reconstructed; in the first lies the image alone."""
STEPS = 40
"""Of projected gradient descent in each ball."""
SCHEMA = schema(
    ("image", pa.int64()),
    ("label", pa.int64()),
    ("epsilon", pa.float64()),
    ("prediction", pa.int64()),
    ("error", pa.float64()),
)
"""One record per test image and radius ``epsilon``; ``status`` is ``reconstructed`` or ``failed``. ``error`` is the
mean squared difference between the image found in the ball, of class ``prediction``, and its reconstruction. Both are
kept as images, one after the other."""


def norms_of(defense: Defense) -> Sequence[Norm]:
    """L2 and Linf, for deterministic defenses with reconstructions and gradients."""
    studied = isinstance(defense, HasReconstruction | HasDecodedImage) and defense.card.access == "gradient"
    return ("L2", "Linf") if studied and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """A record for each radius and each of the matrix's first test images."""
    return min(samples, IMAGES) * len(SHARES)


def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Attacks the first test images in balls of growing radius, and reconstructs what comes out."""
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
                x,
                y,
                dataset.classes,
                seed=study.seed,
                keys=range(count),
                purpose="reconstruction",
            )
            for access in ("gradient", "latent")
        )
        found = mislead(attacked, x, y, attacked.ids, start=x, steps=STEPS) if share else x
        predicted = classify(defense, found, y, dataset.classes).prediction
        decoded = decoding.reconstruct(found, predicted, decoding.ids)
        frames.append(
            records(
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
