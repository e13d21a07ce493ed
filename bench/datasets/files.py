"""Reads dataset files: IDX and npz."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.contracts.errors import UserError
from bench.datasets.archives import Archive


def read_idx(path: Path, md5: str | None = None) -> NDArray[np.uint8]:
    """Reads the array of unsigned bytes in an IDX file (``.gz``: gzipped), the format of yann.lecun.com/exdb/mnist.

    Args:
        path: the file. Its array must have 3 dimensions if the file's name contains ``idx3``, else 1.
        md5: checksum of the decompressed content; None accepts any.

    Raises:
        UserError: when the file is unreadable, is not an IDX file, is truncated or too long, or has another checksum.
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


def read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reads images uint8 (N, 32, 32, 3) and labels int64 (N,) from the arrays ``x`` and ``y`` of an npz file.

    Raises:
        UserError: when the file cannot be read or holds something else.
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


def find_file(archive: Archive, root: Path, file: str) -> Path | None:
    """Returns the path of an archive's ``file`` under ``root``, gzipped or not; None if there is none."""
    candidates = (root / folder / (file + suffix) for folder in archive.folders for suffix in (".gz", ""))
    return next((path for path in candidates if path.is_file()), None)


def read_verified(name: str, archive: Archive, root: Path, file: str) -> NDArray[np.uint8]:
    """Reads one of an archive's files under ``root`` and verifies its checksum."""
    path = find_file(archive, root, file)
    if path is None:
        raise UserError(
            f"dataset {name!r}: no {archive.folders[0]}/{file}.gz under {root}; set --data-dir or ASSAY_DATA to the "
            "folder that has it, or leave both out to download it"
        )
    return read_idx(path, archive.checksums[file])
