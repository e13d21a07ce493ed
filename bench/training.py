"""The training loop of all defenses.

A trainable defense implements ``fit(data, trainer)`` and calls `Trainer.initialise` and then `Trainer.minimise` with
its loss. What is learned depends on the defense, the data, the seed and the kind of device alone: training runs with a
stated number of threads and its own random state, and one that was interrupted goes on as if it had not been (byte for
byte on a CPU).
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.atomic import write_atomically
from bench.datasets import Split
from bench.gpu import fast_float32, recording
from bench.progress import Bar

TRAINING_THREADS = 1
"""Threads of every training, whatever the machine: float arithmetic depends on it."""
KEEP_EVERY = 30.0
"""Seconds after which the end of an epoch is kept, for an interrupted training to go on from."""
READ_EVERY = 20
"""Steps after which the loss is read and shown: reading it waits for a GPU."""
WARM_UP = 3
"""Steps before one is recorded: libraries choose algorithms and allocate in the first ones."""

Share = float | Tensor
"""A share between 0 and 1, as a number or as a float32 tensor without dimensions."""
BatchLoss = Callable[[Tensor, Tensor, Any], Tensor]
"""Maps images (N, C, H, W), labels (N,) and the share of training done (a number, or a `Share` if the loss is
recordable, see `Trainer.minimise`) to a scalar loss."""
Objective = tuple[Iterable[nn.Parameter], BatchLoss]
"""Parameters, and the loss that they descend."""


@dataclass
class Trainer:
    """What a defense's ``fit`` trains with.

    Attributes:
        device: where to train; ``minimise`` moves each batch there.
        seed: of the batches' order; the global torch generator is seeded with it around ``fit``.
        progress: advanced by one over the whole training.
        kept: where an unfinished training is kept, or None; each call of `minimise` has a file of its own there.
        epochs: passes over the data that the calls of `minimise` took.
        seconds: that they took, those before an interruption included.
    """

    device: torch.device
    seed: int
    progress: Bar
    kept: Path | None = None
    epochs: int = 0
    seconds: float = 0.0
    _calls: int = 0
    _module: nn.Module | None = field(default=None, repr=False)

    def initialise(self, module: nn.Module) -> None:
        """Draws a module's parameters anew, so that they depend on the seed (a factory draws before it is set), and
        makes them trainable."""
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        self._module = module.to(self.device).requires_grad_(True).train()

    @fast_float32()
    def minimise(
        self,
        parameters: Iterable[nn.Parameter],
        loss: BatchLoss,
        data: Split,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        adversary: Objective | None = None,
        mixed_precision: bool = False,
        recordable: bool = False,
        share: float = 1.0,
    ) -> None:
        """Minimises ``loss`` by Adam over shuffled batches, the learning rate falling to zero along a half cosine.

        An ``adversary`` (a discriminator) takes a step after each step of ``parameters``, on the same batch. With
        ``mixed_precision`` losses are computed in bfloat16 where torch's autocast finds that safe.

        A loss is ``recordable`` if what is computed, and in which shapes, does not depend on the data or the share
        done. On a GPU its steps are recorded as a CUDA graph and replayed, since starting many small kernels takes
        longer than running them; it gets the share as a tensor there.

        The last, smaller batch of an epoch is left out (batch normalisation would see it as one of its own), unless it
        is the only one. Advances the progress by ``share``, of a training that has one for each of its stages.

        Raises:
            FloatingPointError: when the loss stops being finite.
        """
        images, labels = data.images.to(self.device), data.labels.to(self.device)
        batch_size = min(batch_size, len(images))
        objectives = [(parameters, loss), *([adversary] if adversary else [])]
        kind = _RecordedStepper if recordable and self.device.type == "cuda" else _Stepper
        stepper = kind(images, labels, objectives, learning_rate, mixed_precision)
        order = torch.Generator().manual_seed(self.seed)
        steps = epochs * (len(images) // batch_size)
        self._calls += 1
        before, started = self.seconds, time.monotonic()
        first, spent = self._resume(stepper.optimisers, order)
        last_kept, step, value = started, first * (len(images) // batch_size), 0.0
        if first:
            self.progress.advance(share * first / epochs)
        for epoch in range(first, epochs):
            permutation = torch.randperm(len(images), generator=order).to(self.device)
            for rows in torch.split(permutation, batch_size):
                if len(rows) < batch_size:
                    continue
                done = step / steps
                total = stepper.step(rows, done, learning_rate * 0.5 * (1 + math.cos(math.pi * done)))
                if step % READ_EVERY == 0:
                    value = float(total)
                step += 1
                self.progress.advance(share / steps, note=f"epoch {epoch + 1}/{epochs}, loss {value:.4g}")
            value = float(total)
            if not math.isfinite(value):
                raise FloatingPointError(f"training diverged: the loss is {value}")
            if time.monotonic() - last_kept > KEEP_EVERY:
                last_kept = time.monotonic()
                self._keep(epoch + 1, spent + last_kept - started, stepper.optimisers, order)
        self.epochs, self.seconds = self.epochs + epochs, before + spent + time.monotonic() - started

    def _file(self) -> Path | None:
        """Where this call of `minimise` is kept; nowhere if the module to go on with is not known."""
        if self.kept is None or self._module is None:
            return None
        return self.kept.with_name(f"{self.kept.name}{self._calls}")

    def _keep(
        self, epoch: int, seconds: float, optimisers: Sequence[torch.optim.Optimizer], order: torch.Generator
    ) -> None:
        path = self._file()
        if path is None or self._module is None:
            return
        state = {
            "device": str(self.device),
            "epoch": epoch,
            "seconds": seconds,
            "module": self._module.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "order": order.get_state(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    def _resume(self, optimisers: Sequence[torch.optim.Optimizer], order: torch.Generator) -> tuple[int, float]:
        """Takes up what was kept on the same kind of device: the epoch to go on with, and the seconds spent before; 0
        where nothing is kept that can be read."""
        path = self._file()
        if path is None or self._module is None or not path.exists():
            return 0, 0.0
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError):
            return 0, 0.0
        if state["device"] != str(self.device):
            return 0, 0.0
        self._module.load_state_dict(state["module"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])
        return state["epoch"], state["seconds"]


class _Stepper:
    """Steps of Adam down one objective after the other, each on the same rows of ``images`` and ``labels``."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        objectives: Sequence[Objective],
        learning_rate: float,
        mixed_precision: bool,
    ) -> None:
        self._images, self._labels = images, labels
        self._losses = [loss for _, loss in objectives]
        self._mixed_precision = mixed_precision
        self.optimisers = [self._optimiser(parameters, learning_rate) for parameters, _ in objectives]

    def step(self, rows: Tensor, done: float, learning_rate: float) -> Tensor:
        """A step on ``rows`` (B,) when the share ``done`` of training is over; the sum of the losses."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
        return self._descend(rows, done)

    def _optimiser(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate)

    def _descend(self, rows: Tensor, done: Share) -> Tensor:
        values = []
        for optimiser, loss in zip(self.optimisers, self._losses, strict=True):
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._mixed_precision):
                value = loss(self._images[rows], self._labels[rows], done)
            torch.autograd.backward(value)
            optimiser.step()
            values.append(value.detach())
        return torch.stack(values).sum()


class _RecordedStepper(_Stepper):
    """The same on a GPU, recorded as a CUDA graph after a few steps and replayed from then on."""

    _graph: torch.cuda.CUDAGraph | None = None
    _taken = 0

    def step(self, rows: Tensor, done: float, learning_rate: float) -> Tensor:
        """See `_Stepper.step`."""
        if not self._taken:
            self._prepare(rows)
        self._taken += 1
        self._rows.copy_(rows)
        self._done.fill_(done)
        self._learning_rate.fill_(learning_rate)
        if self._taken <= WARM_UP:
            main = torch.accelerator.current_stream(rows.device)
            self._side.wait_stream(main)
            with self._side:
                total = self._descend(self._rows, self._done)
            main.wait_stream(self._side)
            return total
        if self._graph is None:
            # Or it would be recorded to add to gradients of the last step, whose memory is given back.
            for optimiser in self.optimisers:
                optimiser.zero_grad(set_to_none=True)
            with recording(rows.device) as self._graph:
                self._total = self._descend(self._rows, self._done)
        self._graph.replay()
        return self._total

    def _prepare(self, rows: Tensor) -> None:
        """Makes what the graph reads; not before the first step, since resuming sets learning rates."""
        device = rows.device
        self._rows, self._done = rows.clone(), torch.zeros((), device=device)
        self._learning_rate = torch.zeros((), device=device)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self._learning_rate
        # The first steps are not taken on the main stream: a gradient's accumulation stays where it first happened.
        self._side = torch.Stream(device)

    def _optimiser(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate, capturable=True, fused=True)


def ramp(done: Share, length: float) -> Share:
    """The share of the first ``length`` of training that is over, when ``done`` of all training is."""
    share = done / length
    return share.clamp_max(1) if isinstance(share, Tensor) else min(1.0, share)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeded global torch state and a fixed number of threads, both restored afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(TRAINING_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
