"""Datasets: images in [0, 1] with labels, and the places where their files are looked for.

``digits`` comes with scikit-learn. The other datasets are read from files under a data folder (``--data-dir`` or
``$ASSAY_DATA``). ``mnist`` and ``fashion_mnist`` are read from IDX files. Color datasets are read from npz files or
from torchvision's files in that folder. Without a data folder, torchvision downloads the datasets that it provides into
the cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from bench.contracts.errors import UserError, unknown
from bench.datasets.cards import DATASETS, ColorArchive
from bench.datasets.downloads import downloaded, read_by_torchvision
from bench.datasets.files import read_digits, read_npz, read_verified
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
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    chosen = data_dir or os.environ.get("ASSAY_DATA")
    folder = Path(chosen).expanduser().absolute() if chosen else None
    if folder is not None and not folder.is_dir():
        origin = "--data-dir" if data_dir else "ASSAY_DATA"
        raise UserError(f"{origin}: {folder} is not a folder")
    card = DATASETS[name]
    return Dataset(card.name, card.classes, card.shape, folder)


@cache
def _load_split(name: str, part: Part, data_dir: Path | None) -> Split:
    archive = DATASETS[name].archive
    if archive is None:
        return read_digits(part)
    if isinstance(archive, ColorArchive):
        return _color(name, archive, part, data_dir)
    root = data_dir if data_dir is not None else downloaded(name, archive)
    prefix = "train" if part == "train" else "t10k"
    images, labels = (
        read_verified(name, archive, root, f"{prefix}-{content}-ubyte") for content in ("images-idx3", "labels-idx1")
    )
    return Split(torch.from_numpy(images).unsqueeze(1).float().div_(255), torch.from_numpy(labels).long())


def _color(name: str, archive: ColorArchive, part: Part, data_dir: Path | None) -> Split:
    path = None if data_dir is None else data_dir / archive.folder / f"{part}.npz"
    if path is not None and path.is_file():
        x, y = read_npz(path)
    else:
        x, y = read_by_torchvision(name, archive, part, data_dir)
    if archive.kept is not None:
        rows = np.isin(y, archive.kept)
        x, y = x[rows], np.searchsorted(archive.kept, y[rows])
    if len(strange := y[(y < 0) | (y >= DATASETS[name].classes)]):
        raise UserError(f"dataset {name!r}, {part}: label {strange[0]}; allowed: 0 to {DATASETS[name].classes - 1}")
    return Split(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().float().div_(255), torch.from_numpy(y).long())
