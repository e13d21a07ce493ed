"""Published numbers that a run's numbers can be laid beside.

``published/*.csv`` are tables of papers as printed, in long form; they name defenses, norms and attacks as Assay does,
but for what `_published_defense` and `_published` say. An attack's variant (what follows its colon) is a setting.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import pandas as pd

from bench.norms import Norm
from reports.runs import Run
from reports.tables import CLEAN, all_attacks

SOURCE = "schott2019"
REFERENCE = "Schott et al. (ICLR 2019), Table 1"


def published_numbers(run: Run, norm: Norm) -> dict[tuple[str, str], tuple[float, float]]:
    """Median distance and accuracy, by row label and defense of `reports.tables.summary_table`; NaN for the one that
    is not printed, or printed for another epsilon than the run's threshold.

    Empty if nothing was published for the run's dataset, defenses and attacks in this norm.
    """
    own = _published()
    own = own[(own["dataset"] == run.dataset) & own["norm"].isin(["", norm.lower()])]
    at_threshold = own["epsilon"].isna() | np.isclose(own["epsilon"], run.threshold(norm), rtol=1e-6)
    values = own[at_threshold].set_index(["defense", "attack", "metric"])["value"].to_dict()
    rows = {CLEAN: ("", "clean_accuracy"), all_attacks(norm): (f"all_{norm.lower()}", "accuracy_at_epsilon")}
    rows |= {row.label: (row.attack.partition(":")[0], "accuracy_at_epsilon") for row in run.attack_rows(norm)}
    bounded = {row.label for row in run.attack_rows(norm) if row.epsilon is not None}
    numbers = {}
    for label, (attack, metric) in rows.items():
        for defense in run.defenses:
            place = (_published_defense(defense), attack)
            median = np.nan if label in bounded else values.get((*place, "median_distance"), np.nan)
            accuracy = values.get((*place, metric), np.nan)
            if not np.isnan([median, accuracy]).all():
                numbers[label, defense] = (median, accuracy)
    return numbers


def _published_defense(name: str) -> str:
    """The paper's name of a defense: its own nets carry no variant or the paper's, other variants are other nets."""
    base, _, variant = name.partition(":")
    if variant not in ("", SOURCE):
        return name
    return "madry" if base == "adv_linf" else base


@cache
def _published() -> pd.DataFrame:
    file = resources.files("reports") / "published" / f"{SOURCE}_table1.csv"
    with file.open() as lines:
        table = pd.read_csv(lines, keep_default_na=False, dtype={"defense": str, "norm": str, "attack": str})
    ten_times = table["setting"] == "repetitions=10"  # printed as "Pointwise Attack 10x", an attack of its own here
    return table.assign(
        attack=table["attack"] + np.where(ten_times, "_10x", ""),
        epsilon=pd.to_numeric(table["epsilon"]),
        value=pd.to_numeric(table["value"]),
    )
