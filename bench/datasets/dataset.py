"""Datasets: images in [0, 1] with labels, and the places where their files are looked for.

Each dataset is a module of this package (`bench.datasets.catalog`). ``digits`` comes with scikit-learn. The others are
read from files under a data folder (``--data-dir`` or ``$ASSAY_DATA``). Without a data folder, torchvision downloads
the datasets that it provides into the cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bench.contracts.errors import UserError
from bench.datasets.catalog import DATASETS
from bench.datasets.split import Part, Split


@dataclass(frozen=True)
class Dataset:
    """A dataset whose splits are loaded on first use.

    Attributes:
        name: the dataset's name in `DATASETS`.
        classes: number of classes.
        shape: channels, height and width of an image.
        data_dir: the folder with the dataset's files and the weights that belong to it; None if none was given.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    data_dir: Path | None = None

    @property
    def train(self) -> Split:
        """The training split."""
        return _load_split(self.name, "train", self.data_dir)

    @property
    def test(self) -> Split:
        """The test split."""
        return _load_split(self.name, "test", self.data_dir)


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Returns a dataset by name. Its splits are read, and downloaded if necessary, on first use.

    Args:
        name: one of `DATASETS`.
        data_dir: folder with the data; default ``$ASSAY_DATA``. If neither is given, data are downloaded into the
            cache.

    Raises:
        UserError: for an unknown name or a data folder that does not exist; on first use of a split, for missing or
            corrupt files and for a failed download.
    """
    card = DATASETS.get(name).card
    chosen = data_dir or os.environ.get("ASSAY_DATA")
    folder = Path(chosen).expanduser().absolute() if chosen else None
    if folder is not None and not folder.is_dir():
        origin = "--data-dir" if data_dir else "ASSAY_DATA"
        raise UserError(f"{origin}: {folder} is not a folder")
    return Dataset(card.name, card.classes, card.shape, folder)


@cache
def _load_split(name: str, part: Part, data_dir: Path | None) -> Split:
    found = DATASETS.get(name)
    split, classes = found.function(part, data_dir), found.card.classes
    images = split.images
    if images.dtype != torch.float32 or images.shape != (len(split.labels), *found.card.shape):
        wanted = f"torch.float32 ({len(split.labels)}, {', '.join(map(str, found.card.shape))})"
        raise UserError(f"dataset {name!r}, {part}: images are {images.dtype} {tuple(images.shape)}, expected {wanted}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UserError(f"dataset {name!r}, {part}: images have values outside [0, 1]")
    if len(strange := split.labels[(split.labels < 0) | (split.labels >= classes)]):
        raise UserError(f"dataset {name!r}, {part}: label {int(strange[0])}; allowed: 0 to {classes - 1}")
    return split
