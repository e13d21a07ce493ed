"""Published numbers to show beside a run's numbers.

``published/*.csv`` are tables of papers as printed, in long form, one file per paper. They name datasets, norms,
defenses and attacks as Assay does, except for the names in `PAPERS` and `_table`. If a table has several settings of a
defense, the last one counts. The variant of an attack (the part after the colon) is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd

from reports.measures.facts import NormFacts
from reports.measures.numbers import ACCURACY, MEDIAN, Numbers
from reports.measures.studies import DETECTION, SHARE, ball
from reports.runs.rows import CLEAN

NONE = (np.nan, "")


@dataclass(frozen=True)
class PublishedCell:
    """A publication's numbers for a cell of a table by quantity, NaN where it has none, and their footnotes."""

    values: Mapping[str, float]
    notes: tuple[str, ...] = ()


Published = dict[tuple[str, str], PublishedCell]
"""Published numbers, keyed by row and column label of a table."""


@dataclass(frozen=True)
class Paper:
    """A source of published numbers.

    Attributes:
        reference: its citation in captions.
        defenses: maps our names of defenses to the paper's. A name that is missing here is the same in both.
        others: our names of defenses that denote something else in the paper.
    """

    reference: str
    defenses: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


PAPERS: dict[str, Paper] = {
    "schott2019": Paper(
        "Schott, Rauber, Bethge & Brendel (ICLR 2019), Tables 1 and 2",
        {"adv_linf": "madry", "abs:schott2019": "abs", "binary_abs:schott2019": "binary_abs"},
        others=("abs:ju2020", "cnn:ju2020"),
    ),
    "ju2020": Paper(
        "Ju & Wagner (AISec 2020), Tables 1 to 5",
        {"cnn:ju2020": "cnn", "abs:ju2020": "abs"},
        others=("cnn", "abs"),
    ),
    "ju2021": Paper(
        "Ju (PhD thesis, 2021), Tables 2.6 and 4.3",
        {
            "robustbench:cifar10/Linf/Wong2020Fast": "wong2020",
            "variational_smoothing:robustbench:cifar10/Linf/Wong2020Fast": "variational_wong2020",
        },
    ),
    "maggipinto2020": Paper("Maggipinto, Terzi & Susto (2020), Tables 1 to 4, with their weakest l1 penalty"),
}
"""Papers, keyed by the stem of their file name."""
_DATASETS = {"cifar_two_class": "cifar2"}
_ATTACKS = {"noise": "gaussian_noise"}


def published_numbers(numbers: Numbers, norm: NormFacts, paper: str) -> Published:
    """Returns a paper's median distances and accuracies, keyed by row label and defense of the summary table.

    The table is `reports.tables.summary.summary_table`. A number is NaN if it is not printed, or printed for an epsilon
    other than the run's threshold. The result is empty if the paper has nothing for the run's dataset, defenses and
    attacks in this norm.
    """
    values = _values(numbers.dataset, norm, paper)
    rows = {CLEAN: ("", "clean_accuracy"), norm.all_attacks: (f"all_{norm.norm.lower()}", "accuracy_at_epsilon")}
    rows |= {row.label: (row.attack.partition(":")[0], "accuracy_at_epsilon") for row in norm.rows}
    bounded = {row.label for row in norm.rows if row.epsilon is not None}
    found: Published = {}
    for label, (attack, metric) in rows.items():
        for defense in numbers.defense_names:
            place = (_name(defense, paper), attack)
            median, note = NONE if label in bounded else values.get((*place, "median_distance"), NONE)
            accuracy, remark = values.get((*place, metric), NONE)
            if not np.isnan([median, accuracy]).all():
                notes = tuple(filter(None, [note, remark]))
                found[label, defense] = PublishedCell({MEDIAN: median, ACCURACY: accuracy}, notes)
    return found if any(label != CLEAN for label, _ in found) else {}


def published_detection(numbers: Numbers, paper: str) -> Published:
    """Returns the accuracies of defenses' detectors in a paper.

    They are keyed by row and column label of `reports.tables.detection.detection_tables`.
    """
    return {
        (f"{defense}, {ball(norm.norm, norm.threshold)}", DETECTION["accuracy"]): PublishedCell({SHARE: value})
        for norm in numbers.norms.values()
        for (name, _, metric), (value, _) in _values(numbers.dataset, norm, paper).items()
        for defense in numbers.defense_names
        if metric == "detection_accuracy" and name == _name(defense, paper)
    }


def _name(defense: str, paper: str) -> str:
    known = PAPERS[paper]
    return "" if defense in known.others else known.defenses.get(defense, defense)


def _values(dataset: str, norm: NormFacts, paper: str) -> dict[tuple[str, str, str], tuple[float, str]]:
    """Returns a paper's values for a dataset and a norm's threshold.

    They are keyed by the paper's defense, attack and metric. Each value comes with a note on what makes it look
    misprinted, or an empty string.
    """
    own = _table(paper)
    own = own[(own["dataset"] == dataset) & own["norm"].isin(["", norm.norm.lower()])]
    at_threshold = own["epsilon"].isna() | np.isclose(own["epsilon"], norm.threshold, rtol=1e-6)
    own = own[at_threshold | (own["metric"] == "clean_accuracy")].drop_duplicates(
        ["defense", "attack", "metric"], keep="last"
    )
    places = own[["defense", "attack", "metric"]].itertuples(index=False, name=None)
    notes = own["note"].where(own["note"].str.contains("misprint"), "")
    return dict(zip(places, zip(own["value"], notes, strict=True), strict=True))


@cache
def _table(paper: str) -> pd.DataFrame:
    with (resources.files("reports") / "published" / f"{paper}.csv").open(encoding="utf-8") as lines:
        table = pd.read_csv(lines, keep_default_na=False, dtype={"defense": str, "norm": str, "attack": str})
    ten_times = table["setting"] == "repetitions=10"  # printed as "Pointwise Attack 10x"; here it is a separate attack
    return table.assign(
        dataset=table["dataset"].replace(_DATASETS),
        attack=table["attack"].replace(_ATTACKS) + np.where(ten_times, "_10x", ""),
        epsilon=pd.to_numeric(table["epsilon"]),
        value=pd.to_numeric(table["value"]),
    )
