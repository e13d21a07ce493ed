"""Finds the kernel that was compiled when the package was installed.

``kernel/`` has its C source. Where the kernel is missing, or was compiled from another source, torch computes instead.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

SOURCES = ("kernel.c", "instructions.h", "lanes.h", "descent.h")
"""Files of the kernel's source, in ``kernel/``. The library holds their digest."""
FOLDER = Path(__file__).parent / "kernel"
"""The folder of the source and of the library, which is no Python module."""
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""What the kernel is compiled for, best first."""
TORCH = "torch"
"""Name of the arithmetic without a kernel."""


@dataclass(frozen=True)
class Kernel:
    """The kernel for one instruction set.

    Attributes:
        instructions: one of `INSTRUCTION_SETS`.
        library: the loaded library.
    """

    instructions: str
    library: Any = field(repr=False)

    def function(self, name: str) -> Any:
        """Returns a function of the library for these instructions."""
        return self.library[f"{name}_{self.instructions}"]


@cache
def kernels() -> tuple[Kernel, ...]:
    """Returns the kernels that run on this machine, best first; none if it was not compiled from today's source."""
    built = next((file for suffix in EXTENSION_SUFFIXES if (file := FOLDER / f"kernel{suffix}").is_file()), None)
    if built is None:
        return ()
    try:
        library = ctypes.CDLL(str(built))
        library.source_digest.restype = ctypes.c_char_p
        digest = library.source_digest().decode()
    except (OSError, AttributeError):  # built for another machine, or something else
        return ()
    if digest != source_digest(FOLDER):
        return ()
    return tuple(Kernel(name, library) for name in INSTRUCTION_SETS if _supported(library, name))


def _supported(library: ctypes.CDLL, instructions: str) -> bool:
    supports = getattr(library, f"supports_{instructions}", None)
    return supports is not None and bool(supports())


def source_digest(folder: Path) -> str:
    """Returns the digest of the kernel's source that a library must have been compiled from."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
