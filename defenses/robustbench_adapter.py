"""RobustBench (Croce et al. 2021, arXiv:2010.09670) with the AutoAttack that is on the package index.

robustbench 1.1.1 imports ``autoattack``, a package that is on no index. pyautoattack 0.2.0 is the same code with
different argument names. On first use, this module registers a compatible ``autoattack`` and then imports robustbench.
No other module imports robustbench.
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

from bench.contracts.cards import CardOf, defense, defense_family
from bench.contracts.errors import UserError, unknown
from bench.datasets.cache import cache_dir
from bench.datasets.dataset import Dataset

ThreatName = Literal["Linf", "L2", "corruptions", "corruptions_3d"]


class AutoAttack:
    """AutoAttack (Croce & Hein 2020) with the signature that robustbench calls.

    Two defaults differ from the original. The seed is 0 instead of the clock. Nothing is written to ``log_path``.
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
        """Returns images of the shape of ``x_orig``: adversarial where the attack succeeded, clean elsewhere.

        With ``return_labels`` it also returns the predictions.
        """
        trace = sys.gettrace()
        try:
            images, predictions = self._attack.run_standard_evaluation(
                x_orig, y_orig, batch_size=bs, state_path=state_path
            )
        finally:
            # The check for dynamic defenses switches off any active trace function, such as that of coverage.
            sys.settrace(trace)
        return (images, predictions) if return_labels else images


@cache
def _robustbench() -> Any:
    """Returns the robustbench package, after registering `AutoAttack` under the name that robustbench imports."""
    shim = ModuleType("autoattack")
    vars(shim)["AutoAttack"] = AutoAttack
    sys.modules.setdefault("autoattack", shim)
    sys.modules.setdefault("autoattack.state", pyautoattack.state)
    with warnings.catch_warnings():
        # robustbench uses pkg_resources and deprecated names of torch and timm, but pins the versions that it needs.
        warnings.simplefilter("ignore")
        import robustbench.eval
        import robustbench.utils
    return robustbench


def load_model(
    name: str, *, dataset: str = "cifar10", threat_model: ThreatName = "Linf", model_dir: str | Path = "models"
) -> nn.Module:
    """Returns a network of the RobustBench model zoo in evaluation mode, from images in [0, 1] to logits.

    The checkpoint is read from ``<model_dir>/<dataset>/<threat model>/<name>.pt``. A missing checkpoint is downloaded
    to this path first. Checkpoints are read with torch's default ``weights_only=True``.

    Raises:
        UserError: for an unknown dataset, threat model or name.
    """
    _check_listed(name, dataset, threat_model)
    model: nn.Module = _robustbench().load_model(name, model_dir, dataset, threat_model)
    return model.eval()


@defense_family("robustbench", member="<dataset>/<threat>/<name>")
def zoo_defense(member: str, card_of: CardOf) -> Callable[..., nn.Module]:
    """A network of RobustBench's model zoo, such as ``robustbench:cifar10/Linf/Standard``.

    The factory reads ``robustbench/<dataset>/<threat>/<name>.pt`` in the dataset's data folder. Without a data folder
    it reads from the cache.

    Raises:
        UserError: for a name that RobustBench does not list. The factory raises it when it finds no usable weights.
    """
    name, parts = f"robustbench:{member}", member.split("/")
    if len(parts) != 3:
        raise UserError(f"defense {name!r} is not robustbench:<dataset>/<threat>/<name> (robustbench:cifar10/Linf/...)")
    of, threat, model = parts
    _check_listed(model, of, threat)

    @defense(
        name, datasets=[of], citation="Croce et al. 2021, RobustBench: a standardized adversarial robustness benchmark"
    )
    def factory(dataset: Dataset) -> nn.Module:
        """A network of RobustBench's model zoo."""
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
    """Clean accuracy in [0, 1]: the share of images ``x`` (N, C, H, W) that ``model`` gives their labels ``y`` (N,)."""
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
    """Clean and robust accuracy by RobustBench's protocol: standard AutoAttack on the first ``n_examples`` test images.

    Args:
        model: maps images in [0, 1] to logits, in evaluation mode.
        epsilon: radius of the L2 or Linf ball, or None for corruptions.
        dataset: ``cifar10``, ``cifar100`` or ``imagenet``.
        threat_model: ``Linf``, ``L2``, ``corruptions`` or ``corruptions_3d``.
        n_examples: number of test images.
        data_dir: folder where torchvision keeps the dataset or downloads it to.
        batch_size: images per forward pass.
        device: device to run on.
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
    """Raises a `UserError` for a model that is missing from RobustBench's table of models."""
    by_threat = _choose("RobustBench dataset", dataset, _robustbench().model_zoo.model_dicts)
    models = _choose(f"RobustBench threat model for {dataset}", threat_model.removesuffix("_3d"), by_threat)
    if name not in models:
        raise unknown(f"RobustBench model for {dataset} {threat_model}", name, models)


def _choose(what: str, value: str, zoo: dict[Any, dict[Any, Any]]) -> dict[Any, Any]:
    by_name = {key.value: models for key, models in zoo.items()}
    if value not in by_name:
        raise unknown(what, value, by_name)
    return by_name[value]
