"""The engine runs one cell: attacks propose, the judge decides, the outcome becomes records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cards import AttackCard, card_of
from bench.cells import Cell, Judging
from bench.consistency import NON_FINITE
from bench.datasets import Dataset
from bench.gpu import exact_float32, rows_per_pass
from bench.intervals import wilson_interval
from bench.judge import CleanVerdict, Judge, Judged
from bench.ledger import COLUMNS
from bench.norms import NORMS
from bench.oracle import AttackFunction, BudgetExhausted, CellTimeout, Oracle
from bench.protocols import Defense
from bench.randomness import Streams
from bench.threat import ThreatModel

CELL_THREADS = 1
"""Threads of every cell on a CPU, whatever the number of workers: float arithmetic depends on it."""
POOL_SIZE = 500
"""Clean training images that every attack may use (`Oracle.pool`): the first ones of the training set."""

OUT_OF_MEMORY = "out of memory: lower chunk in the matrix, or batch_size on the defense's card"

CleanVerdicts = dict[tuple[int, range], CleanVerdict]
"""Verdicts on the clean images of one defense, by seed and samples: all attacks on it begin with the same."""
Columns = dict[str, NDArray[Any]]
"""The ledger's columns, one array per name."""


@dataclass(frozen=True)
class CellResult:
    """What a cell found.

    Attributes:
        records: in the order of its samples.
        adversarials: images (S, C, H, W), zeros where unbroken.
        likeliest: of a randomized defense, the images (S, C, H, W) that ``likely_errors`` is about; else None.
    """

    records: pd.DataFrame
    adversarials: NDArray[np.float32]
    likeliest: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Substitute:
    """The defense that attacks transfer from, and what was proposed on it: the same for every defense under test.

    Attributes:
        defense: gives gradients.
        proposals: per attack, norm, seed and samples, the candidates for all of these samples.
    """

    defense: Defense
    proposals: dict[tuple[str, str, int, range], Tensor] = field(default_factory=dict)


def run_cell(
    cell: Cell,
    defense: Defense,
    attack: AttackFunction,
    dataset: Dataset,
    device: torch.device,
    on_chunk: Callable[[int], None] = lambda samples: None,
    clean_verdicts: CleanVerdicts | None = None,
    substitute: Substitute | None = None,
    remarks: Sequence[str] = (),
) -> CellResult:
    """Runs a cell in its fixed chunks of samples; ``on_chunk(samples)`` is called after each.

    ``clean_verdicts`` is what earlier cells of the same defense found out about the clean images; it is added to.
    ``remarks`` on the defense (`bench.contract.examined`) go into every record.

    An exception or a timeout makes the samples of its chunk ``failed``; they never count as robust.
    """
    torch.set_num_threads(CELL_THREADS)
    exact_float32()
    deadline = None if cell.timeout is None else time.monotonic() + cell.timeout
    images, labels = dataset.test.images[: cell.samples], dataset.test.labels[: cell.samples]
    clean_verdicts = {} if clean_verdicts is None else clean_verdicts
    pool = (dataset.train.images[:POOL_SIZE].to(device), dataset.train.labels[:POOL_SIZE].to(device))
    frames, adversarials, likeliest = [], [], []
    for start in range(0, cell.samples, cell.chunk):
        indices = range(start, min(start + cell.chunk, cell.samples))
        x, y = images[start : indices.stop].to(device), labels[start : indices.stop].to(device)
        columns, found, likely = _run_chunk(
            cell, defense, attack, dataset.classes, x, y, indices, pool, clean_verdicts, substitute, deadline
        )
        columns["remarks"] = np.array([_joined([*remarks, own]) for own in columns["remarks"]], dtype=object)
        frames.append(pd.DataFrame(columns))
        adversarials.append(found.cpu().numpy())
        likeliest.append(likely.cpu().numpy())
        on_chunk(len(indices))
    return CellResult(
        pd.concat(frames, ignore_index=True),
        np.concatenate(adversarials),
        np.concatenate(likeliest) if defense.card.randomized else None,
    )


def failed_result(cell: Cell, dataset: Dataset, reason: str) -> CellResult:
    """The result of a cell that could not be run: every sample ``failed`` with this reason."""
    images, labels = dataset.test.images[: cell.samples], dataset.test.labels[: cell.samples]
    columns = _blank(cell, images, labels, range(cell.samples))
    _fail(columns, reason)
    return CellResult(pd.DataFrame(columns), np.zeros(images.shape, np.float32))


def _run_chunk(
    cell: Cell,
    defense: Defense,
    attack: AttackFunction,
    classes: int,
    x: Tensor,
    y: Tensor,
    indices: range,
    pool: tuple[Tensor, Tensor],
    clean_verdicts: CleanVerdicts,
    substitute: Substitute | None,
    deadline: float | None,
) -> tuple[Columns, Tensor, Tensor]:
    columns = _blank(cell, x.cpu(), y.cpu(), indices)
    adversarials, likeliest = torch.zeros_like(x), x.clone()
    try:
        judge = _judge(cell, defense, classes, indices)
        if (cell.seed, indices) not in clean_verdicts:
            with _seeded(cell.seed):
                clean_verdicts[cell.seed, indices] = judge.clean(x, y, indices)
        clean = clean_verdicts[cell.seed, indices]
        _record_clean(columns, clean, judge)
        adversarials[clean.misclassified] = x[clean.misclassified]
        attacked = (~clean.misclassified & clean.finite).nonzero()[:, 0]
        if len(attacked):
            keys = [indices[i] for i in attacked.tolist()]
            started = time.perf_counter()

            def transferred(source: AttackFunction) -> Tensor:
                assert substitute is not None
                return _proposed(cell, substitute, source, x, y, indices, classes, deadline)[attacked]

            oracle = _oracle(cell, defense, x[attacked], y[attacked], keys, classes, pool, transferred, deadline)
            candidates = _candidates(cell, attack, oracle, x[attacked], y[attacked])
            own = _judge(cell, defense, classes, keys)
            if cell.judging is not None and cell.judging.seed is not None:
                own = replace(own, seed=cell.judging.seed)
            threat = ThreatModel(cell.norm, cell.epsilon)
            with _seeded(cell.seed):
                judged = own.judge(
                    threat, x[attacked], y[attacked], keys, candidates, oracle.seen(), as_it_is=cell.as_it_is
                )
            seconds = (time.perf_counter() - started) / len(attacked)
            _record(columns, attacked.cpu().numpy(), oracle, judged, judge, seconds)
            adversarials[attacked] = judged.images
            likelier = judged.likely_rate > clean.rate[attacked]
            likeliest[attacked[likelier]] = judged.likeliest[likelier]
    except CellTimeout:
        _fail(columns, f"timeout: more than {cell.timeout:g} s")
    except Exception as error:
        _fail(columns, f"{cause(error)}: {type(error).__name__}: {error}")
    return columns, adversarials, likeliest


def cause(error: Exception) -> str:
    """What an exception's text is introduced with; torch has no type of its own for a CPU without memory."""
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return OUT_OF_MEMORY if exhausted else "exception"


def _judge(cell: Cell, defense: Defense, classes: int, samples: Sequence[int]) -> Judge:
    """The judge of some samples of a cell."""
    terms = cell.judging or Judging()
    alpha = [terms.alpha[i] for i in samples] if isinstance(terms.alpha, tuple) else terms.alpha
    return Judge(
        defense,
        classes,
        cell.seed,
        alpha=torch.tensor(alpha, dtype=torch.float64),
        estimation_draws=terms.estimation_draws,
        threshold=terms.threshold,
    )


def _oracle(
    cell: Cell,
    defense: Defense,
    x: Tensor,
    y: Tensor,
    keys: list[int],
    classes: int,
    pool: tuple[Tensor, Tensor],
    transferred: Callable[[AttackFunction], Tensor],
    deadline: float | None,
) -> Oracle:
    return Oracle(
        defense,
        cell.access,
        ThreatModel(cell.norm, cell.epsilon),
        x.clone(),
        y.clone(),
        classes=classes,
        random=Streams(cell.seed, keys, f"attack {cell.attack} {cell.norm}", x.device),
        noise=Streams(cell.seed, keys, f"queries {cell.attack} {cell.norm}", x.device),
        budget=cell.budget,
        batch_size=rows_per_pass(cell.batch_size, x.device),
        pool=pool,
        transferred=transferred,
        deadline=deadline,
    )


def _proposed(
    cell: Cell,
    substitute: Substitute,
    attack: AttackFunction,
    x: Tensor,
    y: Tensor,
    indices: range,
    classes: int,
    deadline: float | None,
) -> Tensor:
    """What an attack proposes on the substitute for a whole chunk, whichever of its samples the defense errs on."""
    card = card_of(attack)
    assert isinstance(card, AttackCard)
    key = (card.name, cell.norm, cell.seed, indices)
    if key not in substitute.proposals:
        oracle = Oracle(
            substitute.defense,
            card.access,
            ThreatModel(cell.norm),
            x.clone(),
            y.clone(),
            classes=classes,
            random=Streams(cell.seed, indices, f"substitute {card.name} {cell.norm}", x.device),
            noise=Streams(cell.seed, indices, f"substitute queries {card.name} {cell.norm}", x.device),
            budget=card.budget,
            batch_size=rows_per_pass(substitute.defense.card.batch_size, x.device),
            deadline=deadline,
        )
        substitute.proposals[key] = attack(oracle, x.clone(), y.clone()).detach()
    return substitute.proposals[key]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global generator, which libraries and careless defenses draw from, seeded for a chunk."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _candidates(cell: Cell, attack: AttackFunction, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
    """What an attack proposes (M, n, C, H, W); nothing where its budget ended it."""
    try:
        with _seeded(cell.seed):
            return _checked(attack(oracle, x.clone(), y.clone(), **cell.parameters), x)
    except BudgetExhausted:
        return x.new_empty(0, *x.shape)


def _checked(candidates: Any, x: Tensor) -> Tensor:
    """An attack's candidates as (M, n, C, H, W) of the images' type."""
    if not isinstance(candidates, Tensor):
        raise TypeError(f"the attack returned {type(candidates).__name__}, not a tensor")
    if candidates.shape == x.shape:
        candidates = candidates[None]
    if candidates.shape[1:] != x.shape:
        raise ValueError(f"candidates have shape {tuple(candidates.shape)}, the images {tuple(x.shape)}")
    checked: Tensor = candidates.detach().to(x)
    return checked


def _record_clean(columns: Columns, clean: CleanVerdict, judge: Judge) -> None:
    """Writes down what is known of all samples before any is attacked."""
    wrong, finite = clean.misclassified.cpu().numpy(), clean.finite.cpu().numpy()
    columns["clean_prediction"][finite] = clean.prediction.cpu().numpy()[finite]
    columns["reason"][~finite] = NON_FINITE
    columns["status"][wrong] = "clean_error"
    columns["broken"][wrong] = True
    columns["adversarial_prediction"][wrong] = columns["clean_prediction"][wrong]
    columns["found_after"][wrong] = 0.0
    for norm in NORMS:
        columns[norm.lower()][wrong] = 0.0
    _record_success(columns, wrong.nonzero()[0], clean.errors[clean.misclassified], judge)
    if judge.randomized:
        columns["likely_rate"][:] = clean.rate.cpu()
        columns["likely_errors"][:] = clean.errors.cpu()
        columns["likely_draws"][:] = judge.estimation_draws
        columns["draws_deciding"][:] = clean.draws.cpu()
        columns["draws_estimating"][:] = judge.estimation_draws


def _record_success(columns: Columns, rows: NDArray[np.int64], errors: Tensor, judge: Judge) -> None:
    """Writes down how often the broken images of ``rows`` are misclassified."""
    if not judge.randomized:
        columns["success_rate"][rows] = 1.0
        return
    rate = errors.cpu().numpy() / judge.estimation_draws
    columns["success_rate"][rows] = rate
    columns["success_low"][rows], columns["success_high"][rows] = wilson_interval(rate, judge.estimation_draws)


def _record(
    columns: Columns, rows: NDArray[np.int64], oracle: Oracle, judged: Judged, judge: Judge, seconds: float
) -> None:
    """Writes down what became of the samples that were attacked."""
    violation = np.array(judged.violation, dtype=object)
    broken, refused, undecided = (part.cpu().numpy() for part in (judged.broken, oracle.refused, judged.undecided))
    columns["status"][rows] = np.select(
        [undecided, violation != "", refused, broken], ["undecided", "violation", "budget", "found"], "not_found"
    ).astype(object)
    violated = (violation != "") & ~undecided
    columns["reason"][rows] = np.where(violated, violation, "")
    columns["broken"][rows] = broken
    columns["adversarial_prediction"][rows] = judged.prediction.cpu()
    _record_success(columns, rows[broken], judged.errors[judged.broken], judge)
    for norm, values in judged.distances.items():
        columns[norm.lower()][rows] = np.where(violated, np.nan, values.cpu().numpy())
    if judge.randomized:
        # The clean image, whose rate stands there, may be the likeliest one.
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
    columns["remarks"][rows] = _joined(oracle.remarks)
    columns["forwards"][rows] = oracle.forwards.cpu()
    columns["backwards"][rows] = oracle.backwards.cpu()
    columns["inner_steps"][rows] = oracle.inner_steps.cpu()
    columns["seconds"][rows] = seconds


def _joined(remarks: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(remark for remark in remarks if remark))


def _blank(cell: Cell, x: Tensor, y: Tensor, indices: range) -> Columns:
    """Columns of samples of which nothing is known yet, in the ledger's order."""
    n = len(indices)
    known: dict[str, Any] = {
        "cell": cell.id,
        "dataset": cell.dataset,
        "sample": np.array(indices),
        "sample_hash": [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in x],
        "label": y.numpy(),
        "defense": cell.defense,
        "attack": cell.attack,
        "norm": cell.norm,
        "epsilon": cell.epsilon,
        "clean_prediction": -1,
        "adversarial_prediction": -1,
        "status": "failed",
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
        columns[name] = np.empty(n, dtype)
        columns[name][:] = known.get(name, np.nan)
    return columns


def _fail(columns: Columns, reason: str) -> None:
    """Marks the samples that were attacked as failed; clean mistakes stay what they are."""
    attacked = (columns["status"] != "clean_error") & (columns["reason"] != NON_FINITE)
    columns["status"][attacked] = "failed"
    columns["reason"][attacked] = " ".join(reason.split())[:300]
