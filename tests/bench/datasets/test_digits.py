"""The digits that come with scikit-learn, in fixed stratified splits."""

from __future__ import annotations

import numpy as np
import torch

from bench.datasets.dataset import load_dataset


def test_digits_are_eight_by_eight_images_in_the_unit_interval():
    dataset = load_dataset("digits")
    for split, size in ((dataset.train, 1197), (dataset.test, 600)):
        assert split.images.shape == (size, 1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.shape == (size,)
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0
        assert split.images.max() == 1
        assert torch.equal(split.images * 16, (split.images * 16).round())


def test_digits_splits_cover_every_image_once():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    rows = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).numpy() * 16
    assert sorted(map(tuple, rows)) == sorted(map(tuple, load_digits().data.astype(np.float32)))


def test_digits_splits_are_stratified():
    dataset = load_dataset("digits")
    train, test = dataset.train.labels.bincount(), dataset.test.labels.bincount()
    share = (train + test) * 600 / 1797
    assert ((test - share).abs() < 1).all()


def test_digits_split_is_fixed():
    """A ledger of digits names samples by their place in this very split."""
    dataset = load_dataset("digits")
    assert dataset.test.hash == "aa25f5f9a8acdb84"
