"""What makes inference fast on a GPU, whose thousands of small kernels take longer to start than to run and fill a part
of it each: CUDA graphs and streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from bench.gpu import recording

Result = TypeVar("Result")
MOST_ROWS = 2048
"""Rows that a GPU is given at once at most (times restarts, where there are any): bounds the memory."""

Function = Callable[..., tuple[Tensor, ...]]
"""Maps tensors with N rows each to tensors with N rows each; no row depends on the others, and nothing waits for the
GPU."""


def in_streams(jobs: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
    """The results of jobs that do not depend on each other; on a GPU each has a stream of its own."""
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
    """A function that is called on a CPU, and on a GPU recorded for some numbers of rows and then replayed.

    Attributes:
        function: what is recorded, with whatever it reads besides its arguments.
    """

    function: Function
    _recordings: dict[int, _Recording] = field(default_factory=dict, repr=False)

    def __call__(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """The function's values for tensors with N rows each."""
        if not rows[0].is_cuda:
            return self.function(*rows)
        if len(rows[0]) <= MOST_ROWS:
            return self._replay(*rows)
        parts = [self._replay(*part) for part in zip(*(torch.split(tensor, MOST_ROWS) for tensor in rows), strict=True)]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    def forget(self) -> None:
        """To be called when what the function reads besides its arguments is no longer the same."""
        self._recordings.clear()

    def __getstate__(self) -> dict[str, object]:
        """A copy makes recordings of its own."""
        return {"function": self.function, "_recordings": {}}

    def _replay(self, *rows: Tensor) -> tuple[Tensor, ...]:
        used = len(rows[0])
        # The next power of two, so that a shrinking working set needs few recordings.
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
        # Libraries choose algorithms and allocate at the first call, which must not be recorded.
        self.function(*inputs)
        # Graphs are replayed one at a time and their outputs copied: they can share their memory.
        other = next(iter(self._recordings.values()), None)
        with recording(inputs[0].device, other.graph if other else None) as graph:
            outputs = self.function(*inputs)
        return _Recording(graph, inputs, outputs)
