"""What float arithmetic results depend on."""

import torch

import bench
from bench.arithmetic import exact_float32, fast_float32, rows_per_pass


def settings():
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.allow_tf32, products.allow_tf32, not cudnn.deterministic, cudnn.benchmark


def test_a_defense_that_was_loaded_is_computed_in_full_float32():
    """Also where another one was trained before."""
    fast_float32()
    assert settings() == (True, True, True, True)
    bench.load_defense("nearest_neighbour", dataset="digits")
    assert settings() == (False, False, False, False)
    fast_float32()
    exact_float32()
    assert settings() == (False, False, False, False)


def test_passes_on_a_gpu_have_more_rows():
    assert rows_per_pass(50, torch.device("cpu")) == 50
    assert rows_per_pass(50, torch.device("cuda")) > 50
