"""The schema of a cell's records, and the words that the records use."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.contracts.norms import NORMS

SEALED = 3
"""First schema version with seals. Before it, the judge had no stated error either."""
CHUNKED = 4
"""First schema version in which a cell has a file for each chunk. Before it, one file held all samples."""
READABLE = (2, SEALED, CHUNKED)
"""Readable schema versions."""

DISTANCES = tuple(norm.column for norm in NORMS.values())
"""The columns of distances, one per norm."""
FIRST_DISTANCES = ("l0", "l2", "linf")
"""The columns of distances that every readable file has. A file may be older than the other norms."""
CELL_SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("dataset", pa.string()),
        ("sample", pa.int64()),
        ("sample_hash", pa.string()),
        ("label", pa.int64()),
        ("defense", pa.string()),
        ("attack", pa.string()),
        ("norm", pa.string()),
        ("epsilon", pa.float64()),
        ("clean_prediction", pa.int64()),
        ("adversarial_prediction", pa.int64()),
        ("status", pa.string()),
        ("broken", pa.bool_()),
        ("reason", pa.string()),
        *((name, pa.float64()) for name in DISTANCES),
        ("success_rate", pa.float64()),
        ("success_low", pa.float64()),
        ("success_high", pa.float64()),
        ("likely_rate", pa.float64()),
        ("likely_errors", pa.int64()),
        ("likely_draws", pa.int64()),
        ("draws_choosing", pa.int64()),
        ("draws_deciding", pa.int64()),
        ("draws_estimating", pa.int64()),
        ("non_finite", pa.int64()),
        ("claimed", pa.bool_()),
        ("found_after", pa.float64()),
        ("useless_gradients", pa.float64()),
        ("remarks", pa.string()),
        ("forwards", pa.float64()),
        ("backwards", pa.float64()),
        ("inner_steps", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
COLUMNS: dict[str, Any] = {
    field.name: object if field.type == pa.string() else field.type.to_pandas_dtype() for field in CELL_SCHEMA
}
"""The columns of a ledger's frame and their numpy types.

There is one distance per norm, whatever the norm under attack. Distances are 0 for a clean error, the judged distance
for a broken sample, infinity for a sample that is not broken, and NaN for a violation or a failure. In a file that is
older than a norm, the norm's distances are NaN. Predictions are -1 where there is none. Epsilon is NaN for minimal
attacks.

``success_rate`` is the share of further draws that misclassify the nearest broken image. These draws decided nothing.
``success_low`` and ``success_high`` are the ends of its 95 % Wilson interval. For a deterministic defense the rate is 1
without an interval. The rate is NaN if the sample is not broken.

For a randomized defense a record also describes the likeliest image within the matrix's threshold. The likeliest image
has the highest ``likely_rate``, and is the clean image if there is no other. ``likely_rate`` is (k + 1) / (n + 2) if k
of n choosing and deciding draws misclassified the image. ``likely_errors`` of ``likely_draws`` further draws
misclassified it. ``draws_choosing``, ``draws_deciding`` and ``draws_estimating`` count over all candidates of the
sample. All three are 0 for a deterministic defense. ``non_finite`` counts candidates dropped because their logits were
not finite.

Four columns give reasons to doubt a defense's robustness. ``claimed`` states whether the attack's own queries showed an
adversarial example. ``found_after`` is the number of passes up to the first one: infinity without one, 0 for a clean
error, NaN if a library hides it or the sample failed. ``useless_gradients`` is the share of the attack's derivatives
that were all zero or not finite, and NaN if it asked for none. ``remarks`` are the remarks on the defense, such as
those of the attack's library."""


def ledger_dir(run: Path | str) -> Path:
    """Returns the folder of a run's ledger."""
    return Path(run) / "ledger"


NON_FINITE = "non_finite"
"""Reason of a sample that failed because the defense's logits on its clean image are not finite."""


class Status(StrEnum):
    """The outcome of one sample in one cell; studies use `FAILED` and `CLEAN_ERROR`, too."""

    CLEAN_ERROR = "clean_error"
    """The clean image is misclassified: broken at distance 0."""
    FOUND = "found"
    """An adversarial example holds."""
    NOT_FOUND = "not_found"
    """No candidate holds."""
    UNDECIDED = "undecided"
    """No candidate was accepted, and at least one was neither accepted nor given up: counts as not broken."""
    BUDGET = "budget"
    """The budget ended the attack on the sample, whether it is broken or not."""
    VIOLATION = "violation"
    """The attack's candidates break the rules; the reason names the rule."""
    FAILED = "failed"
    """The sample could not be attacked or judged; the reason says why."""


def sample_hash(image: NDArray[np.float32]) -> str:
    """Returns the hash by which the ledger identifies a clean image (C, H, W): 16 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
