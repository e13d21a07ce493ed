"""Files of datasets, and how they are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench.contracts.errors import UserError

needs_data = pytest.mark.skipif("ASSAY_DATA" not in os.environ, reason="needs the data sets' files (ASSAY_DATA=FOLDER)")


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in IDX format."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def assert_one_line(path: Path, message: str, action) -> None:
    with pytest.raises(UserError) as error:
        action()
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
