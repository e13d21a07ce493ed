"""The smallest distance that any attack found."""

from __future__ import annotations

import pandas as pd

from bench.contracts.norms import Norm
from reports.runs.run import Run, once_per_run
from reports.statistics.records import by_sample


@once_per_run
def smallest_of(run: Run, norm: Norm) -> dict[str, pd.Series]:
    """Returns the smallest distances over all attacks by sample, for each defense that has some."""
    return {str(name): by_sample(own, "distance") for name, own in run.smallest(norm).groupby("defense")}
