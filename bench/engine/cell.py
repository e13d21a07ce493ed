"""Runs one cell: attacks propose candidates, the judge decides, and the outcome becomes records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts.cards import AttackCard, card_of
from bench.contracts.chunk import Chunk
from bench.contracts.devices import exact_float32, rows_per_pass
from bench.contracts.oracle import AttackFunction, BudgetExhausted, CellTimeout
from bench.contracts.protocols import Defense
from bench.contracts.threat import ThreatModel
from bench.contracts.work import Cell, Judging
from bench.datasets.dataset import Dataset
from bench.engine.judge import CleanVerdict, Judge, Judged
from bench.engine.oracle import DefenseOracle
from bench.engine.recording import Columns, blank, fail, joined, record, record_clean
from bench.engine.terms import Resources, Terms

CELL_THREADS = 1
"""Number of threads of every cell on a CPU, for any number of workers: float arithmetic depends on it."""
POOL_SIZE = 500
"""Number of clean training images that every attack may use (`DefenseOracle.pool`): the first N of the training set."""

OUT_OF_MEMORY = "out of memory: lower chunk in the matrix, or batch_size on the defense's card"

CleanVerdicts = dict[tuple[int, tuple[int, ...]], CleanVerdict]
"""Verdicts on the clean images of one defense, by seed and samples. All attacks on the defense share them."""


@dataclass(frozen=True)
class CellResult:
    """The result of a cell.

    Attributes:
        records: in the order of the cell's samples.
        adversarials: images (S, C, H, W), zeros where unbroken.
        likeliest: the images (S, C, H, W) that ``likely_errors`` counts errors on; None for a deterministic defense.
    """

    records: pd.DataFrame
    adversarials: NDArray[np.float32]
    likeliest: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Substitute:
    """The defense that attacks transfer from, and the candidates proposed on it.

    The candidates are the same for every defense under test.

    Attributes:
        defense: gives gradients.
        proposals: the candidates for all samples of a chunk, by attack, norm, seed and samples.
    """

    defense: Defense
    proposals: dict[tuple[str, str, int, tuple[int, ...]], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A defense under attack, and what its cells share.

    Attributes:
        remarks: the remarks on the defense (`bench.conformance.examination.examined`); they go into every record.
        clean_verdicts: the verdicts on its clean images; the first cell on them adds them.
    """

    defense: Defense
    remarks: Sequence[str] = ()
    clean_verdicts: CleanVerdicts = field(default_factory=dict)


@dataclass(frozen=True)
class Adversary:
    """An attack, and what it starts with.

    Attributes:
        attack: the attack's function.
        substitute: what it transfers from; None for attacks that do not.
        starts: for the samples that it attacks, adversarial examples (N, C, H, W) of other attacks, and True (N,) where
            there is one; None if it starts from none.
    """

    attack: AttackFunction
    substitute: Substitute | None = None
    starts: tuple[Tensor, Tensor] | None = None


def run_cell(
    cell: Cell,
    target: Target,
    adversary: Adversary,
    dataset: Dataset,
    device: torch.device,
    samples: range | None = None,
) -> CellResult:
    """Runs a cell on ``samples``: consecutive ones of its own that begin with a chunk, by default all.

    An exception or a timeout makes the samples of its chunk ``failed``. Failed samples never count as robust.
    """
    torch.set_num_threads(CELL_THREADS)
    exact_float32()
    samples = range(cell.samples) if samples is None else samples
    timeout = cell.limit(len(samples))
    deadline = None if timeout is None else time.monotonic() + timeout
    images, labels = dataset.test.images, dataset.test.labels
    pool = (dataset.train.images[:POOL_SIZE].to(device), dataset.train.labels[:POOL_SIZE].to(device))
    frames, adversarials, likeliest = [], [], []
    attempt = _Attempt(cell, target, adversary, pool, samples.start, timeout, deadline)
    for start in range(samples.start, samples.stop, cell.chunk):
        indices = range(start, min(start + cell.chunk, samples.stop))
        rows = slice(start, indices.stop)
        chunk = Chunk(images[rows].to(device), labels[rows].to(device), indices, dataset.classes)
        columns, found, likely = attempt.on(chunk)
        columns["remarks"] = np.array([joined([*target.remarks, own]) for own in columns["remarks"]], dtype=object)
        frames.append(pd.DataFrame(columns))
        adversarials.append(found.cpu().numpy())
        likeliest.append(likely.cpu().numpy())
    return CellResult(
        pd.concat(frames, ignore_index=True),
        np.concatenate(adversarials),
        np.concatenate(likeliest) if target.defense.card.randomized else None,
    )


def failed_result(cell: Cell, dataset: Dataset, samples: range, reason: str) -> CellResult:
    """Returns the result of ``samples`` of a cell that could not be run: each is ``failed`` with this reason."""
    rows = slice(samples.start, samples.stop)
    images, labels = dataset.test.images[rows], dataset.test.labels[rows]
    columns = blank(cell, Chunk(images, labels, samples, dataset.classes))
    fail(columns, reason)
    return CellResult(pd.DataFrame(columns), np.zeros(images.shape, np.float32))


@dataclass(frozen=True)
class _Attempt:
    """An attack on a defense, chunk by chunk; ``first`` is the first sample, and the rest as in `run_cell`."""

    cell: Cell
    target: Target
    adversary: Adversary
    pool: tuple[Tensor, Tensor]
    first: int
    timeout: float | None
    deadline: float | None

    def on(self, chunk: Chunk) -> tuple[Columns, Tensor, Tensor]:
        """Returns the records of a chunk, its adversarial examples (n, C, H, W) and its likeliest images."""
        columns = blank(self.cell, chunk)
        adversarials, likeliest = torch.zeros_like(chunk.images), chunk.images.clone()
        try:
            clean = self._clean_verdict(chunk)
            record_clean(columns, clean, self._judge(chunk))
            adversarials[clean.misclassified] = chunk.images[clean.misclassified]
            attacked = (~clean.misclassified & clean.finite).nonzero()[:, 0]
            if len(attacked):
                judged = self._attacked(chunk, attacked, columns)
                adversarials[attacked] = judged.images
                likelier = judged.likely_rate > clean.rate[attacked]
                likeliest[attacked[likelier]] = judged.likeliest[likelier]
        except CellTimeout:
            fail(columns, f"timeout: more than {self.timeout:g} s")
        except Exception as error:
            fail(columns, f"{cause(error)}: {type(error).__name__}: {error}")
        return columns, adversarials, likeliest

    def _clean_verdict(self, chunk: Chunk) -> CleanVerdict:
        key = (self.cell.seed, tuple(chunk.samples))
        if key not in self.target.clean_verdicts:
            with _seeded(self.cell.seed):
                self.target.clean_verdicts[key] = self._judge(chunk).clean(chunk)
        return self.target.clean_verdicts[key]

    def _attacked(self, whole: Chunk, rows: Tensor, columns: Columns) -> Judged:
        """Attacks the samples ``rows`` (R,) of a chunk, judges what comes of it, and enters it into the records."""
        cell, chunk, started = self.cell, whole.select(rows), time.perf_counter()
        terms = Terms(
            cell.access,
            ThreatModel(cell.norm, cell.epsilon),
            cell.budget,
            rows_per_pass(cell.batch_size, chunk.device),
            inner_budget=cell.inner_budget,
            deadline=self.deadline,
            warm=cell.inference == "warm",
        )
        oracle = DefenseOracle(
            self.target.defense,
            chunk.copied(),
            terms,
            chunk.streams(cell.seed, f"attack {cell.attack} {cell.norm}"),
            chunk.streams(cell.seed, f"queries {cell.attack} {cell.norm}"),
            Resources(self.pool, lambda attack: self._proposed(attack, whole)[rows], self._starts(chunk)),
        )
        candidates = self._candidates(oracle, chunk)
        judge = self._judge(chunk)
        own = judge
        if cell.judging is not None and cell.judging.seed is not None:
            own = replace(judge, seed=cell.judging.seed)
        with _seeded(cell.seed):
            judged = own.judge(terms.threat, chunk, candidates, oracle.seen(), as_it_is=cell.as_it_is)
        seconds = (time.perf_counter() - started) / len(chunk)
        record(columns, rows.cpu().numpy(), oracle, judged, judge, seconds)
        return judged

    def _starts(self, chunk: Chunk) -> tuple[Tensor, Tensor] | None:
        """Returns what the attack starts from, for the samples of a chunk."""
        if self.adversary.starts is None:
            return None
        rows = torch.tensor(chunk.samples) - self.first
        images, found = (each[rows].to(chunk.device) for each in self.adversary.starts)
        return images, found

    def _judge(self, chunk: Chunk) -> Judge:
        terms = self.cell.judging or Judging()
        alpha = [terms.alpha[i] for i in chunk.samples] if isinstance(terms.alpha, tuple) else terms.alpha
        return Judge(
            self.target.defense,
            self.cell.seed,
            alpha=torch.tensor(alpha, dtype=torch.float64),
            estimation_draws=terms.estimation_draws,
            threshold=terms.threshold,
        )

    def _proposed(self, attack: AttackFunction, chunk: Chunk) -> Tensor:
        """Returns what an attack proposes on the substitute for a whole chunk, whichever of its samples the defense
        errs on."""
        cell, substitute, card = self.cell, self.adversary.substitute, card_of(attack)
        assert substitute is not None
        assert isinstance(card, AttackCard)
        key = (card.name, cell.norm, cell.seed, tuple(chunk.samples))
        if key not in substitute.proposals:
            terms = Terms(
                card.access,
                ThreatModel(cell.norm),
                card.budget,
                rows_per_pass(substitute.defense.card.batch_size, chunk.device),
                deadline=self.deadline,
            )
            oracle = DefenseOracle(
                substitute.defense,
                chunk.copied(),
                terms,
                chunk.streams(cell.seed, f"substitute {card.name} {cell.norm}"),
                chunk.streams(cell.seed, f"substitute queries {card.name} {cell.norm}"),
            )
            copy = chunk.copied()
            substitute.proposals[key] = attack(oracle, copy.images, copy.labels).detach()
        return substitute.proposals[key]

    def _candidates(self, oracle: DefenseOracle, chunk: Chunk) -> Tensor:
        """Returns what the attack proposes (M, n, C, H, W); nothing where its budget ended it."""
        copy = chunk.copied()
        try:
            with _seeded(self.cell.seed):
                proposed = self.adversary.attack(oracle, copy.images, copy.labels, **self.cell.parameters)
                return _checked(proposed, chunk.images)
        except BudgetExhausted:
            return chunk.images.new_empty(0, *chunk.images.shape)


def cause(error: Exception) -> str:
    """Returns what an exception's text is introduced with.

    Torch has no type of its own for a CPU without memory.
    """
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return OUT_OF_MEMORY if exhausted else "exception"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator for a chunk, since libraries and careless defenses draw from it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _checked(candidates: Any, x: Tensor) -> Tensor:
    """Returns an attack's candidates as (M, n, C, H, W) of the images' type."""
    if not isinstance(candidates, Tensor):
        raise TypeError(f"the attack returned {type(candidates).__name__}, not a tensor")
    if candidates.shape == x.shape:
        candidates = candidates[None]
    if candidates.shape[1:] != x.shape:
        raise ValueError(f"candidates have shape {tuple(candidates.shape)}, the images {tuple(x.shape)}")
    checked: Tensor = candidates.detach().to(x)
    return checked
