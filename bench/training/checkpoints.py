"""Checkpoints: the states of trained defenses as safetensors files, each with a card (JSON) that says how it was made.

The zoo is a folder of checkpoints that comes with the package. Its weights are in half precision where that costs no
accuracy. Any other state is trained on first use and cached.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.contracts.devices import exact_float32, rows_per_pass
from bench.contracts.door import drawn_logits
from bench.contracts.errors import UserError
from bench.contracts.progress import Bar, bar
from bench.contracts.protocols import Defense, HasCalibration, HasCoarseWeights, Trainable, fingerprint
from bench.contracts.source import Closure
from bench.contracts.streams import Streams
from bench.datasets.cache import cache_dir
from bench.datasets.dataset import Dataset
from bench.datasets.split import Split
from bench.ledger.atomic import write_atomically
from bench.training.trainer import TRAINING_THREADS, Trainer, reproducible
from bench.training.weights import load_into, load_tensors

ACCURACY_OF_HALF = 0.0005
"""Largest change in clean accuracy, a share in [0, 1], that half precision may cause in the zoo."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: the file of a trained state, and its card as read."""

    path: Path
    card: Mapping[str, Any]


def zoo() -> Path:
    """Returns the folder of the checkpoints that come with the package.

    Each checkpoint is ``<dataset>/<defense>.safetensors`` with a card, ``.json``. A defense that wraps another one has
    only a card.
    """
    return Path(str(files("defenses"))) / "weights"


def zoo_cards() -> list[dict[str, Any]]:
    """Returns the cards in the zoo."""
    return [_read_card(path) for path in sorted(zoo().glob("*/*.json"))]


def find_checkpoint(
    defense: Defense, dataset: Dataset, seed: int, plugin_recipe: str, *, in_zoo: bool = True
) -> Checkpoint | None:
    """Returns a trainable defense's checkpoint from the cache or, with ``in_zoo``, from the zoo; None if there is none.

    The checkpoint must have been made by the present recipe.
    """
    recipe = _recipe(defense, dataset, seed, plugin_recipe)
    cached = _cached(defense, dataset, seed, recipe)
    places = [cached, zoo() / dataset.name / f"{_stem(defense)}.safetensors"] if in_zoo else [cached]
    for path in places:
        card_path = path.with_suffix(".json")
        if card_path.exists():
            card = _read_card(card_path)
            if card.get("recipe", recipe) == recipe:
                return Checkpoint(path, card)
    return None


def ensure_trained(
    defense: Defense,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    plugin_recipe: str,
    code: Closure,
    progress: Bar | None = None,
    *,
    in_zoo: bool = True,
) -> Checkpoint:
    """Loads a trainable defense's state from the cache or the zoo. If neither has it, trains the defense first.

    Training advances ``progress`` by one, or shows a bar of its own. The card records the digests of ``code``, the
    modules that train. A change in ``code`` does not trigger a new training.

    Raises:
        UserError: when the checkpoint is corrupt or does not fit the defense.
    """
    assert isinstance(defense, Trainable)
    checkpoint = find_checkpoint(defense, dataset, seed, plugin_recipe, in_zoo=in_zoo)
    if checkpoint is None:
        checkpoint = _train(defense, dataset, seed, device, plugin_recipe, code, progress)
    _load_state(defense, checkpoint)
    return checkpoint


def _train(
    defense: Any,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    plugin_recipe: str,
    code: Closure,
    progress: Bar | None,
) -> Checkpoint:
    recipe = _recipe(defense, dataset, seed, plugin_recipe)
    path = _cached(defense, dataset, seed, recipe)
    defense.to(device)
    title = f"training {defense.card.name} on {dataset.name}"
    with nullcontext(progress) if progress else bar(title, 1) as shown, reproducible(seed):
        trainer = Trainer(device, seed, shown, path.with_suffix(".unfinished"))
        defense.fit(dataset.train, trainer)
    if isinstance(defense, nn.Module):
        defense.eval().requires_grad_(False)
    card = {
        "defense": defense.card.name,
        "dataset": dataset.name,
        "recipe": recipe,
        "command": f"assay train {defense.card.name} --dataset {dataset.name} --seed {seed}",
        "seed": seed,
        "epochs": trainer.epochs,
        "device": str(device),
        "threads": TRAINING_THREADS,
        "torch": torch.__version__,
        "code": dict(code.modules),
        "seconds": round(trainer.seconds, 1),
        "clean_accuracy": clean_accuracy(defense, dataset.test, device),
        **({"calibration": defense.calibrate(dataset.train)} if isinstance(defense, HasCalibration) else {}),
    }
    checkpoint = _write(path, defense.state_dict(), card)
    for unfinished in path.parent.glob(f"{path.stem}.unfinished*"):
        unfinished.unlink()
    return checkpoint


def write_to_zoo(
    defense: Defense, dataset: Dataset, checkpoint: Checkpoint, device: torch.device, folder: Path
) -> Checkpoint:
    """Writes a loaded checkpoint into a zoo's ``folder``, in reduced precision if clean accuracy permits.

    Weights are stored in half precision, those that the defense calls ``coarse`` in eight bits. If this changes clean
    accuracy by more than `ACCURACY_OF_HALF`, the weights keep single precision.
    """
    assert isinstance(defense, Trainable)
    state = load_tensors(checkpoint.path)
    coarse = defense.coarse if isinstance(defense, HasCoarseWeights) else ()
    half = _halved(state, coarse)
    defense.load_state_dict(_single(half))
    defense.to(device)
    accuracy = clean_accuracy(defense, dataset.test, device)
    keeps = abs(accuracy - checkpoint.card["clean_accuracy"]) <= ACCURACY_OF_HALF
    command = f"{checkpoint.card['command']} --into defenses/weights"
    precision = "; ".join(["half", *(f"{names.rstrip('.')} in eight bits" for names in coarse)])
    card = {**checkpoint.card, "command": command, "precision": precision if keeps else "single"}
    if keeps:
        card["clean_accuracy"] = accuracy
    return _write(folder / dataset.name / f"{_stem(defense)}.safetensors", half if keeps else state, card)


def write_wrapped_card(
    defense: Defense, base: Trainable, dataset: Dataset, checkpoint: Checkpoint, device: torch.device, folder: Path
) -> Checkpoint:
    """Writes the card of a defense that wraps ``base``, whose ``checkpoint`` lies in a zoo's ``folder``.

    The defense has no weights of its own. The card gives its clean accuracy with the weights of ``base``.
    """
    _load_state(base, checkpoint)
    defense.to(device)
    options = f"--dataset {dataset.name} --seed {checkpoint.card['seed']} --into defenses/weights"
    card = {
        "defense": defense.card.name,
        "dataset": dataset.name,
        "wraps": checkpoint.card["defense"],
        "command": f"assay train {defense.card.name} {options}",
        "device": str(device),
        "torch": torch.__version__,
        "clean_accuracy": clean_accuracy(defense, dataset.test, device),
        "sha256": checkpoint.card["sha256"],
    }
    path = folder / dataset.name / f"{_stem(defense)}.json"
    _write_card(path, card)
    return Checkpoint(path, card)


def write_calibration(defense: Any, dataset: Dataset, into: Path | None) -> tuple[Path, dict[str, Any]]:
    """Measures the limits of a loaded defense anew, takes them into use, and returns the file and the limits.

    They are stored in the cache, for these weights, or in the card of the defense's checkpoint in the zoo ``into``.

    Raises:
        UserError: when the zoo has no such card.
    """
    measured = defense.calibrate(dataset.train)
    defense.use(measured)
    path = _calibration(defense, dataset) if into is None else into / dataset.name / f"{_stem(defense)}.json"
    if into is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_card(path, measured)
    elif path.exists():
        _write_card(path, {**_read_card(path), "calibration": measured})
    else:
        raise UserError(f"card {path}: no such file; assay train {defense.card.name} --into {into} makes it")
    return path, measured


def use_calibration(defense: Any, dataset: Dataset) -> None:
    """Takes the limits into use that the cache has for a defense's weights, if there are some."""
    path = _calibration(defense, dataset)
    if path.exists():
        defense.use(json.loads(path.read_text()))


def _calibration(defense: Any, dataset: Dataset) -> Path:
    name = f"{_stem(defense)}-{fingerprint(defense)}.json"
    return cache_dir() / "calibrations" / dataset.name / name


def _write(path: Path, state: Mapping[str, Tensor], card: dict[str, Any]) -> Checkpoint:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    card = {**card, "sha256": _sha256(path)}
    _write_card(path.with_suffix(".json"), card)
    return Checkpoint(path, card)


def _write_card(path: Path, card: Mapping[str, Any]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(card, indent=1) + "\n"))


def _load_state(defense: Trainable, checkpoint: Checkpoint) -> None:
    path = checkpoint.path
    state = load_tensors(path)
    if _sha256(path) != checkpoint.card["sha256"]:
        advice = "install Assay again" if path.is_relative_to(zoo()) else "delete both to retrain"
        raise UserError(f"weights {path}: SHA-256 differs from {path.with_suffix('.json').name}; {advice}")
    load_into(defense, _single(state), path)
    if isinstance(defense, HasCalibration):
        defense.use(checkpoint.card.get("calibration", {}))


def _halved(state: Mapping[str, Tensor], coarse: tuple[str, ...]) -> dict[str, Tensor]:
    def halved(key: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        # Vectors such as variances may exceed the range of eight bits, and they take little space.
        return value.to(torch.float8_e4m3fn) if key.startswith(coarse) and value.dim() > 1 else value.half()

    return {key: halved(key, value) for key, value in state.items()}


def _single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _recipe(defense: Defense, dataset: Dataset, seed: int, plugin_recipe: str) -> str:
    """Returns a hash of everything that training depends on, except the device."""
    card = defense.card
    recipe = json.dumps(
        [card.name, card.version, plugin_recipe, dataset.name, dataset.train.hash, seed, TRAINING_THREADS]
    )
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _cached(defense: Defense, dataset: Dataset, seed: int, recipe: str) -> Path:
    return cache_dir() / "checkpoints" / dataset.name / f"{_stem(defense)}-seed{seed}-{recipe}.safetensors"


def _stem(defense: Any) -> str:
    return re.sub(r"[^a-z0-9_]", "-", defense.card.name)


@torch.no_grad()
def clean_accuracy(defense: Defense, split: Split, device: torch.device) -> float:
    """Returns the share of a split's images that a defense on ``device`` classifies correctly.

    A randomized defense classifies each image with one draw.
    """
    exact_float32()
    right = 0
    for rows in torch.split(torch.arange(len(split.labels)), rows_per_pass(defense.card.batch_size, device)):
        rng = Streams(0, rows.tolist(), "clean accuracy", device).rows(torch.arange(len(rows)))
        logits = drawn_logits(defense, split.images[rows].to(device), rng)
        right += int((logits.argmax(1).cpu() == split.labels[rows]).sum())
    return right / len(split.labels)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        if not {"defense", "dataset", "clean_accuracy", "sha256"} <= set(card):
            raise ValueError("keys are missing")
    except (ValueError, OSError) as error:
        raise UserError(f"card {path}: not readable ({error}); delete it and the weights beside it") from None
    return card


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
