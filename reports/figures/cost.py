"""What each minimal attack spends, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from reports.figures.registry import Plot, figure
from reports.figures.style import MARKERS, STYLE, THRESHOLD_LINE, color, distance_label
from reports.measures.facts import NormFacts
from reports.measures.numbers import MEDIAN, PASSES, Numbers


@figure("cost", order=130)
def costs(numbers: Numbers, norm: NormFacts) -> Plot | None:
    """Draws mean passes against the median distance of each minimal attack; None without minimal attacks."""
    if not any(row.epsilon is None and row.cells for row in norm.rows):
        return None
    return Plot(
        f"cost_{norm.norm}",
        f"What each minimal attack spends per image, and the median {norm.label} distance that it finds. The line "
        "joins those that no cheaper attack beats.",
        "Passes against median distance for each attack and defense; the table of strength and cost has both.",
        cost_figure(numbers, norm),
    )


def cost_figure(numbers: Numbers, norm: NormFacts) -> Figure:
    """Draws mean passes against the median distance of each minimal attack, for each defense.

    A line joins the attacks that no cheaper attack beats.
    """
    defenses = norm.with_distances
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.6 + 0.1 * len(defenses)), layout="constrained")
        axes = figure.add_subplot()
        costs = [np.array(sorted(_costs(numbers, norm, defense))).reshape(-1, 2) for defense in defenses]
        for i, (defense, points) in enumerate(zip(defenses, costs, strict=True)):
            style = {**color(i), "marker": MARKERS[i % len(MARKERS)]}
            axes.scatter(points[:, 0], points[:, 1], s=22, alpha=0.85, label=defense, **style)
            if len(points):
                best = points[:, 1] <= np.minimum.accumulate(points[:, 1])
                axes.plot(points[best, 0], points[best, 1], linewidth=0.9, **color(i))
        axes.axhline(norm.threshold, **THRESHOLD_LINE)
        if any(map(len, costs)):
            axes.set_xscale("log")
        axes.set(xlabel="forward plus backward passes per image", ylabel=f"median {distance_label(norm)}")
        axes.set_ylim(bottom=0)
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _costs(numbers: Numbers, norm: NormFacts, defense: str) -> Iterator[tuple[float, float]]:
    """Yields mean passes and finite median distance of each minimal attack on a defense."""
    for row in norm.rows:
        found = numbers.of(norm.norm, row.label, defense)
        if row.epsilon is None and np.isfinite(found[MEDIAN].value) and found[PASSES].value > 0:
            yield found[PASSES].value, found[MEDIAN].value
