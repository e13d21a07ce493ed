"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write(temporary)`` with the path of a new file beside ``path``, flushes it and renames it to ``path``.

    A reader sees the old file or the whole new one, even after a crash or a kill at any moment. The file's permissions
    follow the user's umask. An interruption leaves no temporary file behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # `tempfile` would make the file unreadable for other users, even in a shared folder.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Makes a rename in a folder durable if the system can."""
    with suppress(OSError):  # Windows opens no folders; some network folders refuse to flush
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
