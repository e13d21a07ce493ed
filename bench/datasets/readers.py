"""Reads a split of an archive from a data folder. Without a data folder, torchvision downloads it into the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bench.datasets.archives import Archive, ColorArchive
from bench.datasets.downloads import downloaded, read_by_torchvision
from bench.datasets.files import read_npz, read_verified
from bench.datasets.split import Part, Split


def read_archive(name: str, archive: Archive, part: Part, data_dir: Path | None) -> Split:
    """Reads a split of the gray images in an archive of IDX files."""
    root = data_dir if data_dir is not None else downloaded(name, archive)
    prefix = "train" if part == "train" else "t10k"
    images, labels = (
        read_verified(name, archive, root, f"{prefix}-{content}-ubyte") for content in ("images-idx3", "labels-idx1")
    )
    return Split(torch.from_numpy(images).unsqueeze(1).float().div_(255), torch.from_numpy(labels).long())


def read_color_archive(name: str, archive: ColorArchive, part: Part, data_dir: Path | None) -> Split:
    """Reads a split of color images. The npz file in the data folder comes before torchvision's files."""
    path = None if data_dir is None else data_dir / archive.folder / f"{part}.npz"
    if path is not None and path.is_file():
        x, y = read_npz(path)
    else:
        x, y = read_by_torchvision(name, archive, part, data_dir)
    if archive.kept is not None:
        rows = np.isin(y, archive.kept)
        x, y = x[rows], np.searchsorted(archive.kept, y[rows])
    return Split(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().float().div_(255), torch.from_numpy(y).long())
