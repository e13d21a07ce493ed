"""The serial runner: executes shards in this process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.contracts.work import Shard
from bench.execution.runners import Listener, runner
from bench.execution.worker import Job, Worker


@runner("serial")
def run_serial(job: Job, shards: Iterator[Shard | None], processes: int, listener: Listener) -> None:
    """Runs shards one after another in this process."""
    threads = torch.get_num_threads()
    worker = Worker(job)
    for shard in shards:
        assert shard is not None  # nothing runs while the next one is asked for
        listener.started(shard)
        listener.done(shard, worker.execute(shard, partial(listener.advanced, shard)))
    torch.set_num_threads(threads)
