"""RobustBench (Croce et al. 2021, arXiv:2010.09670) with the AutoAttack that is on the package index.

robustbench 1.1.1 imports ``autoattack``, which is on no package index; pyautoattack 0.2.0 is the same code with other
argument names. This module registers a compatible ``autoattack`` and then imports robustbench, on first use. No other
module imports robustbench.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import pyautoattack.autoattack
import pyautoattack.state
import torch
from torch import Tensor, nn

from bench.cache import cache_dir
from bench.cards import defense
from bench.datasets import Dataset
from bench.errors import UserError, unknown

ThreatName = Literal["Linf", "L2", "corruptions", "corruptions_3d"]


class AutoAttack:
    """AutoAttack (Croce & Hein 2020) with the signature that robustbench calls.

    Differs from the original in two defaults: the seed is 0, not the clock, and nothing is written to ``log_path``.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: Literal["Linf", "L2", "L1"] = "Linf",
        eps: float = 0.3,
        seed: int | None = 0,
        attacks_to_run: list[Any] | None = None,
        version: Literal["custom", "plus", "rand", "standard"] = "standard",
        device: torch.device | str = "cpu",
        log_path: str | None = None,
    ) -> None:
        self._attack = pyautoattack.autoattack.AutoAttack(
            model, attacks=attacks_to_run or None, device=device, eps=eps, norm=norm, seed=seed, version=version
        )

    def run_standard_evaluation(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False, state_path: Path | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Adversarial images of the shape of ``x_orig`` (clean where none was found); with ``return_labels`` also the
        predictions."""
        trace = sys.gettrace()
        try:
            images, predictions = self._attack.run_standard_evaluation(
                x_orig, y_orig, batch_size=bs, state_path=state_path
            )
        finally:
            # The check for dynamic defenses switches off whatever traced the program, coverage for one.
            sys.settrace(trace)
        return (images, predictions) if return_labels else images


@cache
def _robustbench() -> Any:
    """The robustbench package, with `AutoAttack` under the name it imports it by."""
    shim = ModuleType("autoattack")
    vars(shim)["AutoAttack"] = AutoAttack
    sys.modules.setdefault("autoattack", shim)
    sys.modules.setdefault("autoattack.state", pyautoattack.state)
    with warnings.catch_warnings():
        # pkg_resources and names that torch and timm deprecate; robustbench pins what it needs of them.
        warnings.simplefilter("ignore")
        import robustbench.eval
        import robustbench.utils
    return robustbench


def load_model(
    name: str, *, dataset: str = "cifar10", threat_model: ThreatName = "Linf", model_dir: str | Path = "models"
) -> nn.Module:
    """A network of the RobustBench model zoo in evaluation mode, from images in [0, 1] to logits.

    Its checkpoint is read from ``<model_dir>/<dataset>/<threat model>/<name>.pt``, and downloaded to there first where
    it is missing. Checkpoints are read with torch's default ``weights_only=True``.

    Raises:
        UserError: for an unknown dataset, threat model or name.
    """
    _check_listed(name, dataset, threat_model)
    model: nn.Module = _robustbench().load_model(name, model_dir, dataset, threat_model)
    return model.eval()


def zoo_defense(name: str) -> Callable[..., nn.Module]:
    """The factory, with its card, of the defense ``robustbench:<dataset>/<threat>/<model>``.

    It reads ``robustbench/<dataset>/<threat>/<model>.pt`` in the dataset's data folder, or without one in the cache.

    Raises:
        UserError: for a name that RobustBench does not list; by the factory, where weights cannot be had.
    """
    parts = name.removeprefix("robustbench:").split("/")
    if len(parts) != 3:
        raise UserError(f"defense {name!r} is not robustbench:<dataset>/<threat>/<name> (robustbench:cifar10/Linf/...)")
    of, threat, model = parts
    _check_listed(model, of, threat)

    @defense(
        name, datasets=[of], citation="Croce et al. 2021, RobustBench: a standardized adversarial robustness benchmark"
    )
    def factory(dataset: Dataset) -> nn.Module:
        folder = (dataset.data_dir or cache_dir() / "data") / "robustbench"
        try:
            return load_model(model, dataset=of, threat_model=cast(ThreatName, threat), model_dir=folder)
        except Exception as error:
            text = " ".join(str(error).split())
            raise UserError(
                f"defense {name!r}: no usable weights in {folder / of / threat / model}.pt, nor by a download "
                f"({type(error).__name__}: {text})"
            ) from error

    return factory


def clean_accuracy(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 100) -> float:
    """Share of images ``x`` (N, C, H, W) that ``model`` gives the labels ``y`` (N,)."""
    accuracy: float = _robustbench().utils.clean_accuracy(model, x, y, batch_size)
    return accuracy


def benchmark(
    model: nn.Module,
    *,
    epsilon: float | None,
    dataset: str = "cifar10",
    threat_model: ThreatName = "Linf",
    n_examples: int = 10000,
    data_dir: str | Path = "data",
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Clean and robust accuracy by RobustBench's protocol: standard AutoAttack on the first test images.

    Args:
        model: from images in [0, 1] to logits, in evaluation mode.
        epsilon: radius of the L2 or Linf ball; None for corruptions.
        dataset: ``cifar10``, ``cifar100`` or ``imagenet``.
        threat_model: ``Linf``, ``L2``, ``corruptions`` or ``corruptions_3d``.
        n_examples: number of test images.
        data_dir: where torchvision keeps the dataset, or downloads it to.
        batch_size: rows of one forward pass.
        device: where to run.
    """
    clean, robust = _robustbench().eval.benchmark(
        model,
        n_examples=n_examples,
        dataset=dataset,
        threat_model=threat_model,
        data_dir=str(data_dir),
        device=torch.device(device),
        batch_size=batch_size,
        eps=epsilon,
    )
    return float(clean), float(robust)


def _check_listed(name: str, dataset: str, threat_model: str) -> None:
    """Refuses what is not in RobustBench's table of models."""
    by_threat = _choose("RobustBench dataset", dataset, _robustbench().model_zoo.model_dicts)
    models = _choose(f"RobustBench threat model for {dataset}", threat_model.removesuffix("_3d"), by_threat)
    if name not in models:
        raise unknown(f"RobustBench model for {dataset} {threat_model}", name, models)


def _choose(what: str, value: str, zoo: dict[Any, dict[Any, Any]]) -> dict[Any, Any]:
    by_name = {key.value: models for key, models in zoo.items()}
    if value not in by_name:
        raise unknown(what, value, by_name)
    return by_name[value]
