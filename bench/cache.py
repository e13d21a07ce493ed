"""Where checkpoints and downloaded data are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_dir() -> Path:
    """The cache folder: ``$ASSAY_CACHE``, or the platform's (``~/.cache/assay`` on Linux)."""
    configured = os.environ.get("ASSAY_CACHE")
    return Path(configured) if configured else user_cache_path("assay")
