"""Seals: hashes of a file's content, independent of its encoding.

A seal holds one hash per key or column, so that an error can name what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

SEAL = "seal"
"""The key under which a mapping keeps its own seal."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content with a hash of each key's value under `SEAL`. The content must be fit for JSON."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != SEAL}))
    return {**plain, SEAL: {key: _hash_of_json(value) for key, value in plain.items()}}


def altered_key(content: Mapping[str, Any]) -> str | None:
    """Returns the first key that differs from the content's seal, is missing or was added; None if there is none."""
    seal = content.get(SEAL)
    if not isinstance(seal, dict):
        return SEAL
    found = {key: _hash_of_json(value) for key, value in content.items() if key != SEAL}
    keys = [*found, *(key for key in seal if key not in found)]
    return next((key for key in keys if found.get(key) != seal.get(key)), None)


def column_hashes(table: pa.Table) -> list[list[str]]:
    """Returns the name and the hash of each column, in the order of the columns."""
    return [[name, _hash_of_column(name, table[name])] for name in table.column_names]


def altered_column(table: pa.Table, hashes: Any) -> str | None:
    """Returns the first column that differs from the hashes, is missing or was added; None if there is none."""
    found = column_hashes(table)
    if found == hashes:
        return None
    stored = dict(hashes) if isinstance(hashes, list) else {}
    differing = (name for name, digest in found if stored.get(name) != digest)
    missing = (name for name in stored if name not in table.column_names)
    return next(differing, None) or next(missing, None) or "order of the columns"


def _hash_of_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_of_column(name: str, column: pa.ChunkedArray) -> str:
    """Hashes name, type, length, missing values and values of a column.

    Numbers are hashed as little-endian bytes. Texts are hashed as UTF-8 with their lengths.
    """
    digest = hashlib.sha256(f"{name}\0{column.type}\0{len(column)}\0".encode())
    missing = column.is_null().to_numpy() if column.null_count else np.zeros(len(column), bool)
    digest.update(np.packbits(missing).tobytes())
    if pa.types.is_string(column.type):
        texts = [text.encode() for text in column.drop_null().to_pylist()]
        digest.update(np.array([len(text) for text in texts], "<i8").tobytes())
        digest.update(b"".join(texts))
    else:
        values = column.drop_null().to_numpy()
        digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
