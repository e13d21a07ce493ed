"""Accuracy under a bounded attack as one of its parameters grows."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reports.figures.registry import Plot, figure
from reports.figures.style import LINE_STYLES, MARKERS, STYLE, color
from reports.measures.facts import NormFacts, Sweep
from reports.measures.numbers import SWEPT_ACCURACY, Numbers


@figure("sweep", order=140)
def sweep_plots(numbers: Numbers, norm: NormFacts) -> list[Plot]:
    """Draws each sweep."""
    return [
        Plot(
            f"sweep_{norm.norm}_{sweep.attack}_{sweep.parameter}",
            f"Accuracy under {sweep.attack} as its {sweep.parameter} grow, with Wilson's 95 % intervals.",
            f"Accuracy of each defense for {len(sweep.steps)} values of {sweep.parameter}; the summary has the "
            "numbers.",
            sweep_figure(numbers, norm, sweep),
        )
        for sweep in norm.sweeps
    ]


def sweep_figure(numbers: Numbers, norm: NormFacts, sweep: Sweep) -> Figure:
    """Draws the accuracy of each of a sweep's defenses against the parameter of the attack."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.0 + 0.1 * len(sweep.defenses)), layout="constrained")
        axes = figure.add_subplot()
        for i, defense in enumerate(sweep.defenses):
            found = {value: numbers.of(norm.norm, label, defense)[SWEPT_ACCURACY] for value, label in sweep.steps}
            known = [(value, each.value, each.low, each.high) for value, each in found.items() if not each.reason]
            values, accuracies, low, high = np.array(known).reshape(-1, 4).T
            style = {**color(i), "linestyle": LINE_STYLES[i % len(LINE_STYLES)], "marker": MARKERS[i % len(MARKERS)]}
            errors = np.clip([accuracies - low, high - accuracies], 0, None)
            axes.errorbar(values, accuracies, yerr=errors, capsize=2, markersize=4, label=defense, **style)
        axes.set(xlabel=sweep.parameter, ylabel="accuracy", ylim=(0, 1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
