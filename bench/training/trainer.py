"""The training loop of all defenses.

A trainable defense implements ``fit(data, trainer)``. It calls `Trainer.initialize` and then `Trainer.minimize` with
its loss. The result depends only on the defense, the data, the seed and the kind of device. Training runs with a fixed
number of threads and its own random state. An interrupted training resumes and gives the same result, byte for byte on
a CPU.
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

from bench.contracts.devices import fast_float32, recording
from bench.contracts.progress import Bar
from bench.datasets.split import Split
from bench.ledger.atomic import write_atomically

TRAINING_THREADS = 1
"""Number of threads of every training, on any machine: float arithmetic depends on it."""
KEEP_EVERY = 30.0
"""Minimum time between two saved states, in seconds. An interrupted training resumes from the last one, at the end of
an epoch."""
READ_EVERY = 20
"""Steps between two readings of the loss for display. A reading waits for a GPU."""
WARM_UP = 3
"""Steps before the one that is recorded. Libraries choose algorithms and allocate memory in the first steps."""

Share = float | Tensor
"""A share in [0, 1], as a number or as a float32 tensor without dimensions."""
BatchLoss = Callable[[Tensor, Tensor, Any], Tensor]
"""Maps images (N, C, H, W), labels (N,) and the share of training done to a scalar loss. The share is a number, or a
`Share` if the loss is recordable (see `Trainer.minimize`)."""
Objective = tuple[Iterable[nn.Parameter], BatchLoss]
"""Parameters, and the loss that they minimize."""


@dataclass
class Trainer:
    """A trainer: what a defense's ``fit`` trains with.

    Attributes:
        device: where to train; ``minimize`` moves the data there.
        seed: seed of the batches' order; the global torch generator is seeded with it around ``fit``.
        progress: advanced by one over the whole training.
        kept: where the state of an unfinished training is saved, or None; each call of `minimize` has its own file
            there.
        epochs: number of passes over the data in all calls of `minimize`.
        seconds: duration of all calls of `minimize`, including the time before an interruption.
    """

    device: torch.device
    seed: int
    progress: Bar
    kept: Path | None = None
    epochs: int = 0
    seconds: float = 0.0
    _calls: int = 0
    _module: nn.Module | None = field(default=None, repr=False)

    def initialize(self, module: nn.Module) -> None:
        """Redraws a module's parameters and makes them trainable.

        A factory draws parameters before the seed is set. The redrawn parameters depend on the seed.
        """
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        self._module = module.to(self.device).requires_grad_(True).train()

    @fast_float32()
    def minimize(
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
        """Minimizes ``loss`` by Adam over shuffled batches. The learning rate falls to zero along a half cosine.

        An ``adversary`` (a discriminator) takes a step after each step of ``parameters``, on the same batch. With
        ``mixed_precision``, losses are computed in bfloat16 where torch's autocast finds that safe.

        A loss is ``recordable`` if its operations and their shapes do not depend on the data or the share done. On a
        GPU, its steps are recorded as a CUDA graph and replayed, since starting many small kernels takes longer than
        running them. The loss then gets the share as a tensor.

        The last, smaller batch of an epoch is left out, unless it is the only one. Batch normalization would compute
        its statistics from this batch alone. The progress advances by ``share``, the part of this call in a training of
        several stages.

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
        first, spent = self._resume(stepper.optimizers, order)
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
                self._keep(epoch + 1, spent + last_kept - started, stepper.optimizers, order)
        self.epochs, self.seconds = self.epochs + epochs, before + spent + time.monotonic() - started

    def _file(self) -> Path | None:
        """Returns the file that keeps this call of `minimize`; None if nothing is kept or the module is not known."""
        if self.kept is None or self._module is None:
            return None
        return self.kept.with_name(f"{self.kept.name}{self._calls}")

    def _keep(
        self, epoch: int, seconds: float, optimizers: Sequence[torch.optim.Optimizer], order: torch.Generator
    ) -> None:
        path = self._file()
        if path is None or self._module is None:
            return
        state = {
            "device": str(self.device),
            "epoch": epoch,
            "seconds": seconds,
            "module": self._module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "order": order.get_state(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    def _resume(self, optimizers: Sequence[torch.optim.Optimizer], order: torch.Generator) -> tuple[int, float]:
        """Restores the state that was saved on the same device.

        Returns the epoch to resume at and the seconds spent before. Both are 0 if there is no readable state.
        """
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
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])
        return state["epoch"], state["seconds"]


class _Stepper:
    """Takes Adam steps on one objective after the other, each on the same rows of ``images`` and ``labels``."""

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
        self.optimizers = [self._optimizer(parameters, learning_rate) for parameters, _ in objectives]

    def step(self, rows: Tensor, done: float, learning_rate: float) -> Tensor:
        """Takes a step on ``rows`` (B,) at the share ``done`` of training, and returns the sum of the losses."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        return self._descend(rows, done)

    def _optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate)

    def _descend(self, rows: Tensor, done: Share) -> Tensor:
        values = []
        for optimizer, loss in zip(self.optimizers, self._losses, strict=True):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._mixed_precision):
                value = loss(self._images[rows], self._labels[rows], done)
            torch.autograd.backward(value)
            optimizer.step()
            values.append(value.detach())
        return torch.stack(values).sum()


class _RecordedStepper(_Stepper):
    """Takes the same steps on a GPU, as a CUDA graph that is recorded after `WARM_UP` steps and then replayed."""

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
            # Otherwise the graph would add to the gradients of the last step, whose memory is freed.
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            with recording(rows.device) as self._graph:
                self._total = self._descend(self._rows, self._done)
        self._graph.replay()
        return self._total

    def _prepare(self, rows: Tensor) -> None:
        """Creates the tensors that the graph reads. It runs at the first step, because resuming sets learning rates."""
        device = rows.device
        self._rows, self._done = rows.clone(), torch.zeros((), device=device)
        self._learning_rate = torch.zeros((), device=device)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate
        # Warm-up runs on a side stream: the accumulation of gradients stays on the stream where it first ran.
        self._side = torch.Stream(device)

    def _optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate, capturable=True, fused=True)


def ramp(done: Share, length: float) -> Share:
    """Returns the share of the first ``length`` of training that is over, when ``done`` of all training is over."""
    share = done / length
    return share.clamp_max(1) if isinstance(share, Tensor) else min(1.0, share)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds torch's global state and fixes the number of threads. Restores both afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(TRAINING_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
