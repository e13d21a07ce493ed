"""Studies of detection: how well a defense's score tells adversarials from clean images, and who gets past it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from bench.datasets import Dataset
from bench.detection import Detector, fit_detector, pgd, predictions
from bench.norms import Norm
from bench.protocols import Defense, HasDetectionScore
from bench.randomness import Streams
from bench.studies import Measured, OnSamples, Study, batches, records, schema
from bench.threat import ThreatModel, distance, project

VERSION = 1
AT_THRESHOLD = True
TRAINING_IMAGES = 500
"""Training images, the first ones, whose scores and adversarials the detector is fitted to."""
STEPS = 40
"""Of the attack that knows no detector (Maggipinto, Terzi & Susto 2020, section 5)."""
EVASION_STEPS = 200
"""Of the attack on defense and detector, from each of its starts."""
SCHEMA = schema(
    ("epsilon", pa.float64()),
    ("clean_suspicion", pa.float64()),
    ("adversarial_suspicion", pa.float64()),
    ("fooled", pa.bool_()),
    ("evaded", pa.bool_()),
)
"""``status`` is ``clean_error``, ``attacked`` or ``failed``. Suspicions are the detector's log-odds, above 0 refused,
of the clean image and of what the attack made of it that knows no detector; ``fooled`` says that this one is
misclassified, ``evaded`` that some image in the ball is misclassified and accepted. Where no training image has an
adversarial there is no detector: nothing is refused, and suspicions are NaN."""


def norms_of(defense: Defense) -> Sequence[Norm]:
    """L2 and Linf, for deterministic defenses with a score and gradients."""
    studied = isinstance(defense, HasDetectionScore) and defense.card.access == "gradient"
    return ("L2", "Linf") if studied and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """One record for each test image of the matrix."""
    return samples


def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Fits the detector on training images, then attacks the test images with and without knowledge of it."""
    assert study.norm is not None
    assert study.epsilon is not None
    norm, epsilon = study.norm, study.epsilon
    detector = _fitted(study, defense, dataset, device, norm, epsilon)
    frames = []
    for indices, x, y in batches(study, dataset, device):
        started = time.perf_counter()
        right = predictions(defense, x) == y
        attacked = pgd(defense, x, y, norm, epsilon, start=x, steps=STEPS)
        wrong, suspicion = judged(defense, detector, x, attacked, y, norm, epsilon)
        clean_suspicion = _suspicion(detector, x)
        evaded = (~right & _accepted(clean_suspicion)) | (wrong & _accepted(suspicion))
        ids = torch.arange(len(x), device=device)
        uniform = Streams(study.seed, indices, "detection start", device).uniform(ids, x.shape[1:])
        random = project(x + epsilon * (2 * uniform - 1), x, norm, epsilon)
        for start in (x, attacked, random):
            rows = (~evaded).nonzero()[:, 0]
            if len(rows):
                found = pgd(
                    defense,
                    x[rows],
                    y[rows],
                    norm,
                    epsilon,
                    start=start[rows],
                    steps=EVASION_STEPS,
                    detector=detector,
                )
                wrong_now, suspicion_now = judged(defense, detector, x[rows], found, y[rows], norm, epsilon)
                evaded[rows] = wrong_now & _accepted(suspicion_now)
        frames.append(
            records(
                study,
                indices,
                status=["attacked" if fine else "clean_error" for fine in right.tolist()],
                epsilon=epsilon,
                clean_suspicion=clean_suspicion.double().cpu().numpy(),
                adversarial_suspicion=suspicion.double().cpu().numpy(),
                fooled=wrong.tolist(),
                evaded=evaded.tolist(),
                seconds=(time.perf_counter() - started) / len(indices),
            )
        )
        on_samples(len(indices))
    return Measured(pd.concat(frames, ignore_index=True))


def judged(
    defense: Defense, detector: Detector | None, x: Tensor, candidates: Tensor, y: Tensor, norm: Norm, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Whether candidates (N, C, H, W) lie in the ball around ``x`` and are misclassified (N,), and the detector's
    suspicion of them (N,), NaN without a detector."""
    allowed = ThreatModel(norm, epsilon).allows(distance(candidates, x, norm))
    return allowed & (predictions(defense, candidates) != y), _suspicion(detector, candidates)


def _suspicion(detector: Detector | None, x: Tensor) -> Tensor:
    if detector is None:
        return torch.full((len(x),), torch.nan, device=x.device)
    suspicion = detector.suspicion(x)
    if not bool(suspicion.isfinite().all()):
        raise ValueError("a detection score is not finite")
    return suspicion


def _accepted(suspicion: Tensor) -> Tensor:
    """Without a detector nothing is refused."""
    return ~(suspicion > 0)


def _fitted(
    study: Study, defense: Defense, dataset: Dataset, device: torch.device, norm: Norm, epsilon: float
) -> Detector | None:
    """The detector, from those of the first training images that are classified correctly and their adversarials; None
    where none has one."""
    assert isinstance(defense, HasDetectionScore)
    clean, adversarial = [], []
    images, labels = dataset.train.images[:TRAINING_IMAGES], dataset.train.labels[:TRAINING_IMAGES]
    for x, y in zip(torch.split(images, study.batch_size), torch.split(labels, study.batch_size), strict=True):
        x, y = x.to(device), y.to(device)
        attacked = pgd(defense, x, y, norm, epsilon, start=x, steps=STEPS)
        right = predictions(defense, x) == y
        clean.append(defense.detection_score(x[right]))
        adversarial.append(defense.detection_score(attacked[right & (predictions(defense, attacked) != y)]))
    scores = torch.cat(adversarial)
    return fit_detector(defense, torch.cat(clean), scores) if len(scores) else None
