"""IDX files are verified before they are believed."""

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest
from dataset_files import assert_one_line, idx

from bench.datasets.files import read_idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("name", "shape"), [("t10k-images-idx3-ubyte", (5, 4, 3)), ("t10k-labels-idx1-ubyte", (5,))])
def test_idx_files_are_read_gzipped_or_not(tmp_path, name, shape, suffix):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = idx(array)
    path = tmp_path / (name + suffix)
    path.write_bytes(gzip.compress(content) if suffix else content)
    read = read_idx(path, hashlib.md5(content).hexdigest())
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


GOOD = idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3))


CORRUPT = {
    "another magic number": (GOOD[:2] + b"\x0d" + GOOD[3:], "magic number 00000d03, expected 00000803"),
    "labels for images": (idx(np.zeros(5, np.uint8)), "magic number 00000801, expected 00000803"),
    "empty": (b"", "not an IDX file"),
    "header cut off": (GOOD[:9], "truncated: 9 bytes"),
    "pixels cut off": (GOOD[:-1], "truncated: 75 bytes instead of the 76 that its header announces"),
    "bytes appended": (GOOD + b"\0", "too long: 77 bytes instead of the 76"),
    "one pixel changed": (GOOD[:-1] + b"\xff", "checksum mismatch: the content's MD5 is "),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("case", CORRUPT)
def test_a_corrupt_idx_file_is_named_with_what_is_wrong(tmp_path, case, suffix):
    content, message = CORRUPT[case]
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert_one_line(path, message, lambda: read_idx(path, hashlib.md5(GOOD).hexdigest()))


@pytest.mark.parametrize(
    "content",
    [GOOD, gzip.compress(GOOD)[:-20], gzip.compress(GOOD)[:12] + b"\xff" * 40, gzip.compress(GOOD)[:-6] + b"crc!!!"],
    ids=["not gzip", "gzip cut off", "gzip garbled", "gzip with another CRC"],
)
def test_a_corrupt_gzip_file_is_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    assert_one_line(path, "not a readable gzip file", lambda: read_idx(path))
