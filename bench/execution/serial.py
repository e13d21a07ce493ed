"""The serial runner: executes cells and studies in this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from bench.contracts.work import Work
from bench.execution.runners import OnChunk, OnDone, runner
from bench.execution.worker import Job, Worker


@runner("serial")
def run_serial(job: Job, works: Sequence[Work], processes: int, on_done: OnDone, on_chunk: OnChunk) -> None:
    """Runs cells one after another in this process."""
    threads = torch.get_num_threads()
    worker = Worker(job)
    for work in works:
        on_done(work, worker.execute(work, partial(on_chunk, work)))
    torch.set_num_threads(threads)
