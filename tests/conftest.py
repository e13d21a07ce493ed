"""Fixtures for all tests: nothing a test trains or caches leaves its session's temporary folder."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# How long an example takes depends on what else the machine does.
settings.register_profile("assay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("assay")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Checkpoints of tests go to ``ASSAY_TEST_CACHE`` where it is set (to reuse them), else to a temporary folder."""
    before = os.environ.get("ASSAY_CACHE")
    os.environ["ASSAY_CACHE"] = os.environ.get("ASSAY_TEST_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    if before is None:
        del os.environ["ASSAY_CACHE"]
    else:
        os.environ["ASSAY_CACHE"] = before


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets, where this machine has one."""
    if "ASSAY_DATA" not in os.environ:
        pytest.skip("ASSAY_DATA is not set: the data sets' files are not here")
    return Path(os.environ["ASSAY_DATA"])
