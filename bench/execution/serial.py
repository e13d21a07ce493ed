"""The serial runner: executes cells and studies in this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from bench.contracts.work import Work
from bench.execution.runners import Listener, runner
from bench.execution.worker import Job, Worker


@runner("serial")
def run_serial(job: Job, works: Sequence[Work], processes: int, listener: Listener) -> None:
    """Runs cells one after another in this process."""
    threads = torch.get_num_threads()
    worker = Worker(job)
    for work in works:
        listener.started(work)
        listener.done(work, worker.execute(work, partial(listener.advanced, work)))
    torch.set_num_threads(threads)
