"""The strength of each attack, with confidence intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from reports.evidence.randomized import (
    bound_note,
    power_note,
    protocols,
    protocols_note,
    quantity_names,
    with_protocols,
)
from reports.runs.gaps import smallest_of
from reports.runs.labels import DECIMALS, NORM_LABELS
from reports.runs.run import Run
from reports.statistics.distances import (
    accuracy_interval,
    median_interval,
)
from reports.tables.cells import (
    accuracy_quantity,
    all_attacks,
    blank_note,
    distances_of,
    measured_on,
    passes_and_seconds,
)
from reports.tables.summary import summary_table
from reports.tables.table import Cell, Quantity, Table, laid_out, sentences


def strength_table(run: Run, norm: NormName) -> Table:
    """Builds the table of each attack's strength and cost, with confidence intervals.

    The numbers are those of `summary_table`, with the median's interval, and mean passes and seconds per attacked
    image. Cells of randomized defenses also hold the accuracies under the other protocols of
    `reports.evidence.randomized`.
    """
    summary, smallest, shown = summary_table(run, norm), smallest_of(run, norm), with_protocols(run, norm)
    rows: dict[str, list[Cell]] = {}
    for row in run.attack_rows(norm):
        distances, epsilon = distances_of(run, norm, row), run.threshold(norm) if row.epsilon is None else row.epsilon
        rows[row.label] = [
            with_intervals(
                cell,
                distances.get(defense),
                epsilon,
                protocols(run, norm, defense, row) if shown else (),
                passes_and_seconds(run, row, defense),
            )
            for defense, cell in summary.row(row.label).items()
        ]
    rows[all_attacks(norm)] = [
        with_intervals(
            cell,
            smallest.get(defense),
            run.threshold(norm),
            protocols(run, norm, defense, None) if shown else (),
            (np.nan, np.nan),
        )
        for defense, cell in summary.row(all_attacks(norm)).items()
    ]
    accuracy = replace(accuracy_quantity(run), interval=True)
    return Table(
        name=f"strength_{norm}",
        title=f"{NORM_LABELS[norm]}: strength and cost of the attacks",
        caption=sentences(
            f"Median {NORM_LABELS[norm]} distance / accuracy at ε = {run.threshold(norm):g} / mean forward plus "
            f"backward passes / mean seconds per attacked image, on {measured_on(run)}; in brackets 95 % confidence "
            "intervals (between order statistics; Wilson's). Seconds depend on the machine and on what else it does.",
            protocols_note(run) if shown else "",
            bound_note(run, [norm]),
            power_note(run, [norm]),
            blank_note(rows.values()),
        ),
        frame=laid_out("attack", run.defenses_in(norm), rows),
        quantities=(
            Quantity("median", DECIMALS[norm], interval=True),
            accuracy,
            *(replace(accuracy, name=name) for name in (quantity_names(run) if shown else ())),
            Quantity("passes"),
            Quantity("seconds", 2),
        ),
        rules=(len(rows) - 1,),
    )


def with_intervals(
    cell: Cell,
    distances: pd.Series | None,
    epsilon: float,
    others: tuple[float, ...],
    costs: tuple[float, float],
) -> Cell:
    """Returns a cell of median and accuracy with their intervals added.

    The accuracies under other protocols follow, then mean passes and seconds.
    """
    if distances is None or not cell.values:
        return cell
    (median, accuracy), known = cell.values, distances.dropna()
    of_median = (np.nan, np.nan) if np.isnan(median) else median_interval(known)
    of_accuracy = accuracy_interval(known, epsilon)
    return replace(cell, values=(median, *of_median, accuracy, *of_accuracy, *others, *costs), significant=False)
