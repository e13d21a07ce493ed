"""The cache: a folder that keeps checkpoints and downloaded data between runs."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_dir() -> Path:
    """Returns the cache folder: ``$ASSAY_CACHE`` if it is set, else the platform's (``~/.cache/assay`` on Linux)."""
    configured = os.environ.get("ASSAY_CACHE")
    return Path(configured) if configured else user_cache_path("assay")
