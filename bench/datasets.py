"""Datasets: images in [0, 1] with their labels, and where their files are looked for.

``digits`` comes with scikit-learn. The others are read from files under a data folder (``--data-dir`` or
``$ASSAY_DATA``): ``mnist`` and ``fashion_mnist`` from IDX files, those in colour from npz files or from what
torchvision has put there. Without a data folder torchvision downloads them into the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import os
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cache import cache_dir
from bench.errors import UserError, unknown

Part = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) float32 in [0, 1] and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    @cached_property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class Archive:
    """A dataset of four gzipped IDX files.

    Attributes:
        folders: where they lie below a data folder: this project's layout, then torchvision's.
        torchvision_name: the class in ``torchvision.datasets`` that downloads them.
        checksums: MD5 of each file's decompressed content, by name without ``.gz``.
    """

    folders: tuple[str, ...]
    torchvision_name: str
    checksums: Mapping[str, str]


@dataclass(frozen=True)
class ColourArchive:
    """Colour images of 32x32 pixels in ``train.npz`` and ``test.npz``, each with ``x`` uint8 (N, 32, 32, 3) and the
    labels ``y`` (N,); or as torchvision keeps them.

    Attributes:
        folder: where the npz files lie below a data folder.
        torchvision_name: the class in ``torchvision.datasets`` that reads and downloads the set; None where none does.
        kept: the classes that are kept, ascending; they become 0, 1, ... None keeps all.
    """

    folder: str
    torchvision_name: str | None = None
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DatasetCard:
    """What is known about a dataset before it is loaded.

    Attributes:
        name: what commands and matrices call it.
        classes: number of classes.
        shape: channels, height and width of an image.
        train: number of training images of the complete set.
        test: number of test images of the complete set.
        source: where it comes from.
        citation: where it was published.
        archive: its files, or None where it comes with a library.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: int
    test: int
    source: str
    citation: str
    archive: Archive | ColourArchive | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset whose splits are loaded when first used.

    Attributes:
        name: its name in `DATASETS`.
        classes: number of classes.
        shape: channels, height and width of an image.
        data_dir: the folder its files, and weights that belong to it, are looked for in; None where none was given.
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


DATASETS: dict[str, DatasetCard] = {
    card.name: card
    for card in (
        DatasetCard(
            name="digits",
            classes=10,
            shape=(1, 8, 8),
            train=1197,
            test=600,
            source="scikit-learn (embedded)",
            citation="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI)",
        ),
        DatasetCard(
            name="mnist",
            classes=10,
            shape=(1, 28, 28),
            train=60000,
            test=10000,
            source="IDX files, or torchvision's download",
            citation="LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document recognition",
            archive=Archive(
                folders=("mnist", "MNIST/raw"),
                torchvision_name="MNIST",
                checksums={
                    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
                    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
                    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
                    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
                },
            ),
        ),
        DatasetCard(
            name="fashion_mnist",
            classes=10,
            shape=(1, 28, 28),
            train=60000,
            test=10000,
            source="IDX files, or torchvision's download",
            citation="Xiao, Rasul & Vollgraf 2017, Fashion-MNIST",
            archive=Archive(
                folders=("fashion-mnist", "FashionMNIST/raw"),
                torchvision_name="FashionMNIST",
                checksums={
                    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
                    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
                    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
                },
            ),
        ),
        DatasetCard(
            name="cifar10",
            classes=10,
            shape=(3, 32, 32),
            train=50000,
            test=10000,
            source="npz files (all or a part), or torchvision's download",
            citation="Krizhevsky 2009, Learning multiple layers of features from tiny images",
            archive=ColourArchive("cifar10", "CIFAR10"),
        ),
        DatasetCard(
            name="cifar2",
            classes=2,
            shape=(3, 32, 32),
            train=10000,
            test=2000,
            source="airplanes and automobiles of cifar10",
            citation="Krizhevsky 2009; the two classes of Schott et al. 2019, appendix A.1",
            archive=ColourArchive("cifar10", "CIFAR10", kept=(0, 1)),
        ),
        DatasetCard(
            name="gtsrb_top10",
            classes=10,
            shape=(3, 32, 32),
            train=16404,
            test=5345,
            source="npz files",
            citation="Stallkamp, Schlipsing, Salmen & Igel 2012, Man vs. computer; its ten most frequent classes, in "
            "place of Ju & Wagner's SuperTraffic-10",
            archive=ColourArchive("gtsrb-top10"),
        ),
        DatasetCard(
            name="svhn",
            classes=10,
            shape=(3, 32, 32),
            train=73257,
            test=26032,
            source="npz files (all or a part), or torchvision's download",
            citation="Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning",
            archive=ColourArchive("svhn", "SVHN"),
        ),
    )
}


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A dataset by name; its splits are read, and where need be downloaded, when first used.

    Args:
        name: one of `DATASETS`.
        data_dir: folder with the data; default ``$ASSAY_DATA``, and without that a download into the cache.

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
        return _digits(part)
    if isinstance(archive, ColourArchive):
        return _colour(name, archive, part, data_dir)
    root = data_dir if data_dir is not None else _downloaded(name, archive)
    prefix = "train" if part == "train" else "t10k"
    images, labels = (
        _read_verified(name, archive, root, f"{prefix}-{content}-ubyte") for content in ("images-idx3", "labels-idx1")
    )
    return Split(torch.from_numpy(images).unsqueeze(1).float().div_(255), torch.from_numpy(labels).long())


def _digits(part: Part) -> Split:
    """scikit-learn's 1,797 digits of 8x8 pixels with 17 grey levels, a third of them (600) for testing; the split is
    stratified and fixed by its seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    card = DATASETS["digits"]
    train, test = train_test_split(
        np.arange(len(digits.target)),
        train_size=card.train,
        test_size=card.test,
        stratify=digits.target,
        random_state=0,
    )
    rows = train if part == "train" else test
    images = torch.from_numpy(digits.images[rows]).float().unsqueeze(1) / 16
    return Split(images, torch.from_numpy(digits.target[rows]).long())


def read_idx(path: Path, md5: str | None = None) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file (``.gz``: gzipped), the format of yann.lecun.com/exdb/mnist.

    Args:
        path: the file; ``idx3`` or ``idx1`` in its name is the number of dimensions it must have.
        md5: checksum of the decompressed content; None accepts any.

    Raises:
        UserError: when it cannot be read, is no such file, is truncated, or has another checksum.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        kind = "gzip file" if path.suffix == ".gz" else "file"
        raise UserError(f"{path}: not a readable {kind} ({error})") from None
    dimensions = 3 if "idx3" in path.name else 1
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise UserError(f"{path}: not an IDX file of bytes: magic number {content[:4].hex()}, expected {magic.hex()}")
    header = 4 + 4 * dimensions
    shape = [int(n) for n in np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4")]
    size = header + math.prod(shape)
    if len(content) != size:
        state = "truncated" if len(content) < size else "too long"
        raise UserError(f"{path}: {state}: {len(content)} bytes instead of the {size} that its header announces")
    if md5 is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise UserError(f"{path}: checksum mismatch: the content's MD5 is {found}, expected {md5}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _colour(name: str, archive: ColourArchive, part: Part, data_dir: Path | None) -> Split:
    path = None if data_dir is None else data_dir / archive.folder / f"{part}.npz"
    if path is not None and path.is_file():
        x, y = read_npz(path)
    else:
        x, y = _read_by_torchvision(name, archive, part, data_dir)
    if archive.kept is not None:
        rows = np.isin(y, archive.kept)
        x, y = x[rows], np.searchsorted(archive.kept, y[rows])
    if len(strange := y[(y < 0) | (y >= DATASETS[name].classes)]):
        raise UserError(f"dataset {name!r}, {part}: label {strange[0]}; allowed: 0 to {DATASETS[name].classes - 1}")
    return Split(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().float().div_(255), torch.from_numpy(y).long())


def read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,): the arrays ``x`` and ``y`` of an npz file.

    Raises:
        UserError: when it cannot be read or holds something else.
    """
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (
        OSError,
        TypeError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise UserError(f"{path}: not a readable npz file with arrays x and y ({error})") from None
    if x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3) or not len(x):
        raise UserError(f"{path}: x is {x.dtype} {x.shape}, expected uint8 (N, 32, 32, 3)")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise UserError(f"{path}: y is {y.dtype} {y.shape}, expected integers {x.shape[:1]}")
    return x, y.astype(np.int64)


def _read_by_torchvision(
    name: str, archive: ColourArchive, part: Part, data_dir: Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reads what torchvision has put into the data folder, or downloads it into the cache; it verifies checksums."""
    files = f"{archive.folder}/{part}.npz"
    if archive.torchvision_name is None:
        raise UserError(
            f"dataset {name!r}: no {files} under {data_dir or 'a data folder'}; set --data-dir or ASSAY_DATA to the "
            "folder that has it"
        )
    import torchvision

    root = data_dir or cache_dir() / "data" / archive.torchvision_name
    reader = getattr(torchvision.datasets, archive.torchvision_name)
    split = {"split": part} if archive.torchvision_name == "SVHN" else {"train": part == "train"}
    try:
        with _socket_timeout(30):
            loaded = reader(root, download=data_dir is None, **split)
    except (RuntimeError, OSError) as error:
        if data_dir is not None:
            raise UserError(
                f"dataset {name!r}: no {files} under {data_dir}, nor intact files of torchvision's; set --data-dir or "
                "ASSAY_DATA to the folder that has them, or leave both out to download them"
            ) from None
        raise _failed_download(name, error, files) from None
    if archive.torchvision_name == "SVHN":
        return loaded.data.transpose(0, 2, 3, 1), loaded.labels
    return loaded.data, np.array(loaded.targets)


def _failed_download(name: str, error: Exception, files: str) -> UserError:
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return UserError(
        f"dataset {name!r}: the download failed ({reason}); connect to the internet, or set --data-dir or ASSAY_DATA "
        f"to a folder that has {files}"
    )


def _find(archive: Archive, root: Path, file: str) -> Path | None:
    candidates = (root / folder / (file + suffix) for folder in archive.folders for suffix in (".gz", ""))
    return next((path for path in candidates if path.is_file()), None)


def _read_verified(name: str, archive: Archive, root: Path, file: str) -> NDArray[np.uint8]:
    path = _find(archive, root, file)
    if path is None:
        raise UserError(
            f"dataset {name!r}: no {archive.folders[0]}/{file}.gz under {root}; set --data-dir or ASSAY_DATA to the "
            "folder that has it, or leave both out to download it"
        )
    return read_idx(path, archive.checksums[file])


def _downloaded(name: str, archive: Archive) -> Path:
    """The cache's data folder, with the dataset in it; the files appear there all together or not at all."""
    root = cache_dir() / "data"
    if all(_find(archive, root, file) for file in archive.checksums):
        return root
    import torchvision

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary, _socket_timeout(30):
        try:
            getattr(torchvision.datasets, archive.torchvision_name)(temporary, download=True)
        except (RuntimeError, OSError) as error:
            raise _failed_download(name, error, f"{archive.folders[0]}/*-ubyte.gz") from None
        target = root / archive.torchvision_name
        if not target.exists():
            (Path(temporary) / archive.torchvision_name).replace(target)
    return root


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """A download that stalls for this long fails: torchvision sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
