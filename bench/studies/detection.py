"""Studies of detection: how well a defense's score separates adversarial examples from clean images.

A second attack knows the detector and tries to evade it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from bench.contracts.chunk import Chunk
from bench.contracts.door import detection_scores
from bench.contracts.norms import NormName
from bench.contracts.protocols import Defense, HasDetectionScore
from bench.contracts.threat import ThreatModel
from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.engine.ballot import classify
from bench.engine.oracle import DefenseOracle
from bench.ledger.schema import Status
from bench.studies.cards import study
from bench.studies.detectors import Detector, evade, fit_detector, mislead
from bench.studies.queries import spent, study_oracle
from bench.studies.study import Measured, OnSamples, batches, records, schema

TRAINING_IMAGES = 500
"""Number of training images, from the first on. The detector is fitted to the scores of these images and of their
adversarial examples."""
STEPS = 40
"""Steps of the attack that does not know the detector (Maggipinto, Terzi & Susto 2020, section 5)."""
EVASION_STEPS = 200
"""Steps of the attack on defense and detector, from each of its starts."""
SCHEMA = schema(
    ("epsilon", pa.float64()),
    ("clean_suspicion", pa.float64()),
    ("adversarial_suspicion", pa.float64()),
    ("fooled", pa.bool_()),
    ("evaded", pa.bool_()),
)
"""``status`` is ``clean_error``, ``attacked`` or ``failed``.

A suspicion is the detector's log-odds. An image with a suspicion above 0 is refused. ``clean_suspicion`` belongs to the
clean image. ``adversarial_suspicion`` belongs to the candidate of the attack that does not know the detector.
``fooled`` says that this candidate is misclassified and in the ball. ``evaded`` says that some image in the ball is
misclassified and accepted. If no training image has an adversarial example, there is no detector. Without a detector,
no image is refused and the suspicions are NaN. The cost of the detector's training is divided among the samples."""


def norms_of(defense: Defense) -> Sequence[NormName]:
    """Returns L2 and Linf for deterministic defenses with a detection score and gradients, otherwise no norm."""
    studied = isinstance(defense, HasDetectionScore) and defense.card.access == "gradient"
    return ("L2", "Linf") if studied and not defense.card.randomized else ()


def samples_of(dataset: Dataset, samples: int) -> int:
    """Returns the number of records: one per test image of the matrix."""
    return samples


@dataclass(frozen=True)
class Examiner:
    """Judges images without modifying them, in batches of exactly the card's size.

    Attributes:
        defense: a deterministic defense with a detection score.
        threat: a norm and the radius of its ball.
        classes: number of classes.
    """

    defense: Defense
    threat: ThreatModel
    classes: int

    def fooled(self, candidates: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Returns the judge's verdict (N,): True if misclassified and in the ball around ``x`` (N, C, H, W)."""
        wrong = classify(self.defense, candidates, y, self.classes).misclassified
        return wrong & self.threat.allows(self.threat.distance(candidates, x))

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Returns the detection scores (N,) of images (N, C, H, W)."""
        assert isinstance(self.defense, HasDetectionScore)
        size, parts = self.defense.card.batch_size, [x.new_zeros(0)]
        for batch in torch.split(x, size) if len(x) else ():
            padding = batch[-1:].expand(size - len(batch), *batch.shape[1:])
            parts.append(detection_scores(self.defense, torch.cat([batch, padding]))[: len(batch)])
        return torch.cat(parts)

    def suspicion(self, detector: Detector | None, x: Tensor) -> Tensor:
        """Returns the detector's suspicion (N,) of images (N, C, H, W), or NaN without a detector.

        Raises:
            ValueError: when a detection score is not finite.
        """
        if detector is None:
            return torch.full((len(x),), torch.nan, device=x.device)
        suspicion = detector.suspicion(self.scores(x))
        if not bool(suspicion.isfinite().all()):
            raise ValueError("a detection score is not finite")
        return suspicion


@study("detection", schema=SCHEMA, norms_of=norms_of, samples_of=samples_of, at_threshold=True)
def measure(study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples) -> Measured:
    """Fits the detector on training images, then attacks the test images with and without knowledge of the detector."""
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
        random = examiner.threat.norm.project(x + study.epsilon * offset, x, study.epsilon)
        for start in (x, attacked, random):
            ids = oracle.ids[~evaded]
            if len(ids):
                found = _past(detector, oracle, x[ids], y[ids], ids, start[ids])
                evaded[ids] = examiner.fooled(found, x[ids], y[ids]) & _accepted(examiner.suspicion(detector, found))
        frames.append(
            records(
                SCHEMA,
                study,
                indices,
                status=[Status.CLEAN_ERROR if wrong else "attacked" for wrong in mistaken.tolist()],
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


def _past(detector: Detector | None, oracle: DefenseOracle, x: Tensor, y: Tensor, ids: Tensor, start: Tensor) -> Tensor:
    """Returns the final candidates (N, C, H, W) of the attack on defense and detector, from one start per image."""
    if detector is None:
        return mislead(oracle, x, y, ids, start=start, steps=EVASION_STEPS)
    return evade(oracle, x, y, ids, detector, start=start, steps=EVASION_STEPS)


def _accepted(suspicion: Tensor) -> Tensor:
    """Returns True (N,) where an image is accepted. Without a detector (NaN suspicion) every image is accepted."""
    return ~(suspicion > 0)


def _fitted(
    study: Study, examiner: Examiner, dataset: Dataset, device: torch.device
) -> tuple[Detector | None, pd.Series]:
    """Returns the detector and the cost of the attacks on the first training images.

    The detector is fitted to the correctly classified images and their adversarial examples. The detector is None if
    there are no adversarial examples.
    """
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


def _oracle(study: Study, examiner: Examiner, x: Tensor, y: Tensor, keys: range, purpose: str) -> DefenseOracle:
    chunk = Chunk(x, y, keys, examiner.classes)
    return study_oracle(examiner.defense, "gradient", examiner.threat, chunk, seed=study.seed, purpose=purpose)
