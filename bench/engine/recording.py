"""Recording: what the ledger records of each sample of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts.chunk import Chunk
from bench.contracts.norms import NORMS
from bench.contracts.work import Cell
from bench.engine.judge import CleanVerdict, Judge, Judged
from bench.engine.oracle import DefenseOracle
from bench.ledger.intervals import wilson_interval
from bench.ledger.schema import COLUMNS, NON_FINITE, Status, sample_hash

Columns = dict[str, NDArray[Any]]
"""The ledger's columns, one array per name."""


def record_clean(columns: Columns, clean: CleanVerdict, judge: Judge) -> None:
    """Records what is known about all samples before the attack."""
    wrong, finite = clean.misclassified.cpu().numpy(), clean.finite.cpu().numpy()
    columns["clean_prediction"][finite] = clean.prediction.cpu().numpy()[finite]
    columns["reason"][~finite] = NON_FINITE
    columns["status"][wrong] = Status.CLEAN_ERROR
    columns["broken"][wrong] = True
    columns["adversarial_prediction"][wrong] = columns["clean_prediction"][wrong]
    columns["found_after"][wrong] = 0.0
    for norm in NORMS.values():
        columns[norm.column][wrong] = 0.0
    record_success(columns, wrong.nonzero()[0], clean.errors[clean.misclassified], judge)
    if judge.randomized:
        columns["likely_rate"][:] = clean.rate.cpu()
        columns["likely_errors"][:] = clean.errors.cpu()
        columns["likely_draws"][:] = judge.estimation_draws
        columns["draws_deciding"][:] = clean.draws.cpu()
        columns["draws_estimating"][:] = judge.estimation_draws


def record_success(columns: Columns, rows: NDArray[np.int64], errors: Tensor, judge: Judge) -> None:
    """Records how often the broken images of ``rows`` are misclassified."""
    if not judge.randomized:
        columns["success_rate"][rows] = 1.0
        return
    rate = errors.cpu().numpy() / judge.estimation_draws
    columns["success_rate"][rows] = rate
    columns["success_low"][rows], columns["success_high"][rows] = wilson_interval(rate, judge.estimation_draws)


def record(
    columns: Columns, rows: NDArray[np.int64], oracle: DefenseOracle, judged: Judged, judge: Judge, seconds: float
) -> None:
    """Records the outcome for the samples that were attacked."""
    violation = np.array(judged.violation, dtype=object)
    broken, refused, undecided = (part.cpu().numpy() for part in (judged.broken, oracle.refused, judged.undecided))
    columns["status"][rows] = np.select(
        [undecided, violation != "", refused, broken],
        [Status.UNDECIDED, Status.VIOLATION, Status.BUDGET, Status.FOUND],
        Status.NOT_FOUND,
    ).astype(object)
    violated = (violation != "") & ~undecided
    columns["reason"][rows] = np.where(violated, violation, "")
    columns["broken"][rows] = broken
    columns["adversarial_prediction"][rows] = judged.prediction.cpu()
    record_success(columns, rows[broken], judged.errors[judged.broken], judge)
    for norm, values in judged.distances.items():
        columns[NORMS[norm].column][rows] = np.where(violated, np.nan, values.cpu().numpy())
    if judge.randomized:
        # The column already holds the clean image's rate, and the clean image may be the likeliest one.
        likely = judged.likely_rate.cpu().numpy() > columns["likely_rate"][rows]
        columns["likely_rate"][rows[likely]] = judged.likely_rate.cpu().numpy()[likely]
        columns["likely_errors"][rows[likely]] = judged.likely_errors.cpu().numpy()[likely]
        columns["draws_choosing"][rows] = judged.choosing.cpu()
        columns["draws_deciding"][rows] = judged.deciding.cpu()
        columns["draws_estimating"][rows] = judged.estimating.cpu()
    columns["non_finite"][rows] = judged.non_finite.cpu()
    columns["claimed"][rows] = oracle.found.cpu()
    columns["found_after"][rows] = oracle.found_after.cpu()
    columns["useless_gradients"][rows] = oracle.useless_gradients.cpu()
    columns["remarks"][rows] = joined(oracle.remarks)
    columns["forwards"][rows] = oracle.forwards.cpu()
    columns["backwards"][rows] = oracle.backwards.cpu()
    columns["inner_steps"][rows] = oracle.inner_steps.cpu()
    columns["seconds"][rows] = seconds


def joined(remarks: Sequence[str]) -> str:
    """Joins remarks into one text, without repetitions."""
    return "; ".join(dict.fromkeys(remark for remark in remarks if remark))


def blank(cell: Cell, chunk: Chunk) -> Columns:
    """Returns the columns of a chunk's samples before anything is known about them, in the ledger's order."""
    known: dict[str, Any] = {
        "cell": cell.id,
        "dataset": cell.dataset,
        "sample": np.array(chunk.samples),
        "sample_hash": [sample_hash(image.numpy()) for image in chunk.images.cpu()],
        "label": chunk.labels.cpu().numpy(),
        "defense": cell.defense,
        "attack": cell.attack,
        "norm": cell.norm,
        "epsilon": cell.epsilon,
        "clean_prediction": -1,
        "adversarial_prediction": -1,
        "status": Status.FAILED,
        "broken": False,
        **dict.fromkeys(("likely_errors", "likely_draws", "non_finite"), 0),
        **dict.fromkeys(("draws_choosing", "draws_deciding", "draws_estimating"), 0),
        "claimed": False,
        "reason": "",
        "remarks": "",
        **dict.fromkeys(("forwards", "backwards", "inner_steps", "seconds"), 0.0),
    }
    columns = {}
    for name, dtype in COLUMNS.items():
        columns[name] = np.empty(len(chunk), dtype)
        columns[name][:] = known.get(name, np.nan)
    return columns


def fail(columns: Columns, reason: str) -> None:
    """Marks the samples that were attacked as failed. Clean errors stay unchanged."""
    attacked = (columns["status"] != Status.CLEAN_ERROR) & (columns["reason"] != NON_FINITE)
    columns["status"][attacked] = Status.FAILED
    columns["reason"][attacked] = " ".join(reason.split())[:300]
