"""Figures for print: curves, distributions, tests and costs. The same run gives the same bytes.

`plots` lists all figures of a run. Each figure function takes a run and a norm and returns a matplotlib figure.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from bench.contracts.norms import NORMS, NormName
from bench.ledger.intervals import wilson_interval
from reports.runs.labels import NORM_LABELS
from reports.runs.run import Run
from reports.statistics.distances import accuracy_distortion_curve, median_distance
from reports.tables.cells import minimized, passes_and_seconds, with_distances
from reports.tables.pairwise import mcnemar_table
from reports.tables.sweeps import Sweep, sweep_table, sweeps, swept

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, whose colors color-blind readers can tell apart.

Its yellow is left out because it is too light for lines.
"""
LINE_STYLES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SMALLEST_P = 1e-4
"""p-value at which the color scale of the heat map ends."""
RASTERIZED = 2000
"""Number of points above which vector files store a strip as a raster image."""
_THRESHOLD_LINE: dict[str, Any] = {"color": "#555555", "linewidth": 0.8, "linestyle": (0, (2, 2))}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.hashsalt": "assay",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Plot:
    """A figure of a report.

    Attributes:
        name: stem of the figure's files.
        caption: what the figure shows, in a sentence or two.
        alternative: text for readers who cannot see the figure.
        figure: the figure.
    """

    name: str
    caption: str
    alternative: str
    figure: Figure


def plots(run: Run, norm: NormName) -> list[Plot]:
    """Returns the figures of a norm besides its curves, for which the run has data."""
    label = NORM_LABELS[norm]
    found = [
        Plot(
            f"distances_{norm}",
            f"{label} distance of each image's smallest adversarial; the bar is the median. Images beyond the right "
            "end, or that no attack broke, are counted there.",
            "Strips of distances for each defense; the tables give their medians.",
            distance_figure(run, norm),
        )
    ]
    if len(run.defenses_in(norm)) > 1:
        found.append(
            Plot(
                f"significance_{norm}",
                f"McNemar's exact test between defenses at ε = {run.threshold(norm):g}, adjusted by Holm's method: the "
                "darker, the surer it is that their accuracies differ.",
                "A matrix of p-values; the table of McNemar p-values gives them as numbers.",
                significance_figure(run, norm),
            )
        )
    if any(row.epsilon is None and row.cells for row in run.attack_rows(norm)):
        found.append(
            Plot(
                f"cost_{norm}",
                f"What each minimal attack spends per image, and the median {label} distance that it finds. The line "
                "joins those that no cheaper attack beats.",
                "Passes against median distance for each attack and defense; the table of strength and cost has both.",
                cost_figure(run, norm),
            )
        )
    for parameter, sweep in sweeps(run, norm):
        base = sweep[0][1].attack.partition(":")[0]
        found.append(
            Plot(
                f"sweep_{norm}_{base}_{parameter}",
                f"Accuracy under {base} as its {parameter} grow, with Wilson's 95 % intervals.",
                f"Accuracy of each defense for {len(sweep)} values of {parameter}; the summary has the numbers.",
                sweep_figure(run, norm, parameter, sweep),
            )
        )
    return found


def curve_figure(run: Run, norm: NormName) -> Figure:
    """Draws accuracy against epsilon under the per-sample minimum over attacks (Schott et al. 2019, Figure 2).

    A band shows Wilson's 95 % interval at each epsilon. A curve uses the images with a known distance. The legend says
    if some are unknown because attacks failed. Defenses on which only bounded attacks ran are left out if there are
    others.
    """
    defenses = with_distances(run, norm)
    by_defense = dict(list(run.smallest(norm).groupby("defense")["distance"]))
    known = {
        name: by_defense[name].dropna() for name in defenses if name in by_defense and by_defense[name].notna().any()
    }
    right = _right_end(list(known.values()), run.threshold(norm))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 3.3 + 0.1 * len(defenses)), layout="constrained")
        axes = figure.add_subplot()
        for i, defense in enumerate(defenses):
            style = {**_color(i), "linestyle": LINE_STYLES[i % len(LINE_STYLES)], "linewidth": 1.6}
            if defense in known:
                epsilons, accuracies = accuracy_distortion_curve(known[defense])
                # A bounded attack searched nothing outside its ball.
                end = right if minimized(run, norm, defense) else run.threshold(norm)
                epsilons = np.append(epsilons, max(end, epsilons[-1]))
                accuracies = np.append(accuracies, accuracies[-1])
                some = f" ({len(known[defense])} of {len(by_defense[defense])} images)"
                label = defense + (some if by_defense[defense].isna().any() else "")
                axes.step(epsilons, accuracies, where="post", label=label, **style)
                low, high = wilson_interval(accuracies, len(known[defense]))
                axes.fill_between(epsilons, low, high, step="post", alpha=0.12, linewidth=0, **_color(i))
            else:
                reason = "unknown" if defense in by_defense else "no results"
                axes.plot([], [], label=f"{defense} ({reason})", **style)
        axes.axvline(run.threshold(norm), **_THRESHOLD_LINE)
        axes.annotate(
            f"ε = {run.threshold(norm):g}",
            (run.threshold(norm), 1.0),
            xytext=(3, 2),
            textcoords="offset points",
            color="#333333",
            fontsize=9,
            annotation_clip=False,
        )
        axes.set(
            xlim=(0, right),
            ylim=(0, 1.0),
            xlabel=_distance_label(norm),
            ylabel="accuracy",
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def distance_figure(run: Run, norm: NormName) -> Figure:
    """Draws every image's distance under the per-sample minimum over attacks, one strip per defense.

    The design follows Schott et al. 2019, Figure 8.
    """
    smallest, defenses = run.smallest(norm), with_distances(run, norm)
    by_defense = {name: own["distance"].to_numpy(float) for name, own in smallest.groupby("defense")}
    right = 1.15 * _right_end(list(by_defense.values()), run.threshold(norm))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 1.0 + 0.42 * len(defenses)), layout="constrained")
        axes = figure.add_subplot()
        for i, defense in enumerate(defenses):
            values = by_defense.get(defense, np.empty(0))
            seen = values[values <= right]
            # Golden-ratio offsets spread the points evenly, independently of the distance.
            offset = (np.arange(len(seen)) * 0.618034 % 1 - 0.5) * 0.5
            axes.scatter(seen, i + offset, s=8, alpha=0.6, linewidths=0, rasterized=len(seen) > RASTERIZED, **_color(i))
            median = median_distance(values[~np.isnan(values)])
            if median <= right and minimized(run, norm, defense):
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
        axes.axvline(run.threshold(norm), **_THRESHOLD_LINE)
        axes.set(xlim=(0, right), ylim=(len(defenses) - 0.5, -0.5), xlabel=_distance_label(norm))
        axes.set_yticks(range(len(defenses)), defenses)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return figure


def significance_figure(run: Run, norm: NormName) -> Figure:
    """Draws Holm-adjusted p-values of McNemar's test between all pairs of defenses as a heat map."""
    frame = mcnemar_table(run, norm).frame
    values = np.array([[cell.values[1] if cell.values else np.nan for cell in row] for row in frame.to_numpy()])
    with mpl.rc_context(_STYLE):
        side = 1.6 + 0.5 * len(run.defenses_in(norm))
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(
            -np.log10(np.maximum(values, SMALLEST_P)), cmap="cividis_r", vmin=0, vmax=-np.log10(SMALLEST_P)
        )
        for (row, column), p in np.ndenumerate(values):
            if not np.isnan(p):
                color = "#ffffff" if p < 1e-2 else "#000000"
                axes.text(column, row, f"{p:.2g}", ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(len(frame.columns)), list(frame.columns), rotation=45, ha="right")
        axes.set_yticks(range(len(frame)), list(frame.index))
        bar = figure.colorbar(shown, ax=axes, shrink=0.8)
        bar.set_ticks([0, 1, 2, 3, 4], labels=["1", "0.1", "0.01", "0.001", "≤ 0.0001"])
        bar.set_label("adjusted p")
    return figure


def cost_figure(run: Run, norm: NormName) -> Figure:
    """Draws mean passes against the median distance of each minimal attack, for each defense.

    A line joins the attacks that no cheaper attack beats.
    """
    defenses = with_distances(run, norm)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 3.6 + 0.1 * len(defenses)), layout="constrained")
        axes = figure.add_subplot()
        costs = [np.array(sorted(_costs(run, norm, defense))).reshape(-1, 2) for defense in defenses]
        for i, (defense, points) in enumerate(zip(defenses, costs, strict=True)):
            style = {**_color(i), "marker": MARKERS[i % len(MARKERS)]}
            axes.scatter(points[:, 0], points[:, 1], s=22, alpha=0.85, label=defense, **style)
            if len(points):
                best = points[:, 1] <= np.minimum.accumulate(points[:, 1])
                axes.plot(points[best, 0], points[best, 1], linewidth=0.9, **_color(i))
        axes.axhline(run.threshold(norm), **_THRESHOLD_LINE)
        if any(map(len, costs)):
            axes.set_xscale("log")
        axes.set(xlabel="forward plus backward passes per image", ylabel=f"median {_distance_label(norm)}")
        axes.set_ylim(bottom=0)
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def sweep_figure(run: Run, norm: NormName, parameter: str, sweep: Sweep) -> Figure:
    """Draws the accuracy of each of a sweep's defenses against the parameter of the attack."""
    table, defenses = sweep_table(run, norm, parameter, sweep), swept(run, sweep)
    rows = [(value, table.row(f"{value:g}")) for value, _ in sweep]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 3.0 + 0.1 * len(defenses)), layout="constrained")
        axes = figure.add_subplot()
        for i, defense in enumerate(defenses):
            steps = [(value, *cells[defense].values) for value, cells in rows if cells[defense].values]
            values, accuracies, low, high = np.array(steps).reshape(-1, 4).T
            style = {**_color(i), "linestyle": LINE_STYLES[i % len(LINE_STYLES)], "marker": MARKERS[i % len(MARKERS)]}
            errors = np.clip([accuracies - low, high - accuracies], 0, None)
            axes.errorbar(values, accuracies, yerr=errors, capsize=2, markersize=4, label=defense, **style)
        axes.set(xlabel=parameter, ylabel="accuracy", ylim=(0, 1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def write_figure(figure: Figure, stem: Path) -> None:
    """Writes a figure as ``stem`` with the suffixes ``.pdf`` and ``.png``, without a date in either file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        _lay_out(figure)
        figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None})
        figure.savefig(stem.with_suffix(".png"), dpi=200)


def to_svg(figure: Figure) -> bytes:
    """Returns a figure as an SVG file without a date."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        _lay_out(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Computes the layout once. Otherwise every file of the figure would compute it again."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _color(position: int) -> dict[str, Any]:
    return {"color": COLORS[position % len(COLORS)]}


def _distance_label(norm: NormName) -> str:
    return f"{NORM_LABELS[norm]} distance ε ({NORMS[norm].unit})"


def _costs(run: Run, norm: NormName, defense: str) -> Iterator[tuple[float, float]]:
    """Yields mean passes and finite median distance of each minimal attack on a defense."""
    for row in run.attack_rows(norm):
        records = run.cell_records(row.cells[defense]) if defense in row.cells and row.epsilon is None else None
        if records is not None:
            passes, _ = passes_and_seconds(run, row, defense)
            median = median_distance(records[norm.lower()].dropna())
            if np.isfinite(median) and passes > 0:
                yield passes, median


def _right_end(distances: Sequence[ArrayLike], threshold: float) -> float:
    """Returns the end of the distance axis, at which almost all finite distances and the threshold are visible."""
    finite = np.concatenate([np.zeros(1), *(np.asarray(d, float)[np.isfinite(d)] for d in distances)])
    return max(1.5 * threshold, float(np.quantile(finite, 0.95)))
