"""Reads tensors from safetensors files and checks their shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.contracts.errors import UserError


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file.

    Raises:
        UserError: when the file is missing or corrupt.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"weights {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {path}: not a readable safetensors file ({error})") from None


def load_into(module: Any, state: dict[str, Tensor], path: Path) -> None:
    """Loads tensors into a module.

    Raises:
        UserError: when names or shapes differ from the module's.
    """
    check_shapes({key: tuple(value.shape) for key, value in module.state_dict().items()}, state, path)
    module.load_state_dict(state)


def check_shapes(expected: dict[str, tuple[int, ...]], state: dict[str, Tensor], path: Path) -> None:
    """Checks that tensors have the expected names and shapes.

    Raises:
        UserError: when they differ; the message names the first tensor that differs.
    """
    for key in sorted(expected.keys() | state.keys()):
        wanted, found = expected.get(key), tuple(state[key].shape) if key in state else None
        if wanted != found:
            have = "missing" if found is None else f"of shape {found}"
            want = "not expected" if wanted is None else f"expected {wanted}"
            raise UserError(f"weights {path}: {key} is {have}, {want}")
