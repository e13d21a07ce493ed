"""Random numbers that belong to a sample, not to a batch.

Every sample of a cell has its own counter-based generator (Philox, Salmon et al. 2011). Its key is the cell's seed, the
purpose and the sample. A sample's draws depend only on how much it drew before. Results therefore do not depend on the
chunk, the worker or the neighboring samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Places = Sequence[tuple[int, int]]
"""A call and a pass for each row: the row's position in its stream's counter. Empty: the stream's current position."""


class Streams:
    """Independent random streams, one per sample; ``ids`` say which streams the rows of a draw come from.

    Args:
        seed: the cell's seed.
        keys: one integer per stream, for example the samples' indices in their dataset. Stream ``i`` has ``keys[i]``.
        purpose: separates streams of the same seed and keys (an attack's from a judge's).
        device: device of the drawn tensors.
    """

    def __init__(self, seed: int, keys: Sequence[int], purpose: str, device: torch.device | str = "cpu") -> None:
        tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
        self._entropy = [(seed, tag, int(key)) for key in keys]
        self._generators: dict[int, np.random.Generator] = {}  # made when first drawn from
        self._device = device

    def _stack(self, rows: list[NDArray[np.float32]], shape: Sequence[int]) -> Tensor:
        array = np.stack(rows) if rows else np.empty((0, *shape), np.float32)
        return torch.from_numpy(array).to(self._device)

    def normal(self, ids: Tensor, shape: Sequence[int], places: Places = ()) -> Tensor:
        """Draws standard normal numbers, float32, of shape (len(ids), *shape).

        Row r comes from the stream of sample ids[r], at places[r] if places are given.
        """
        rows = [stream.standard_normal(shape, np.float32) for stream in self._at(ids, places)]
        return self._stack(rows, shape)

    def uniform(self, ids: Tensor, shape: Sequence[int], places: Places = ()) -> Tensor:
        """Draws uniform numbers in [0, 1), float32, of shape (len(ids), *shape), as `normal` does."""
        return self._stack([stream.random(shape, np.float32) for stream in self._at(ids, places)], shape)

    def permutation(self, ids: Tensor, n: int) -> Tensor:
        """Draws a random order of 0 ... n-1 per row, int64, of shape (len(ids), n)."""
        rows = [stream.permutation(n) for stream in self._at(ids)]
        return torch.from_numpy(np.stack(rows) if rows else np.empty((0, n), np.int64)).to(self._device)

    def rows(self, ids: Tensor) -> RowStreams:
        """Returns streams for a randomized defense. Row r of every draw comes from sample ids[r]."""
        return RowStreams(self, ids)

    def passes(self, ids: Tensor, numbers: Tensor) -> RowStreams:
        """Returns streams for one pass. Row r makes the draws of pass ``numbers[r]`` (N,) of sample ids[r].

        These draws do not depend on earlier draws or on the neighboring rows.
        """
        return _PassStreams(self, ids, numbers)

    def _at(self, ids: Tensor, places: Places = ()) -> Iterator[np.random.Generator]:
        """Yields the stream of each row, moved to the row's place just before: a stream may have several rows."""
        for row, stream in enumerate(ids.tolist()):
            if stream not in self._generators:
                bits = np.random.Philox(np.random.SeedSequence(self._entropy[stream]))
                self._generators[stream] = np.random.Generator(bits)
            generator = self._generators[stream]
            if places:
                state: Any = generator.bit_generator.state
                state["state"]["counter"][:] = (0, *places[row], 0)
                generator.bit_generator.state = {**state, "buffer_pos": 4, "has_uint32": 0}
            yield generator


class RowStreams:
    """The ``rng`` of a randomized defense's ``logits(x, rng)``: one independent random stream per row of ``x``."""

    def __init__(self, streams: Streams, ids: Tensor) -> None:
        self._streams, self._ids = streams, ids

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draws standard normal numbers, float32, of shape (rows of x, *shape)."""
        return self._streams.normal(self._ids, shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draws uniform numbers in [0, 1), float32, of shape (rows of x, *shape)."""
        return self._streams.uniform(self._ids, shape)


class _PassStreams(RowStreams):
    """The streams of one pass. Each call of each pass has its own part of the stream's counter."""

    def __init__(self, streams: Streams, ids: Tensor, numbers: Tensor) -> None:
        super().__init__(streams, ids)
        self._numbers, self._calls = numbers.tolist(), 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """As in `RowStreams`."""
        return self._streams.normal(self._ids, shape, self._next_places())

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """As in `RowStreams`."""
        return self._streams.uniform(self._ids, shape, self._next_places())

    def _next_places(self) -> Places:
        self._calls += 1
        return [(self._calls, number) for number in self._numbers]
