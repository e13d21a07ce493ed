"""McNemar's test between each pair of defenses, as a heat map."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from reports.figures.registry import Plot, figure
from reports.figures.style import STYLE
from reports.measures.facts import NormFacts
from reports.measures.numbers import Numbers

SMALLEST_P = 1e-4
"""p-value at which the color scale of the heat map ends."""


@figure("significance", order=120)
def significance(numbers: Numbers, norm: NormFacts) -> Plot | None:
    """Draws the p-values of McNemar's test between all pairs of defenses; None for a single defense."""
    if len(norm.defenses) < 2:
        return None
    return Plot(
        f"significance_{norm.norm}",
        f"McNemar's exact test between defenses at ε = {norm.threshold:g}, adjusted by Holm's method: the "
        "darker, the surer it is that their accuracies differ.",
        "A matrix of p-values; the table of McNemar p-values gives them as numbers.",
        significance_figure(norm),
    )


def significance_figure(norm: NormFacts) -> Figure:
    """Draws Holm-adjusted p-values of McNemar's test between all pairs of defenses as a heat map."""
    rows, columns = norm.defenses[1:], norm.defenses[:-1]
    adjusted = {(pair.first, pair.second): pair.adjusted for pair in norm.pairs}
    values = np.array([[adjusted.get((first, second), np.nan) for second in columns] for first in rows])
    with mpl.rc_context(STYLE):
        side = 1.6 + 0.5 * len(norm.defenses)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(
            -np.log10(np.maximum(values, SMALLEST_P)), cmap="cividis_r", vmin=0, vmax=-np.log10(SMALLEST_P)
        )
        for (row, column), p in np.ndenumerate(values):
            if not np.isnan(p):
                ink = "#ffffff" if p < 1e-2 else "#000000"
                axes.text(column, row, f"{p:.2g}", ha="center", va="center", fontsize=7, color=ink)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        bar = figure.colorbar(shown, ax=axes, shrink=0.8)
        bar.set_ticks([0, 1, 2, 3, 4], labels=["1", "0.1", "0.01", "0.001", "≤ 0.0001"])
        bar.set_label("adjusted p")
    return figure
