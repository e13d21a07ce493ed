"""Archives: datasets in files of a common layout, in a data folder or downloaded by torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A dataset of four gzipped IDX files.

    Attributes:
        folders: where the files lie below a data folder: this project's layout, then torchvision's.
        torchvision_name: the class in ``torchvision.datasets`` that downloads the files.
        checksums: MD5 of each file's decompressed content, by name without ``.gz``.
    """

    folders: tuple[str, ...]
    torchvision_name: str
    checksums: Mapping[str, str]


@dataclass(frozen=True)
class ColorArchive:
    """Color images of 32x32 pixels in ``train.npz`` and ``test.npz``, or in torchvision's own files.

    Each npz file holds the images ``x`` uint8 (N, 32, 32, 3) and the labels ``y`` (N,).

    Attributes:
        folder: where the npz files lie below a data folder.
        torchvision_name: the class in ``torchvision.datasets`` that reads and downloads the set; None if there is none.
        kept: the classes to keep, in ascending order, relabeled 0, 1, ...; None keeps all.
    """

    folder: str
    torchvision_name: str | None = None
    kept: tuple[int, ...] | None = None
