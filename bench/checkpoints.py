"""Checkpoints: the states of trained defenses as safetensors, each beside a card (JSON) that says how it was made.

The zoo is a folder of them that comes with the package, in half precision where that costs no accuracy; whatever else
is needed is trained on first use and cached.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.atomic import write_atomically
from bench.cache import cache_dir
from bench.datasets import Dataset, Split
from bench.door import drawn_logits
from bench.errors import UserError
from bench.gpu import exact_float32, rows_per_pass
from bench.progress import Bar, bar
from bench.protocols import Defense, HasCoarseWeights, Trainable
from bench.randomness import Streams
from bench.source import Closure
from bench.training import TRAINING_THREADS, Trainer, reproducible

ACCURACY_OF_HALF = 0.0005
"""How much clean accuracy half precision may cost in the zoo."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained state: its file, and its card as read."""

    path: Path
    card: Mapping[str, Any]


def zoo() -> Path:
    """The folder of the checkpoints that come with the package: ``<dataset>/<defense>.safetensors`` and ``.json``; a
    defense around another one has only the latter."""
    return Path(str(files("defenses"))) / "weights"


def zoo_cards() -> list[dict[str, Any]]:
    """The cards of the zoo."""
    return [_read_card(path) for path in sorted(zoo().glob("*/*.json"))]


def find_checkpoint(
    defense: Defense, dataset: Dataset, seed: int, source: str, *, in_zoo: bool = True
) -> Checkpoint | None:
    """The state of a trainable defense that was cached here or, made by the present recipe, comes in the zoo."""
    recipe = _recipe(defense, dataset, seed, source)
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
    source: str,
    code: Closure,
    progress: Bar | None = None,
    *,
    in_zoo: bool = True,
) -> Checkpoint:
    """Loads a trainable defense's state into it, from the cache or the zoo; where there is none, trains it first.

    Training advances ``progress`` by one, or shows a bar of its own. The card records the digests of ``code``, the
    modules that train; another code is no reason to train anew.

    Raises:
        UserError: when the checkpoint is corrupt or does not fit the defense.
    """
    assert isinstance(defense, Trainable)
    checkpoint = find_checkpoint(defense, dataset, seed, source, in_zoo=in_zoo)
    if checkpoint is None:
        checkpoint = _train(defense, dataset, seed, device, source, code, progress)
    _load_state(defense, checkpoint)
    return checkpoint


def _train(
    defense: Any,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    source: str,
    code: Closure,
    progress: Bar | None,
) -> Checkpoint:
    recipe = _recipe(defense, dataset, seed, source)
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
    }
    checkpoint = _write(path, defense.state_dict(), card)
    for unfinished in path.parent.glob(f"{path.stem}.unfinished*"):
        unfinished.unlink()
    return checkpoint


def write_to_zoo(
    defense: Defense, dataset: Dataset, checkpoint: Checkpoint, device: torch.device, folder: Path
) -> Checkpoint:
    """Writes a loaded checkpoint into a zoo's ``folder``, in half precision, and what it calls `coarse` in eight
    bits, unless that moves clean accuracy."""
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
    """Writes the card of a defense around ``base``, whose ``checkpoint`` lies in a zoo's ``folder``: it has no weights
    of its own, but a clean accuracy with these."""
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


def _halved(state: Mapping[str, Tensor], coarse: tuple[str, ...]) -> dict[str, Tensor]:
    def halved(key: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        # Vectors, such as variances, may be too large for eight bits, and are small to store.
        return value.to(torch.float8_e4m3fn) if key.startswith(coarse) and value.dim() > 1 else value.half()

    return {key: halved(key, value) for key, value in state.items()}


def _single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _recipe(defense: Defense, dataset: Dataset, seed: int, source: str) -> str:
    """A hash of all that training depends on but the device."""
    card = defense.card
    recipe = json.dumps([card.name, card.version, source, dataset.name, dataset.train.hash, seed, TRAINING_THREADS])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _cached(defense: Defense, dataset: Dataset, seed: int, recipe: str) -> Path:
    return cache_dir() / "checkpoints" / dataset.name / f"{_stem(defense)}-seed{seed}-{recipe}.safetensors"


def _stem(defense: Any) -> str:
    return re.sub(r"[^a-z0-9_]", "-", defense.card.name)


@torch.no_grad()
def clean_accuracy(defense: Defense, split: Split, device: torch.device) -> float:
    """Share of a split's images that a defense on ``device`` classifies right, at one draw if it is randomised."""
    exact_float32()
    right = 0
    for rows in torch.split(torch.arange(len(split.labels)), rows_per_pass(defense.card.batch_size, device)):
        rng = Streams(0, rows.tolist(), "clean accuracy", device).rows(torch.arange(len(rows)))
        logits = drawn_logits(defense, split.images[rows].to(device), rng)
        right += int((logits.argmax(1).cpu() == split.labels[rows]).sum())
    return right / len(split.labels)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

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
    """Puts tensors into a module.

    Raises:
        UserError: when names or shapes differ from the module's.
    """
    check_shapes({key: tuple(value.shape) for key, value in module.state_dict().items()}, state, path)
    module.load_state_dict(state)


def check_shapes(expected: dict[str, tuple[int, ...]], state: dict[str, Tensor], path: Path) -> None:
    """Makes sure that tensors have the names and shapes expected.

    Raises:
        UserError: that names the first one which differs.
    """
    for key in sorted(expected.keys() | state.keys()):
        wanted, found = expected.get(key), tuple(state[key].shape) if key in state else None
        if wanted != found:
            have = "missing" if found is None else f"of shape {found}"
            want = "not expected" if wanted is None else f"expected {wanted}"
            raise UserError(f"weights {path}: {key} is {have}, {want}")


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
