"""Provenance of a result: versions, machine, command, state of the source."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.contracts.errors import UserError

_PACKAGES = ("bench", "defenses", "attacks", "reports")
_LIBRARIES = ("assay", "torch", "numpy", "scipy", "pandas", "foolbox", "pyautoattack", "robustbench")


def check_packages() -> None:
    """Checks that all four import packages are ours. Their names are generic, so another package may hide one.

    Raises:
        UserError: when one is not ours. The message names the intruder.
    """
    root = Path(__file__).resolve().parents[2]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        where = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if where != root / name:
            raise UserError(
                f"package {name!r} comes from {where or 'nowhere'}, expected {root / name}; remove the former"
            )


def provenance(device: str, seed: int) -> dict[str, Any]:
    """Returns the provenance that is stored with every result. It is not part of a cell's identity."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
        "machine": f"{platform.system()} {platform.machine()}",
        "kind_of_machine": kind_of_machine(device),
        "device": device,
        "seed": seed,
        "git": _git_state(),
    }


def kind_of_machine(device: str) -> str:
    """Returns the kind of machine, which determines float arithmetic.

    On machines of one kind, the same cell gives the same bytes.
    """
    import torch  # late: the import is slow, and the callers have torch already

    where = torch.device(device)
    unit = torch.cuda.get_device_name(where) if where.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{platform.system()} {platform.machine()} {unit}, torch {torch.__version__}"


def computed_alike(facts: Mapping[str, Any], device: str, arithmetic: str) -> bool:
    """Returns whether a result with these facts comes from this kind of machine and from this way to compute."""
    way = facts.get("state", {}).get("arithmetic", "")
    return facts.get("kind_of_machine") == kind_of_machine(device) and way == arithmetic


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> str:
    """Returns the commit of this source tree, with ``-dirty`` if it was changed; empty outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
