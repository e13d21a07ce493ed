"""Tests the verdicts on randomized defenses again, on fresh draws."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, fisher_exact
from torch import Tensor

from bench.conformance.examination import OTHER_DRAWS
from bench.contracts.chunk import Chunk
from bench.contracts.norms import norm_named, within
from bench.engine.ballot import Ballot
from bench.engine.judge import CLEAN_SHARE, VERDICT, Judge
from bench.engine.verdicts import each_draw
from bench.ledger.intervals import wilson_interval
from bench.ledger.provenance import computed_alike
from bench.ledger.schema import Status
from bench.training.loading import LoadedDefense
from bench.verification.cells import StoredCell

FRESH_DRAWS = 400
"""Number of fresh draws on each adversarial example of a randomized defense. No verdict has used these draws before."""
REFUTED = 1e-6
"""Significance level at which fresh draws refute a record of a randomized defense."""
_DRAWS_AT_ONCE = 50
_TRIALS = (*range(1, 41), 60, 100, 200, 1000)
"""Possible positions of the accepted candidate in its sample's sequence of tests, from 1. The position determines
the number of draws."""


class DrawnVerdicts:
    """Judges the images of one cell on a randomized defense again."""

    def __init__(self, cell: StoredCell, loaded: LoadedDefense, clean: Chunk, seed: int) -> None:
        self._cell, self._defense, self._clean, self._seed = cell, loaded.defense, clean, seed
        self._x = clean.images
        self._terms: dict[str, Any] = cell.facts.get("judging") or {}
        self._same_machine = computed_alike(cell.facts, str(clean.device), loaded.arithmetic)

    def check(self, images: Tensor, likeliest: Tensor | None, memory: dict[Any, Any]) -> None:
        """Records the faults of the clean images, the adversarial examples (S, C, H, W) and the likeliest images."""
        moved = self._cell.moved()
        self._cell.found.judged += len(moved)
        foreign = self._cell.records["remarks"].str.contains(OTHER_DRAWS, regex=False).any()
        replayed = bool(self._terms) and self._same_machine and not foreign
        errors, votes = self._fresh(images[moved], moved, np.ones(len(moved), bool), stop=replayed)
        for row, count, own in zip(moved.tolist(), errors.tolist(), votes, strict=True):
            self._check_verdict(row, count, int(own.sum()))
            if not replayed:
                self._check_prediction("adversarial_prediction", row, own)
                self._check_rate(row, count, int(own.sum()))
        self._check_clean(memory, replayed)
        if replayed:
            self._replay(images, likeliest, memory)

    def _check_verdict(self, row: int, errors: int, draws: int) -> None:
        if binom.cdf(errors, draws, 0.5) < REFUTED:
            self._cell.fault("broken", row, f"{errors} of {draws} fresh draws misclassify its image")

    def _check_prediction(self, name: str, row: int, votes: NDArray[np.int64]) -> None:
        # The stored class was the most frequent in few draws. Another class may be the most frequent in many draws.
        if votes[int(self._cell.records[name].iloc[row])] == 0:
            self._cell.fault(
                name, row, f"none of {votes.sum()} fresh draws says so, {votes.max()} say {votes.argmax()}"
            )

    def _check_rate(self, row: int, errors: int, draws: int) -> None:
        record = self._cell.records.iloc[row]
        taken = int(self._terms.get("estimation_draws", record["draws_deciding"]))
        successes = round(record["success_rate"] * taken)
        table = np.array([[successes, taken - successes], [errors, draws - errors]])
        if taken and fisher_exact(table).pvalue < REFUTED:
            self._cell.fault("success_rate", row, f"{errors} of {draws} fresh draws misclassify its image")

    def _check_clean(self, memory: dict[Any, Any], replayed: bool) -> None:
        """Checks the records of the clean images on fresh draws."""
        records = self._cell.records
        wrong = (records["status"] == Status.CLEAN_ERROR).to_numpy()
        key = (id(self._defense), tuple(self._cell.samples), wrong.tobytes(), replayed)
        if key not in memory:
            memory[key] = self._fresh(self._x, np.arange(len(self._x)), wrong, stop=replayed)
        errors, votes = memory[key]
        for row in np.flatnonzero((records["clean_prediction"] >= 0).to_numpy()).tolist():
            count, draws = int(errors[row]), int(votes[row].sum())
            if wrong[row]:
                self._check_verdict(row, count, draws)
                if not replayed:
                    self._check_rate(row, count, draws)
            elif binom.sf(count - 1, draws, VERDICT.alternative) < REFUTED:
                self._cell.fault("status", row, f"{count} of {draws} fresh draws misclassify the clean image")
            if not replayed:
                self._check_prediction("clean_prediction", row, votes[row])

    def _replay(self, images: Tensor, likeliest: Tensor | None, memory: dict[Any, Any]) -> None:
        """Repeats the judge's own draws. The draws are reproducible on the same kind of machine."""
        cell, records, rows = self._cell, self._cell.records, np.arange(len(self._x))
        clean_error = (records["status"] == Status.CLEAN_ERROR).to_numpy()
        alpha = torch.as_tensor(self._terms["alpha"], dtype=torch.float64).expand(len(rows))
        draws, own = self._terms["estimation_draws"], self._terms["seed"]
        judge = Judge(self._defense, self._seed, alpha, draws, self._terms["threshold"])
        key = (id(self._defense), tuple(cell.samples), self._seed, draws)
        if key not in memory:
            memory[key] = judge.clean(self._clean)
        clean = memory[key]
        for row in np.flatnonzero((records["clean_prediction"] >= 0).to_numpy()).tolist():
            if bool(clean.misclassified[row]) != clean_error[row]:
                cell.fault("status", row, f"the judge's verdict on the clean image is {bool(clean.misclassified[row])}")
            if int(clean.prediction[row]) != records["clean_prediction"].iloc[row]:
                cell.fault("clean_prediction", row, f"the judge's draws say {int(clean.prediction[row])}")
        errors = np.where(clean_error, clean.errors.cpu().numpy(), 0)
        judge = judge if own is None else Judge(self._defense, own, alpha, draws, judge.threshold)
        moved = cell.moved()
        if len(moved):
            errors[moved] = judge.estimate(self._showing(images, moved)).cpu().numpy()
            self._check_replayed(judge, images, moved, alpha)
        rate = np.where(records["broken"], errors / draws, np.nan)
        low, high = wilson_interval(rate, draws)
        for name, expected in (("success_rate", rate), ("success_low", low), ("success_high", high)):
            differ = ~np.isclose(records[name].to_numpy(), expected, rtol=1e-12, atol=1e-12, equal_nan=True)
            for row in np.flatnonzero(differ).tolist():
                text = f"{errors[row]} of {draws} of the judge's draws misclassify its image, which gives"
                cell.fault(name, row, f"{text} {expected[row]:.6g}")
        if likeliest is not None:
            self._check_likeliest(judge, clean, likeliest)

    def _showing(self, images: Tensor, rows: NDArray[np.int64]) -> Chunk:
        """Returns images (S, C, H, W) of the cell's ``rows`` (N,)."""
        return self._clean.showing(images).select(torch.from_numpy(rows))

    def _check_replayed(self, judge: Judge, images: Tensor, moved: NDArray[np.int64], alpha: Tensor) -> None:
        """Checks that the verdict on each adversarial example reproduces the record for some position in `_TRIALS`."""
        records, rows = self._cell.records, moved
        reasons: dict[int, tuple[str, str]] = {}
        for trial in _TRIALS:
            if not len(rows):
                return
            levels = ((1 - CLEAN_SHARE) * 6 / (np.pi * trial) ** 2 * alpha[rows]).to(self._x.device)
            verdict, _ = judge.verdict(self._showing(images, rows), levels)
            said, broken = verdict.prediction.cpu().numpy(), verdict.misclassified.cpu().numpy()
            stored = records["adversarial_prediction"].to_numpy()[rows]
            for row, now, hit in zip(rows.tolist(), said.tolist(), broken.tolist(), strict=True):
                name = "adversarial_prediction" if hit else "broken"
                reasons.setdefault(
                    row, (name, f"the judge's draws say {now}" if hit else "the judge does not accept it")
                )
            rows = rows[~(broken & (said == stored))]
        for row in rows.tolist():
            self._cell.fault(reasons[row][0], row, reasons[row][1])

    def _check_likeliest(self, judge: Judge, clean: Any, likeliest: Tensor) -> None:
        cell, records, draws = self._cell, self._cell.records, judge.estimation_draws
        unmoved = (likeliest == self._x).flatten(1).all(1).cpu().numpy()
        norm = norm_named(str(records["norm"].iloc[0]))
        far = ~within(norm.distance(likeliest, self._x).cpu().numpy(), judge.threshold)
        asked = np.flatnonzero(~unmoved)
        errors = clean.errors.cpu().numpy().copy()
        errors[asked] = judge.estimate(self._showing(likeliest, asked)).cpu().numpy()
        rate = clean.rate.cpu().numpy()
        failed = (records["clean_prediction"] < 0).to_numpy()
        for row in np.flatnonzero(~failed).tolist():
            record = records.iloc[row]
            if far[row]:
                cell.fault("likely_rate", row, f"its image lies outside {judge.threshold}")
            if record["likely_errors"] != errors[row] or record["likely_draws"] != draws:
                cell.fault("likely_errors", row, f"the judge's draws give {errors[row]} of {draws}")
            if unmoved[row] and not np.isclose(record["likely_rate"], rate[row], equal_nan=True):
                cell.fault("likely_rate", row, f"the clean image has {rate[row]:.6g}")

    def _fresh(
        self, images: Tensor, rows: NDArray[np.int64], claims: NDArray[np.bool_], *, stop: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns errors (N,) and votes (N, K) of fresh draws on images (N, C, H, W) of the cell's rows (N,).

        ``claims`` (N,) is True where the record says that the image is misclassified. With ``stop``, the draws of an
        image end once they can no longer refute the record.
        """
        chunk = self._clean.select(torch.from_numpy(rows)).showing(images)
        ballot = Ballot(self._defense, chunk, seed=secrets.randbits(60), purpose="verification")
        most = np.where(claims, FRESH_DRAWS, FRESH_DRAWS - binom.isf(REFUTED, FRESH_DRAWS, VERDICT.alternative))
        least = np.where(claims, binom.ppf(REFUTED, FRESH_DRAWS, VERDICT.null) + 1, 0)
        errors = np.zeros(len(rows), np.int64)
        open_rows = np.arange(len(rows))
        for done in range(0, FRESH_DRAWS, _DRAWS_AT_ONCE):
            if not len(open_rows):
                break
            drawn, numbers = each_draw(torch.full((len(open_rows),), _DRAWS_AT_ONCE, device=images.device))
            asked = torch.from_numpy(open_rows).to(images.device)[drawn]
            wrong = ballot(asked, numbers + done)
            np.add.at(errors, asked.cpu().numpy(), wrong.cpu().numpy())
            right = done + _DRAWS_AT_ONCE - errors
            safe = np.where(claims, errors >= least, right > most)
            open_rows = open_rows[~safe[open_rows]] if stop else open_rows
        return errors, ballot.votes.cpu().numpy()
