"""Accuracy against distance (Schott et al. 2019, Figure 2)."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bench.ledger.intervals import wilson_interval
from reports.figures.registry import Plot, figure
from reports.figures.style import LINE_STYLES, STYLE, THRESHOLD_LINE, color, distance_label, right_end
from reports.measures.facts import NormFacts
from reports.measures.numbers import Numbers
from reports.statistics.distances import accuracy_distortion_curve


@figure("curves", order=20, heading="Accuracy against distance")
def curves(numbers: Numbers, norm: NormFacts) -> Plot:
    """Draws accuracy against epsilon under the per-sample minimum over attacks."""
    return Plot(
        f"curves_{norm.norm}",
        "Share of images for which no attack found an adversarial within the distance. The vertical line marks the "
        "threshold, the bands are 95 % confidence intervals. A curve is over the images for which an attack has a "
        "valid result; the legend says where some have none. One that only bounded attacks were run on is left out, "
        "where there are others.",
        f"Curves of accuracy against {norm.label} distance for each defense; the table above gives each curve's "
        "median and its value at the threshold.",
        curve_figure(norm),
    )


def curve_figure(norm: NormFacts) -> Figure:
    """Draws accuracy against epsilon under the per-sample minimum over attacks (Schott et al. 2019, Figure 2).

    A band shows Wilson's 95 % interval at each epsilon. A curve uses the images with a known distance. The legend says
    if some are unknown because attacks failed. Defenses on which only bounded attacks ran are left out if there are
    others.
    """
    defenses = norm.with_distances
    by_defense = norm.distances
    known = {
        name: by_defense[name].dropna() for name in defenses if name in by_defense and by_defense[name].notna().any()
    }
    right = right_end(list(known.values()), norm.threshold)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.3 + 0.1 * len(defenses)), layout="constrained")
        axes = figure.add_subplot()
        for i, defense in enumerate(defenses):
            style = {**color(i), "linestyle": LINE_STYLES[i % len(LINE_STYLES)], "linewidth": 1.6}
            if defense in known:
                epsilons, accuracies = accuracy_distortion_curve(known[defense])
                # A bounded attack searched nothing outside its ball.
                end = right if defense in norm.minimized else norm.threshold
                epsilons = np.append(epsilons, max(end, epsilons[-1]))
                accuracies = np.append(accuracies, accuracies[-1])
                some = f" ({len(known[defense])} of {len(by_defense[defense])} images)"
                label = defense + (some if by_defense[defense].isna().any() else "")
                axes.step(epsilons, accuracies, where="post", label=label, **style)
                low, high = wilson_interval(accuracies, len(known[defense]))
                axes.fill_between(epsilons, low, high, step="post", alpha=0.12, linewidth=0, **color(i))
            else:
                reason = "unknown" if defense in by_defense else "no results"
                axes.plot([], [], label=f"{defense} ({reason})", **style)
        axes.axvline(norm.threshold, **THRESHOLD_LINE)
        axes.annotate(
            f"ε = {norm.threshold:g}",
            (norm.threshold, 1.0),
            xytext=(3, 2),
            textcoords="offset points",
            color="#333333",
            fontsize=9,
            annotation_clip=False,
        )
        axes.set(
            xlim=(0, right),
            ylim=(0, 1.0),
            xlabel=distance_label(norm),
            ylabel="accuracy",
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
