"""The engine runs one cell: attacks propose, the judge decides, the outcome becomes records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cards import AttackCard, card_of
from bench.cells import Cell
from bench.datasets import Dataset
from bench.gpu import rows_per_pass
from bench.judge import Judged, Verdict, classify, judge
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

CleanVerdicts = dict[tuple[int, range], Verdict]
"""Verdicts on the clean images of one defense, by seed and samples: all attacks on it begin with the same."""
Columns = dict[str, NDArray[Any]]
"""The ledger's columns, one array per name."""


@dataclass(frozen=True)
class CellResult:
    """A cell's records, in the order of its samples, and its adversarial images (S, C, H, W), zeros where unbroken."""

    records: pd.DataFrame
    adversarials: NDArray[np.float32]


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
) -> CellResult:
    """Runs a cell in its fixed chunks of samples; ``on_chunk(samples)`` is called after each.

    ``clean_verdicts`` is what earlier cells of the same defense found out about the clean images; it is added to.

    An exception or a timeout makes the samples of its chunk ``failed``; they never count as robust.
    """
    torch.set_num_threads(CELL_THREADS)
    deadline = None if cell.timeout is None else time.monotonic() + cell.timeout
    images, labels = dataset.test.images[: cell.samples], dataset.test.labels[: cell.samples]
    clean_verdicts = {} if clean_verdicts is None else clean_verdicts
    pool = (dataset.train.images[:POOL_SIZE].to(device), dataset.train.labels[:POOL_SIZE].to(device))
    frames, adversarials = [], []
    for start in range(0, cell.samples, cell.chunk):
        indices = range(start, min(start + cell.chunk, cell.samples))
        x, y = images[start : indices.stop].to(device), labels[start : indices.stop].to(device)
        columns, found = _run_chunk(
            cell, defense, attack, dataset.classes, x, y, indices, pool, clean_verdicts, substitute, deadline
        )
        frames.append(pd.DataFrame(columns))
        adversarials.append(found.cpu().numpy())
        on_chunk(len(indices))
    return CellResult(pd.concat(frames, ignore_index=True), np.concatenate(adversarials))


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
) -> tuple[Columns, Tensor]:
    columns = _blank(cell, x.cpu(), y.cpu(), indices)
    adversarials = torch.zeros_like(x)
    try:
        if (cell.seed, indices) not in clean_verdicts:
            clean_verdicts[cell.seed, indices] = _clean_verdict(cell, defense, x, y, indices, classes)
        clean = clean_verdicts[cell.seed, indices]
        columns["clean_prediction"][:] = clean.prediction.cpu()
        wrong = clean.misclassified.cpu().numpy()
        columns["status"][wrong] = "clean_error"
        columns["broken"][wrong] = True
        columns["adversarial_prediction"][wrong] = columns["clean_prediction"][wrong]
        columns["success_rate"][wrong] = clean.success_rate.cpu().numpy()[wrong]
        columns["draws"][wrong] = clean.draws.cpu().numpy()[wrong]
        columns["found_after"][wrong] = 0.0
        for norm in NORMS:
            columns[norm.lower()][wrong] = 0.0
        adversarials[clean.misclassified] = x[clean.misclassified]
        attacked = (~clean.misclassified).nonzero()[:, 0]
        if len(attacked):
            keys = [indices[i] for i in attacked.tolist()]
            started = time.perf_counter()

            def transferred(source: AttackFunction) -> Tensor:
                assert substitute is not None
                return _proposed(cell, substitute, source, x, y, indices, classes, deadline)[attacked]

            oracle = _oracle(cell, defense, x[attacked], y[attacked], keys, classes, pool, transferred, deadline)
            judged = _attack_and_judge(cell, defense, attack, oracle, x[attacked], y[attacked], keys, classes)
            rows = attacked.cpu().numpy()
            _record(columns, rows, oracle, judged, (time.perf_counter() - started) / len(attacked))
            adversarials[attacked] = judged.images
    except CellTimeout:
        _fail(columns, f"timeout: more than {cell.timeout:g} s")
    except Exception as error:
        _fail(columns, f"{cause(error)}: {type(error).__name__}: {error}")
    return columns, adversarials


def cause(error: Exception) -> str:
    """What an exception's text is introduced with; torch has no type of its own for a CPU without memory."""
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return OUT_OF_MEMORY if exhausted else "exception"


def _clean_verdict(cell: Cell, defense: Defense, x: Tensor, y: Tensor, indices: range, classes: int) -> Verdict:
    noise = Streams(cell.seed, indices, "clean", x.device)
    return classify(defense, x, y, noise, torch.arange(len(x), device=x.device), classes)


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


def _attack_and_judge(
    cell: Cell,
    defense: Defense,
    attack: AttackFunction,
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    keys: list[int],
    classes: int,
) -> Judged:
    try:
        with torch.random.fork_rng():
            torch.manual_seed(cell.seed)
            candidates = _checked(attack(oracle, x.clone(), y.clone(), **cell.parameters), x)
    except BudgetExhausted:
        candidates = x.new_empty(0, *x.shape)
    noise = Streams(cell.seed, keys, f"judge {cell.attack} {cell.norm}", x.device)
    threat = ThreatModel(cell.norm, cell.epsilon)
    return judge(defense, threat, x, y, candidates, oracle.seen(), noise, oracle.ids, classes)


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


def _record(columns: Columns, rows: NDArray[np.int64], oracle: Oracle, judged: Judged, seconds: float) -> None:
    """Writes down what became of the samples that were attacked."""
    violation = np.array(judged.violation, dtype=object)
    broken, refused = judged.broken.cpu().numpy(), oracle.refused.cpu().numpy()
    columns["status"][rows] = np.select(
        [violation != "", refused, broken], ["violation", "budget", "found"], "not_found"
    ).astype(object)
    columns["reason"][rows] = violation
    columns["broken"][rows] = broken
    columns["adversarial_prediction"][rows] = judged.prediction.cpu()
    columns["success_rate"][rows] = judged.success_rate.cpu()
    columns["draws"][rows] = judged.draws.cpu()
    for norm, values in judged.distances.items():
        columns[norm.lower()][rows] = np.where(violation == "", values.cpu().numpy(), np.nan)
    columns["claimed"][rows] = oracle.found.cpu()
    columns["found_after"][rows] = oracle.found_after.cpu()
    columns["useless_gradients"][rows] = oracle.useless_gradients.cpu()
    columns["remarks"][rows] = "; ".join(dict.fromkeys(oracle.remarks))
    columns["forwards"][rows] = oracle.forwards.cpu()
    columns["backwards"][rows] = oracle.backwards.cpu()
    columns["inner_steps"][rows] = oracle.inner_steps.cpu()
    columns["seconds"][rows] = seconds


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
        "draws": 0,
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
    attacked = columns["status"] != "clean_error"
    columns["status"][attacked] = "failed"
    columns["reason"][attacked] = " ".join(reason.split())[:300]
