"""Loading: builds defenses, trains them if necessary, and loads their states."""

from __future__ import annotations

import inspect
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch

from bench.contracts.cards import DefenseCard
from bench.contracts.devices import exact_float32
from bench.contracts.errors import DefenseFault, UserError
from bench.contracts.guard import unguarded
from bench.contracts.progress import Bar, bar
from bench.contracts.protocols import Defense, HasArithmetic, HasCalibration, Trainable, as_defense, fingerprint
from bench.contracts.signatures import check_signatures
from bench.contracts.source import TRAINING, Closure, Sources, changed_modules
from bench.datasets.dataset import Dataset, load_dataset
from bench.plugins.isolation import kept_defaults
from bench.plugins.registry import Plugin, Registry, Variants
from bench.training.checkpoints import ensure_trained, find_checkpoint, use_calibration


@dataclass(frozen=True)
class LoadedDefense:
    """A loaded defense: the plugin that made it, the defense itself, and the defense that it wraps, if any."""

    plugin: Plugin
    defense: Defense
    base: LoadedDefense | None = None

    @property
    def card(self) -> DefenseCard:
        """The defense's card."""
        return self.plugin.defense_card

    @cached_property
    def code(self) -> Closure:
        """The modules that compute the defense's answers, including those of the defense that it wraps."""
        return self.plugin.code if self.base is None else self.plugin.code | self.base.code

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """The defense's parameters, followed by those of the defense that it wraps."""
        return [self.card.parameters, *(self.base.parameters if self.base is not None else [])]

    @property
    def learner(self) -> LoadedDefense:
        """The defense that is trained: the innermost one if it wraps others, else itself."""
        return self if self.base is None else self.base.learner

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the defense's tensors.

        Raises:
            DefenseFault: when the tensors cannot be read.
        """
        try:
            return fingerprint(self.defense)
        except Exception as error:
            raise _fault(self.plugin, "has a state that cannot be read", error) from error

    @property
    def arithmetic(self) -> str:
        """This machine's way to compute the defense or its base (`HasArithmetic`); empty if there is only one."""
        if isinstance(self.defense, HasArithmetic):
            return self.defense.arithmetic
        return "" if self.base is None else self.base.arithmetic

    @property
    def calibration(self) -> str:
        """The limits of the defense and of its base (`HasCalibration`), as JSON; empty if there are none."""
        own = self.defense.calibration if isinstance(self.defense, HasCalibration) else {}
        return json.dumps(own, sort_keys=True) if own else "" if self.base is None else self.base.calibration

    def readable(self) -> LoadedDefense:
        """Returns itself.

        Raises:
            DefenseFault: when the defense's tensors cannot be read.
        """
        assert self.fingerprint
        return self

    @property
    def digest(self) -> str:
        """A text with everything that the defense's answers depend on, except libraries."""
        texts = [self.fingerprint, self.code.digest, json.dumps(self.parameters, sort_keys=True)]
        texts += [self.arithmetic, self.calibration]
        return " ".join(texts).rstrip()

    def state(self, dataset: Dataset) -> dict[str, str]:
        """Returns what identifies measurements on the defense: hashes of data, weights and code, and parameters.

        If there are several ways to compute the defense, it names this machine's, so that no run mixes them.
        """
        return {
            **({"arithmetic": self.arithmetic} if self.arithmetic else {}),
            **({"calibration": self.calibration} if self.calibration else {}),
            "train": dataset.train.hash,
            "test": dataset.test.hash,
            "classes": str(dataset.classes),
            "weights": self.fingerprint,
            "defense": self.code.digest,
            "defense parameters": json.dumps(self.parameters, sort_keys=True),
        }


def make_defense(name: str, dataset: Dataset, registry: Registry) -> LoadedDefense:
    """Builds a defense without training it.

    Raises:
        UserError: when the defense is unknown, does not classify this dataset, or wraps another one and returns it or
            has a ``fit`` of its own.
        DefenseFault: when the defense's factory fails, returns what torch cannot handle, or returns a defense with a
            method of another signature than its protocol's.
    """
    plugin = registry.get("defenses", name)
    card = plugin.defense_card
    if dataset.name not in card.datasets:
        raise UserError(f"defense {name!r} is not for dataset {dataset.name!r}. It is for: {', '.join(card.datasets)}")
    base = None if card.wraps is None else make_defense(card.wraps, dataset, registry)
    available = {"dataset": dataset, "base": base and base.defense}
    wanted = {key: available[key] for key in inspect.signature(plugin.function).parameters if key in available}
    try:
        with kept_defaults():
            made = plugin.function(**wanted)
            defense = as_defense(card, made)
            check_signatures(defense)
    except (Exception, SystemExit) as error:
        raise _fault(plugin, "cannot be built", error) from error
    if base is not None and (made is base.defense or isinstance(made, Trainable)):
        what = "returns its base" if made is base.defense else "has a fit of its own"
        raise UserError(f"defense {name!r} ({plugin.source}) wraps {card.wraps!r} and {what}; only the base is trained")
    return LoadedDefense(plugin, defense, base)


def _fault(plugin: Plugin, what: str, error: BaseException) -> DefenseFault:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return DefenseFault(f"defense {plugin.card.name!r} ({plugin.source}) {what}: {reason}")


def load_trained(
    name: str, dataset: Dataset, registry: Registry, seed: int, device: torch.device, progress: Bar | None = None
) -> LoadedDefense:
    """Builds a defense, loads or trains its state, and moves the defense to ``device``.

    The state comes from the cache or the zoo. If neither has it, the defense is trained. Training advances ``progress``
    by one, or shows a bar of its own.

    Raises:
        UserError: as `make_defense`, and when the checkpoint is corrupt.
        DefenseFault: as `make_defense`, and when the training or the move to the device fails.
    """
    loaded = make_defense(name, dataset, registry)
    learner = loaded.learner
    try:
        if isinstance(learner.defense, Trainable):
            recipe, code = learner.plugin.recipe, training_code(learner)
            with kept_defaults():
                ensure_trained(learner.defense, dataset, seed, device, recipe, code, progress)
        loaded.defense.to(device)
        if isinstance(learner.defense, HasCalibration):
            use_calibration(learner.defense, dataset)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _fault(loaded.plugin, f"cannot be trained or moved to {device}", error) from error
    exact_float32()
    return loaded


def needs_training(loaded: LoadedDefense, dataset: Dataset, seed: int) -> bool:
    """Returns whether a defense must be trained before it can be used."""
    learner = loaded.learner
    if not isinstance(learner.defense, Trainable):
        return False
    return find_checkpoint(learner.defense, dataset, seed, learner.plugin.recipe) is None


def training_code(loaded: LoadedDefense) -> Closure:
    """Returns the modules that train a defense."""
    return loaded.plugin.code | Sources().closure(TRAINING)


def changed_since_training(loaded: LoadedDefense, dataset: Dataset, seed: int) -> list[str]:
    """Returns the names of the modules that changed since a defense, or the one that it wraps, was trained.

    The list is empty if the checkpoint is too old to record modules.
    """
    learner = loaded.learner
    if not isinstance(learner.defense, Trainable):
        return []
    checkpoint = find_checkpoint(learner.defense, dataset, seed, learner.plugin.recipe)
    trained_by = {} if checkpoint is None else checkpoint.card.get("code", {})
    return changed_modules(trained_by, training_code(learner).modules) if trained_by else []


def train_side_by_side(
    names: Sequence[str], dataset: Dataset, registry: Registry, seed: int, workers: int
) -> dict[str, str]:
    """Trains defenses on the CPU in up to ``workers`` processes, and caches their states as `load_trained` does.

    Returns the reason of each failure, by the defense's name.

    Raises:
        UserError: as `load_trained`, and when a process dies.
    """
    faults: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    try:
        started = context.Manager()
    except EOFError:
        raise unguarded() from None
    with (
        started as manager,
        bar(f"training {len(names)} defenses on {dataset.name}", len(names)) as progress,
        ProcessPoolExecutor(min(workers, len(names)), context) as pool,
    ):
        news = manager.Queue()
        running = {
            pool.submit(
                _train, name, dataset.name, dataset.data_dir, registry.plugins, registry.variants, seed, news
            ): name
            for name in names
        }
        while running:
            done, _ = wait(running, timeout=0.5)
            with suppress(Empty):
                while True:
                    progress.advance(*news.get_nowait())
            for future in done:
                name = running.pop(future)
                try:
                    future.result()
                except DefenseFault as error:
                    faults[name] = str(error)
                except BrokenProcessPool:
                    raise UserError(f"training {name}: its process died; try --workers 1") from None
    return faults


class _Reported:
    """A progress bar for training in another process: sends its progress in steps of at least one percent."""

    def __init__(self, name: str, news: Queue[tuple[float, str]]) -> None:
        self._name, self._news, self._unsent = name, news, 0.0

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._unsent += amount
        if self._unsent >= 0.01:
            self._news.put((self._unsent, f"{self._name}, {note}"))
            self._unsent = 0.0


def _train(
    name: str,
    dataset: str,
    data_dir: Path | None,
    plugins: Sequence[str],
    variants: Variants,
    seed: int,
    news: Queue[tuple[float, str]],
) -> None:
    progress = _Reported(name, news)
    load_trained(
        name,
        load_dataset(dataset, data_dir),
        Registry(plugins, variants, reuse=True),
        seed,
        torch.device("cpu"),
        progress,
    )
