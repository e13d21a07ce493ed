"""Training on first use: one loop for all defenses, and a cache of checkpoints.

A trainable defense implements ``fit(data, trainer)`` and calls `Trainer.minimise` with its loss. Its state is cached as
safetensors beside a card (JSON) that holds the SHA-256, the seed and the clean accuracy. The state depends on the
defense, the data and the seed alone: training runs with a stated number of threads and its own random state.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.atomic import write_atomically
from bench.cache import cache_dir
from bench.datasets import Dataset, Split
from bench.errors import UserError
from bench.progress import Bar, bar
from bench.protocols import Defense, Trainable

TRAINING_THREADS = 1
"""Threads of every training, whatever the machine: float arithmetic depends on it."""

BatchLoss = Callable[[Tensor, Tensor, float], Tensor]
"""Maps images (N, C, H, W), labels (N,) and the share of training done (0 to 1) to a scalar loss."""


@dataclass
class Trainer:
    """What a defense's ``fit`` trains with.

    Attributes:
        device: where to train; ``minimise`` moves each batch there.
        seed: of the batches' order; the global torch generator is seeded with it around ``fit``.
        progress: advanced by one over the whole of `minimise`.
    """

    device: torch.device
    seed: int
    progress: Bar

    def initialise(self, module: nn.Module) -> None:
        """Draws a module's parameters anew, so that they depend on the seed (a factory draws before it is set), and
        makes them trainable."""
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        module.to(self.device).requires_grad_(True).train()

    def minimise(
        self,
        parameters: Iterable[nn.Parameter],
        loss: BatchLoss,
        data: Split,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
    ) -> None:
        """Minimises ``loss`` by Adam over shuffled batches, the learning rate falling to zero along a half cosine.

        The last, smaller batch of an epoch is left out (batch normalisation would see it as one of its own), unless it
        is the only one. Advances the progress by one.

        Raises:
            FloatingPointError: when the loss stops being finite.
        """
        optimiser = torch.optim.Adam(parameters, lr=learning_rate)
        order = torch.Generator().manual_seed(self.seed)
        images, labels = data.images.to(self.device), data.labels.to(self.device)
        batch_size = min(batch_size, len(images))
        steps = epochs * (len(images) // batch_size)
        step, value = 0, 0.0
        for epoch in range(epochs):
            permutation = torch.randperm(len(images), generator=order).to(self.device)
            for rows in torch.split(permutation, batch_size):
                if len(rows) < batch_size:
                    continue
                done = step / steps
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * done))
                optimiser.zero_grad(set_to_none=True)
                batch_loss = loss(images[rows], labels[rows], done)
                batch_loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                step, value = step + 1, batch_loss.item()
                self.progress.advance(1 / steps, note=f"epoch {epoch + 1}/{epochs}, loss {value:.4g}")
            if not math.isfinite(value):
                raise FloatingPointError(f"training diverged: the loss is {value}")


def checkpoint_path(defense: Defense, dataset: Dataset, seed: int, source: str) -> Path:
    """The file of a trained defense's state; its name holds a hash of all that training depends on but the device."""
    card = defense.card
    recipe = json.dumps([card.name, card.version, source, dataset.name, dataset.train.hash, seed, TRAINING_THREADS])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    stem = re.sub(r"[^a-z0-9_]", "-", card.name)
    return cache_dir() / "checkpoints" / dataset.name / f"{stem}-seed{seed}-{digest}.safetensors"


def ensure_trained(
    defense: Defense, dataset: Dataset, seed: int, device: torch.device, source: str, progress: Bar | None = None
) -> Path:
    """Loads a trainable defense's cached state into it, training and caching it first where there is none.

    Training advances ``progress`` by one, or shows a bar of its own.

    Raises:
        UserError: when the checkpoint is corrupt or does not fit the defense.
    """
    assert isinstance(defense, Trainable)
    path = checkpoint_path(defense, dataset, seed, source)
    card_path = path.with_suffix(".json")
    if not card_path.exists():
        started = time.monotonic()
        defense.to(device)
        title = f"training {defense.card.name} on {dataset.name}"
        with nullcontext(progress) if progress else bar(title, 1) as shown, _reproducible(seed):
            defense.fit(dataset.train, Trainer(device, seed, shown))
        if isinstance(defense, nn.Module):
            defense.eval().requires_grad_(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().contiguous() for key, value in defense.state_dict().items()}
        write_atomically(path, lambda temporary: save_file(state, temporary))
        card = {
            "defense": defense.card.name,
            "dataset": dataset.name,
            "command": f"assay train {defense.card.name} --dataset {dataset.name} --seed {seed}",
            "seed": seed,
            "device": str(device),
            "threads": TRAINING_THREADS,
            "torch": torch.__version__,
            "seconds": round(time.monotonic() - started, 1),
            "clean_accuracy": clean_accuracy(defense, dataset.test, device),
            "sha256": _sha256(path),
        }
        write_atomically(card_path, lambda temporary: temporary.write_text(json.dumps(card, indent=1)))
    _load_state(defense, path, json.loads(card_path.read_text())["sha256"])
    return path


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


@torch.no_grad()
def clean_accuracy(defense: Defense, split: Split, device: torch.device) -> float:
    """Share of a split's images that a deterministic defense on ``device`` classifies right."""
    size = defense.card.batch_size
    pairs = zip(torch.split(split.images, size), torch.split(split.labels, size), strict=True)
    return sum(int((defense.logits(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in pairs) / len(split.labels)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seeded global torch state and a fixed number of threads, both restored afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(TRAINING_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _load_state(defense: Trainable, path: Path, sha256: str) -> None:
    state = load_tensors(path)
    if _sha256(path) != sha256:
        raise UserError(
            f"weights {path}: SHA-256 differs from {path.with_suffix('.json').name}; delete both to retrain"
        )
    load_into(defense, state, path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
