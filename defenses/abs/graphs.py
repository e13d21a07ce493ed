"""CUDA graphs and streams, which make inference fast on a GPU.

Inference runs thousands of small kernels. A kernel takes longer to start than to run, and fills only a part of the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from bench.contracts.devices import recording

Result = TypeVar("Result")
MOST_ROWS = 2048
"""Largest number of rows in one GPU batch, not counting restarts, to bound the memory."""

Function = Callable[..., tuple[Tensor, ...]]
"""Maps tensors with N rows each to tensors with N rows each. Rows are independent, and the function never waits for the
GPU."""


def in_streams(jobs: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
    """Returns the results of independent jobs. On a GPU each job runs in its own stream."""
    if device.type != "cuda":
        return [job() for job in jobs]
    main = torch.accelerator.current_stream(device)
    streams = [torch.Stream(device) for _ in jobs]
    results = []
    for stream in streams:
        stream.wait_stream(main)
    for stream, job in zip(streams, jobs, strict=True):
        with stream:
            results.append(job())
    for stream in streams:
        main.wait_stream(stream)
    return results


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]


@dataclass
class Replayed:
    """A function that is called directly on a CPU, and recorded and replayed on a GPU.

    Numbers of rows are rounded up to powers of two. Each has one recording.

    Attributes:
        function: the recorded function. The recording keeps what it reads besides its arguments.
    """

    function: Function
    _recordings: dict[int, _Recording] = field(default_factory=dict, repr=False)

    def __call__(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Returns the function's values for tensors with N rows each."""
        if not rows[0].is_cuda:
            return self.function(*rows)
        if len(rows[0]) <= MOST_ROWS:
            return self._replay(*rows)
        parts = [self._replay(*part) for part in zip(*(torch.split(tensor, MOST_ROWS) for tensor in rows), strict=True)]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    def forget(self) -> None:
        """Drops the recordings. To be called when something that the function reads besides its arguments changes."""
        self._recordings.clear()

    def __getstate__(self) -> dict[str, object]:
        """State without recordings, so that a copy makes its own."""
        return {"function": self.function, "_recordings": {}}

    def _replay(self, *rows: Tensor) -> tuple[Tensor, ...]:
        used = len(rows[0])
        # A power of two, so that a shrinking working set needs few recordings.
        size = 1 << (used - 1).bit_length()
        if size not in self._recordings:
            self._recordings[size] = self._record([tensor.new_zeros(size, *tensor.shape[1:]) for tensor in rows])
        known = self._recordings[size]
        for kept, given in zip(known.inputs, rows, strict=True):
            kept[:used] = given
        known.graph.replay()
        return tuple(output[:used].clone() for output in known.outputs)

    @torch.no_grad()
    def _record(self, inputs: list[Tensor]) -> _Recording:
        # The first call must not be recorded, because libraries choose algorithms and allocate memory in it.
        self.function(*inputs)
        # Graphs can share memory, because they run one at a time and their outputs are copied.
        other = next(iter(self._recordings.values()), None)
        with recording(inputs[0].device, other.graph if other else None) as graph:
            outputs = self.function(*inputs)
        return _Recording(graph, inputs, outputs)
