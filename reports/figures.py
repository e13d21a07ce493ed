"""Figures for print: accuracy-distortion curves. The same run gives the same bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bench.norms import Norm
from reports.runs import Run
from reports.statistics import accuracy_distortion_curve, smallest_adversarials
from reports.tables import NORM_LABELS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which is too light for lines: told apart by colour-blind readers."""
LINE_STYLES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
UNITS: dict[Norm, str] = {"L0": "pixels", "L2": "intensity", "Linf": "intensity"}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.hashsalt": "assay",
    "svg.fonttype": "path",
}
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def curve_figure(run: Run, norm: Norm) -> Figure:
    """Accuracy against epsilon under the per-sample minimum over attacks (Schott et al. 2019, Figure 2).

    A defense of which an image's distance is unknown (failed attacks) has no curve; the legend says so.
    """
    by_defense = dict(list(smallest_adversarials(run.records, norm).groupby("defense")["distance"]))
    known = {name: values for name, values in by_defense.items() if values.notna().all()}
    right = _right_end(list(known.values()), run.threshold(norm))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 3.3 + 0.1 * len(run.defenses)), layout="constrained")
        axes = figure.add_subplot()
        for i, defense in enumerate(run.defenses):
            style: dict[str, Any] = {
                "color": COLORS[i % len(COLORS)],
                "linestyle": LINE_STYLES[i % len(LINE_STYLES)],
                "linewidth": 1.6,
            }
            if defense in known:
                epsilons, accuracies = accuracy_distortion_curve(known[defense])
                end = max(right, epsilons[-1])
                axes.step([*epsilons, end], [*accuracies, accuracies[-1]], where="post", label=defense, **style)
            else:
                reason = "unknown" if defense in by_defense else "no results"
                axes.plot([], [], label=f"{defense} ({reason})", **style)
        axes.axvline(run.threshold(norm), color="#555555", linewidth=0.8, linestyle=(0, (2, 2)))
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
            xlabel=f"{NORM_LABELS[norm]} distance ε ({UNITS[norm]})",
            ylabel="accuracy",
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def write_figure(figure: Figure, stem: Path) -> None:
    """Writes a figure as ``stem`` with ``.svg``, ``.pdf`` and ``.png`` behind it, without a date in any."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for file_format, metadata in _UNDATED.items():
            figure.savefig(stem.with_suffix(f".{file_format}"), dpi=200, metadata=metadata)


def to_svg(figure: Figure) -> bytes:
    """A figure as the SVG file that `write_figure` writes."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata=_UNDATED["svg"])
    return buffer.getvalue()


def _right_end(distances: list[pd.Series], threshold: float) -> float:
    """Where the axis ends: almost all finite distances and the threshold are in sight."""
    finite = np.concatenate([np.zeros(1), *(values[np.isfinite(values)] for values in distances)])
    return max(1.5 * threshold, float(np.quantile(finite, 0.95)))
