"""Every image's distance (Schott et al. 2019, Figure 8)."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from reports.figures.registry import Plot, figure
from reports.figures.style import STYLE, THRESHOLD_LINE, color, distance_label, right_end
from reports.measures.facts import NormFacts
from reports.measures.numbers import Numbers
from reports.statistics.distances import median_distance

RASTERIZED = 2000
"""Number of points above which vector files store a strip as a raster image."""


@figure("distances", order=110)
def distances(numbers: Numbers, norm: NormFacts) -> Plot:
    """Draws every image's distance under the per-sample minimum over attacks."""
    return Plot(
        f"distances_{norm.norm}",
        f"{norm.label} distance of each image's smallest adversarial; the bar is the median. Images beyond the right "
        "end, or that no attack broke, are counted there.",
        "Strips of distances for each defense; the tables give their medians.",
        distance_figure(norm),
    )


def distance_figure(norm: NormFacts) -> Figure:
    """Draws every image's distance under the per-sample minimum over attacks, one strip per defense.

    The design follows Schott et al. 2019, Figure 8.
    """
    defenses = norm.with_distances
    by_defense = {name: own.to_numpy(float) for name, own in norm.distances.items()}
    right = 1.15 * right_end(list(by_defense.values()), norm.threshold)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 1.0 + 0.42 * len(defenses)), layout="constrained")
        axes = figure.add_subplot()
        for i, defense in enumerate(defenses):
            values = by_defense.get(defense, np.empty(0))
            seen = values[values <= right]
            # Golden-ratio offsets spread the points evenly, independently of the distance.
            offset = (np.arange(len(seen)) * 0.618034 % 1 - 0.5) * 0.5
            axes.scatter(seen, i + offset, s=8, alpha=0.6, linewidths=0, rasterized=len(seen) > RASTERIZED, **color(i))
            median = median_distance(values[~np.isnan(values)])
            if median <= right and defense in norm.minimized:
                axes.plot([median, median], [i - 0.36, i + 0.36], color="#000000", linewidth=1.6)
            beyond, unknown = int(np.sum(values > right)), int(np.isnan(values).sum())
            texts = [f"{beyond} beyond" if beyond else "", f"{unknown} unknown" if unknown or not len(values) else ""]
            axes.annotate(
                "\n".join(filter(None, texts)),
                (1.0, i),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.axvline(norm.threshold, **THRESHOLD_LINE)
        axes.set(xlim=(0, right), ylim=(len(defenses) - 0.5, -0.5), xlabel=distance_label(norm))
        axes.set_yticks(range(len(defenses)), defenses)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return figure
