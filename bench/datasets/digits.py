"""scikit-learn's 1,797 digits of 8x8 pixels with 17 gray levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bench.datasets.cards import dataset
from bench.datasets.split import Part, Split

TRAIN, TEST = 1197, 600


@dataset(
    "digits",
    classes=10,
    shape=(1, 8, 8),
    train=TRAIN,
    test=TEST,
    source="scikit-learn (embedded)",
    citation="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI)",
)
def digits(part: Part, data_dir: Path | None) -> Split:
    """A third of the digits (600) are for testing. The split is stratified and fixed by its seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    content = load_digits()
    train, test = train_test_split(
        np.arange(len(content.target)), train_size=TRAIN, test_size=TEST, stratify=content.target, random_state=0
    )
    rows = train if part == "train" else test
    images = torch.from_numpy(content.images[rows]).float().unsqueeze(1) / 16
    return Split(images, torch.from_numpy(content.target[rows]).long())
