"""Reads and downloads datasets with torchvision."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.contracts.errors import UserError
from bench.datasets.archives import Archive, ColorArchive
from bench.datasets.cache import cache_dir
from bench.datasets.files import find_file
from bench.datasets.split import Part


def read_by_torchvision(
    name: str, archive: ColorArchive, part: Part, data_dir: Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reads torchvision's files from the data folder; without a data folder, downloads them into the cache.

    torchvision verifies the checksums of the files.
    """
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
        with socket_timeout(30):
            loaded = reader(root, download=data_dir is None, **split)
    except (RuntimeError, OSError) as error:
        if data_dir is not None:
            raise UserError(
                f"dataset {name!r}: no {files} under {data_dir}, nor intact files of torchvision's; set --data-dir or "
                "ASSAY_DATA to the folder that has them, or leave both out to download them"
            ) from None
        raise failed_download(name, error, files) from None
    if archive.torchvision_name == "SVHN":
        return loaded.data.transpose(0, 2, 3, 1), loaded.labels
    return loaded.data, np.array(loaded.targets)


def failed_download(name: str, error: Exception, files: str) -> UserError:
    """Returns the error that says why a download failed and which ``files`` can be supplied instead."""
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return UserError(
        f"dataset {name!r}: the download failed ({reason}); connect to the internet, or set --data-dir or ASSAY_DATA "
        f"to a folder that has {files}"
    )


def downloaded(name: str, archive: Archive) -> Path:
    """Returns the cache's data folder, after downloading the dataset into it if files are missing.

    The files appear in the folder all at once or not at all.
    """
    root = cache_dir() / "data"
    if all(find_file(archive, root, file) for file in archive.checksums):
        return root
    import torchvision

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary, socket_timeout(30):
        try:
            getattr(torchvision.datasets, archive.torchvision_name)(temporary, download=True)
        except (RuntimeError, OSError) as error:
            raise failed_download(name, error, f"{archive.folders[0]}/*-ubyte.gz") from None
        target = root / archive.torchvision_name
        if not target.exists():
            (Path(temporary) / archive.torchvision_name).replace(target)
    return root


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Makes a download fail if it stalls for ``seconds``, since torchvision sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
