"""What float arithmetic results depend on."""

import pytest
import torch

import bench
from bench.contracts.devices import fast_float32, rows_per_pass


def settings():
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.allow_tf32, products.allow_tf32, not cudnn.deterministic, cudnn.benchmark


def test_a_defense_that_was_loaded_is_computed_in_full_float32():
    torch.backends.cudnn.allow_tf32 = True
    bench.load_defense("nearest_neighbour", dataset="digits")
    assert settings() == (False, False, False, False)


def test_training_is_fast_and_what_follows_exact_also_where_it_failed():
    @fast_float32()
    def diverge():
        assert settings() == (True, True, True, True)
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        diverge()
    assert settings() == (False, False, False, False)


def test_passes_on_a_gpu_have_more_rows():
    assert rows_per_pass(50, torch.device("cpu")) == 50
    assert rows_per_pass(50, torch.device("cuda")) > 50
