"""Checks whether a defense still gives the same answers as when its cells ran.

A cell's id covers the defense's code, its parameters and its visible tensors. Other tensors may come from anywhere:
an object that loads a file, a table, another process. Therefore the logits on a few fixed images are stored with every
result. These logits are compared before the result is kept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from bench.contracts.door import drawn_logits
from bench.contracts.protocols import Defense
from bench.contracts.streams import Streams
from bench.datasets.dataset import Dataset
from bench.plugins.isolation import kept_defaults

IMAGES = 16
"""Number of fixed images: the first N test images of the dataset."""
TOLERANCE = 1e-3
"""Limit on the difference of an image's logits between machines, relative to the largest absolute logit."""

Answers = list[list[float | None]] | None
"""Logits (16, K), with None for values that are not finite. None as a whole if the defense raises an error."""


def answers(defense: Defense, dataset: Dataset, device: torch.device) -> Answers:
    """Returns the logits of a defense on the fixed images, with fixed streams and in one thread.

    The global random generators are seeded for defenses that draw from them.
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
    except (Exception, SystemExit):  # the defense's cells report the error
        return None
    return [[float(f"{value:.9g}") if math.isfinite(value) else None for value in row] for row in logits]


def difference(before: Answers, now: Answers) -> str:
    """Returns how a defense's answers differ, as text. The text is empty if the answers do not differ."""
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
    """Seeds the global random generators and sets one thread. Both are restored afterwards."""
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
