"""Whether a defense still answers as it did when its cells ran.

A cell's id sees a defense's code, its parameters and the tensors that it shows. Other tensors may come from anywhere:
from an object that loads a file, from a table, from another process. Therefore the logits on a few fixed images are
stored beside every result. They are compared before the result is kept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from bench.datasets import Dataset
from bench.door import drawn_logits
from bench.isolation import kept_defaults
from bench.protocols import Defense
from bench.randomness import Streams

IMAGES = 16
"""The first test images of the dataset."""
TOLERANCE = 1e-3
"""Largest difference of the logits of an image, relative to the largest of them, that another machine may make."""

Answers = list[list[float | None]] | None
"""Logits (16, K), None where not finite; None altogether where a defense cannot give them."""


def answers(defense: Defense, dataset: Dataset, device: torch.device) -> Answers:
    """The logits of a defense on the fixed images, on fixed streams and in one thread.

    Of a defense that draws from global generators these are seeded.
    """
    x = dataset.test.images[:IMAGES]
    streams = Streams(0, range(len(x)), "fixed images", device)
    try:
        with kept_defaults(), _seeded(), torch.no_grad():
            parts = [
                drawn_logits(defense, x[rows].to(device), streams.rows(rows))
                for rows in torch.split(torch.arange(len(x)), defense.card.batch_size)
            ]
            logits = torch.cat(parts).double().cpu().tolist()
    except (Exception, SystemExit):  # its cells will say why they fail
        return None
    return [[float(f"{value:.9g}") if math.isfinite(value) else None for value in row] for row in logits]


def difference(before: Answers, now: Answers) -> str:
    """What is different about a defense's answers; empty where nothing is."""
    if before is None or now is None:
        return "" if before is now else "no logits before" if before is None else "no logits now"
    old, new = np.array(before, np.float64), np.array(now, np.float64)
    if old.shape != new.shape or (np.isnan(old) != np.isnan(new)).any():
        return "logits of another shape, or finite where they were not"
    old, new = np.nan_to_num(old), np.nan_to_num(new)
    moved = int((old.argmax(1) != new.argmax(1)).sum())
    if moved:
        return f"{moved} of {len(old)} predictions differ"
    scale = np.maximum(np.abs(old).max(1), np.finfo(np.float64).tiny)
    relative = float((np.abs(old - new).max(1) / scale).max())
    return f"logits differ by {relative:.1g} of the largest" if relative >= TOLERANCE else ""


@contextmanager
def _seeded() -> Iterator[None]:
    """Seeded global generators and one thread; all of it is set back afterwards."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)
