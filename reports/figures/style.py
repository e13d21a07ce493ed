"""What the figures have in common: colors, fonts, axes and files. The same figure gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from reports.measures.facts import NormFacts
from reports.runs.labels import UNITS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, whose colors color-blind readers can tell apart.

Its yellow is left out because it is too light for lines.
"""
LINE_STYLES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
THRESHOLD_LINE: dict[str, Any] = {"color": "#555555", "linewidth": 0.8, "linestyle": (0, (2, 2))}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.hashsalt": "assay",
    "svg.fonttype": "path",
}


def color(position: int) -> dict[str, Any]:
    """Returns the color of a defense by its position, for a plotting function."""
    return {"color": COLORS[position % len(COLORS)]}


def distance_label(norm: NormFacts) -> str:
    """Returns the label of an axis of distances."""
    return f"{norm.label} distance ε ({UNITS[norm.norm]})"


def right_end(distances: Sequence[ArrayLike], threshold: float) -> float:
    """Returns the end of the distance axis, at which almost all finite distances and the threshold are visible."""
    finite = np.concatenate([np.zeros(1), *(np.asarray(d, float)[np.isfinite(d)] for d in distances)])
    return max(1.5 * threshold, float(np.quantile(finite, 0.95)))


def write_figure(figure: Figure, stem: Path) -> None:
    """Writes a figure as ``stem`` with the suffixes ``.pdf`` and ``.png``, without a date in either file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        _lay_out(figure)
        figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None})
        figure.savefig(stem.with_suffix(".png"), dpi=200)


def to_svg(figure: Figure) -> bytes:
    """Returns a figure as an SVG file without a date."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        _lay_out(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Computes the layout once. Otherwise every file of the figure would compute it again."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
