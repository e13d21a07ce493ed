"""Compiles the kernel of `defenses.abs.built` where there is a compiler. All else is in pyproject.toml."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

KERNEL = Path("defenses/abs/kernel")
SOURCES = ("kernel.c", "instructions.h", "lanes.h", "descent.h")
digest = hashlib.sha256(b"".join((KERNEL / name).read_bytes() for name in SOURCES)).hexdigest()[:16]

setup(
    ext_modules=[
        Extension(
            "defenses.abs.kernel.kernel",  # beside its source: no module to import
            [str(KERNEL / "kernel.c")],
            depends=[str(KERNEL / name) for name in SOURCES],
            define_macros=[("SOURCE_DIGEST", f'"{digest}"')],
            extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wno-psabi"],
            libraries=["m"],
            optional=True,
        )
    ]
)
