"""Studies of detection: how well a defense's score tells adversarials from clean images, and who gets past it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from bench.ballot import classify
from bench.datasets import Dataset
from bench.detection import Detector, evade, fit_detector, mislead
from bench.door import detection_scores
from bench.norms import Norm
from bench.oracle import Oracle
from bench.protocols import Defense, HasDetectionScore
from bench.studies import Measured, OnSamples, Study, batches, records, schema
from bench.study_queries import spent, study_oracle
from bench.threat import ThreatModel, project

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
misclassified and in the ball, ``evaded`` that some image in the ball is misclassified and accepted. Where no training
image has an adversarial there is no detector: nothing is refused, and suspicions are NaN. The detector's training is
divided among the samples."""


def norms_of(defense: Defense) -> Sequence[Norm]:
    """L2 and Linf, for deterministic defenses with a score and gradients."""
    studied = isinstance(defense, HasDetectionScore) and defense.card.access == "gradient"
    return ("L2", "Linf") if studied and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """One record for each test image of the matrix."""
    return samples


@dataclass(frozen=True)
class Examiner:
    """Takes verdicts on images as they are, in batches of exactly the card's size.

    Attributes:
        defense: deterministic, with a detection score.
        threat: a norm and the radius of its ball.
        classes: number of classes.
    """

    defense: Defense
    threat: ThreatModel
    classes: int

    def fooled(self, candidates: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The judge's verdict (N,): misclassified, and in the ball around ``x`` (N, C, H, W)."""
        wrong = classify(self.defense, candidates, y, self.classes).misclassified
        return wrong & self.threat.allows(self.threat.distance(candidates, x))

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Detection scores (N,) of images (N, C, H, W)."""
        assert isinstance(self.defense, HasDetectionScore)
        size, parts = self.defense.card.batch_size, [x.new_zeros(0)]
        for batch in torch.split(x, size) if len(x) else ():
            padding = batch[-1:].expand(size - len(batch), *batch.shape[1:])
            parts.append(detection_scores(self.defense, torch.cat([batch, padding]))[: len(batch)])
        return torch.cat(parts)

    def suspicion(self, detector: Detector | None, x: Tensor) -> Tensor:
        """The detector's suspicion (N,) of images (N, C, H, W); NaN without a detector.

        Raises:
            ValueError: when a detection score is not finite.
        """
        if detector is None:
            return torch.full((len(x),), torch.nan, device=x.device)
        suspicion = detector.suspicion(self.scores(x))
        if not bool(suspicion.isfinite().all()):
            raise ValueError("a detection score is not finite")
        return suspicion


def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Fits the detector on training images, then attacks the test images with and without knowledge of it."""
    assert study.norm is not None
    assert study.epsilon is not None
    examiner = Examiner(defense, ThreatModel(study.norm, study.epsilon), dataset.classes)
    detector, fitting = _fitted(study, examiner, dataset, device)
    frames = []
    for indices, x, y in batches(study, dataset, device):
        started = time.perf_counter()
        oracle = _oracle(study, examiner, x, y, indices, "detection")
        attacked = mislead(oracle, x, y, oracle.ids, start=x, steps=STEPS)
        mistaken, clean_suspicion = examiner.fooled(x, x, y), examiner.suspicion(detector, x)
        fooled, suspicion = examiner.fooled(attacked, x, y), examiner.suspicion(detector, attacked)
        evaded = (mistaken & _accepted(clean_suspicion)) | (fooled & _accepted(suspicion))
        offset = 2 * oracle.random.uniform(oracle.ids, x.shape[1:]) - 1
        random = project(x + study.epsilon * offset, x, study.norm, study.epsilon)
        for start in (x, attacked, random):
            ids = oracle.ids[~evaded]
            if len(ids):
                found = _past(detector, oracle, x[ids], y[ids], ids, start[ids])
                evaded[ids] = examiner.fooled(found, x[ids], y[ids]) & _accepted(examiner.suspicion(detector, found))
        frames.append(
            records(
                study,
                indices,
                status=["clean_error" if wrong else "attacked" for wrong in mistaken.tolist()],
                epsilon=study.epsilon,
                clean_suspicion=clean_suspicion.double().cpu().numpy(),
                adversarial_suspicion=suspicion.double().cpu().numpy(),
                fooled=fooled.tolist(),
                evaded=evaded.tolist(),
                **(spent(oracle) + fitting / study.samples),
                seconds=(time.perf_counter() - started) / len(indices),
            )
        )
        on_samples(len(indices))
    return Measured(pd.concat(frames, ignore_index=True))


def _past(detector: Detector | None, oracle: Oracle, x: Tensor, y: Tensor, ids: Tensor, start: Tensor) -> Tensor:
    """The last images (N, C, H, W) of the attack on defense and detector from one start each."""
    if detector is None:
        return mislead(oracle, x, y, ids, start=start, steps=EVASION_STEPS)
    return evade(oracle, x, y, ids, detector, start=start, steps=EVASION_STEPS)


def _accepted(suspicion: Tensor) -> Tensor:
    """Without a detector nothing is refused."""
    return ~(suspicion > 0)


def _fitted(
    study: Study, examiner: Examiner, dataset: Dataset, device: torch.device
) -> tuple[Detector | None, pd.Series]:
    """The detector, from those of the first training images that are classified correctly and their adversarials, and
    what the attacks on these cost; None where none has one."""
    clean, adversarial, costs = [], [], []
    count = min(TRAINING_IMAGES, len(dataset.train.labels))
    for start in range(0, count, study.batch_size):
        indices = range(start, min(start + study.batch_size, count))
        x, y = (part[start : indices.stop].to(device) for part in (dataset.train.images, dataset.train.labels))
        oracle = _oracle(study, examiner, x, y, indices, "detection training")
        attacked = mislead(oracle, x, y, oracle.ids, start=x, steps=STEPS)
        right = ~examiner.fooled(x, x, y)
        clean.append(examiner.scores(x[right]))
        adversarial.append(examiner.scores(attacked[right & examiner.fooled(attacked, x, y)]))
        costs.append(spent(oracle))
    scores = torch.cat(adversarial)
    return fit_detector(torch.cat(clean), scores) if len(scores) else None, pd.concat(costs).sum()


def _oracle(study: Study, examiner: Examiner, x: Tensor, y: Tensor, keys: range, purpose: str) -> Oracle:
    return study_oracle(
        examiner.defense,
        "gradient",
        examiner.threat,
        x,
        y,
        examiner.classes,
        seed=study.seed,
        keys=keys,
        purpose=purpose,
    )
