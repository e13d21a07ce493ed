"""Tests contested certificates of randomized defenses.

A certificate is contested if a run has an adversarial example within the certified distance. The adversarial example
was selected among many candidates, on the draws that accepted it. Therefore the certificate is tested on separate draws
after all cells have run. `reports.statistics.brackets` corrects for the number of images tested.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bench.contracts.chunk import Chunk
from bench.contracts.norms import NormName
from bench.contracts.protocols import Defense
from bench.engine.ballot import Ballot
from bench.engine.verdicts import each_draw
from bench.ledger.loading import load_adversarials, load_ledger, load_studies
from bench.studies.study import schema

KIND = "refutation"
DRAWS = 400
"""Number of draws on each contested image."""
ROUNDING = 1e-6
"""Tolerance as a share of the lower bound. An adversarial example within this share below the bound does not contest
the bound."""
SCHEMA = schema(
    ("lower_bound", pa.float64()), ("distance", pa.float64()), ("errors", pa.int64()), ("draws", pa.int64())
)
"""One record per contested image. ``lower_bound`` is the certified distance. ``distance`` belongs to the nearest
adversarial example. ``errors`` is the number of ``draws`` that misclassify this example. ``status`` is ``tested``."""


def contested(run: Path, defense: str, norm: NormName) -> pd.DataFrame:
    """Returns the nearest adversarial examples of a run that lie within a certificate, ordered by sample.

    The columns are ``sample``, ``label``, ``lower_bound``, ``distance``, and the ``cell`` that found the example.
    """
    bounds, found = load_studies(run, "lower_bound"), load_ledger(run)
    if bounds.empty:
        return bounds
    certified = bounds[bounds["certificate"].astype(bool) & bounds["status"].eq("bound")]
    own = certified[certified["defense"].eq(defense) & certified["norm"].eq(norm)][["sample", "lower_bound"]]
    broken = found[found["broken"] & found["defense"].eq(defense) & found["norm"].eq(norm)]
    broken = broken.assign(distance=broken[norm.lower()]).sort_values(["distance", "cell"], kind="stable")
    nearest = broken.groupby("sample", as_index=False)[["label", "distance", "cell"]].first()
    both = own.merge(nearest, on="sample")
    return both[both["distance"] < both["lower_bound"] * (1 - ROUNDING)].sort_values("sample").reset_index(drop=True)


def errors_on(
    run: Path, rows: pd.DataFrame, defense: Defense, classes: int, seed: int, device: torch.device
) -> NDArray[np.int64]:
    """Returns the number (N,) int64 of draws that misclassify each of the `contested` images."""
    found = {cell: load_adversarials(run, cell) for cell in rows["cell"].unique()}
    images = np.stack([found[cell][sample] for cell, sample in zip(rows["cell"], rows["sample"], strict=True)])
    x, y = torch.from_numpy(images).to(device), torch.tensor(rows["label"].to_numpy(), device=device)
    ballot = Ballot(defense, Chunk(x, y, rows["sample"].tolist(), classes), seed=seed, purpose="certificate")
    drawn, numbers = each_draw(torch.full((len(x),), DRAWS, device=device))
    return torch.bincount(drawn[ballot(drawn, numbers)], minlength=len(x)).cpu().numpy()
