"""The report's page: one self-contained HTML file that opens from disk."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from matplotlib.figure import Figure

from bench.contracts.norms import NormName
from bench.ledger.manifest import Manifest
from reports.evidence.problems import problems
from reports.figures.figures import Plot
from reports.figures.gallery import Gallery
from reports.render.renderers import print_table
from reports.runs.labels import NORM_LABELS
from reports.runs.run import Run
from reports.tables.table import Table

TABLE_FILES = {"csv": "CSV", "md": "Markdown", "tex": "LaTeX"}
"""File name extensions of a table, with the name of each format."""


@dataclass(frozen=True)
class Section:
    """A section: what the page shows of one norm.

    Attributes:
        norm: the norm.
        leaderboard: data that the reader can compute with (`reports.render.leaderboard`); empty if there is none.
        summary: median distances and accuracies.
        published: parts of the summary with published numbers beside them, one for each paper that has some.
        strength: the summary with intervals and costs.
        mcnemar: the pairwise tests; None for fewer than two defenses.
        baseline: the comparison of every other defense with the baseline; None if none was named.
        ranking: the minimal attacks, strongest first; None if there are none.
        sweeps: accuracies as a parameter of an attack grows.
        bracket: lower bounds beside the smallest adversarial examples; None if there are no lower bounds.
        curves: accuracy-distortion curves.
        plots: other figures.
        gallery: the smallest adversarial examples.
        quantiles: adversarial examples from the nearest to the farthest.
        reconstructions: reconstructions of images and adversarial examples; None if they were not studied.
    """

    norm: NormName
    leaderboard: dict[str, Any]
    summary: Table
    published: list[Table]
    strength: Table
    mcnemar: Table | None
    baseline: Table | None
    ranking: Table | None
    sweeps: list[Table]
    bracket: Table | None
    curves: Figure
    plots: list[Plot]
    gallery: Gallery
    quantiles: Gallery
    reconstructions: Gallery | None

    @property
    def label(self) -> str:
        """The norm's name in print."""
        return NORM_LABELS[self.norm]

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures by name, the stem of their files."""
        return {f"curves_{self.norm}": self.curves, **{plot.name: plot.figure for plot in self.plots}}

    @property
    def galleries(self) -> list[Gallery]:
        """All galleries of the section."""
        return [self.gallery, self.quantiles, *([self.reconstructions] if self.reconstructions else [])]

    @property
    def tables(self) -> list[Table]:
        """All tables of the section."""
        others = (self.mcnemar, self.baseline, self.bracket, self.strength, self.ranking)
        return [self.summary, *self.published, *(table for table in others if table is not None), *self.sweeps]


def page(
    run: Run,
    sections: Sequence[Section],
    drawn: Mapping[str, bytes],
    appendix: Sequence[Table],
    distal: tuple[Table, Gallery] | None = None,
    files: Sequence[str] = (),
) -> str:
    """Renders the page as HTML.

    The page shows ``sections`` in order, with their figures as ``drawn`` (SVG files by name). Then follow the distal
    adversarial examples, if they were studied, and the tables of ``appendix``. The last part says where the numbers
    come from. ``files`` are the formats in which each table is stored beside the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(print_table=print_table, svg_uri=lambda name: svg_uri(drawn[name]))
    return environment.get_template("index.html.j2").render(
        run=run,
        sections=sections,
        appendix=appendix,
        distal=distal,
        problems=problems(run),
        files=[(ending, name) for ending, name in TABLE_FILES.items() if ending in files],
        thresholds=", ".join(f"{NORM_LABELS[norm]} {run.threshold(norm):g}" for norm in run.norms),
        provenance=_provenance(run.manifest),
    )


def svg_uri(svg: bytes) -> str:
    """Returns an SVG file as a ``data:`` URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _provenance(manifest: Manifest) -> dict[str, str]:
    """Returns the name and value of everything that says where the results come from."""
    facts = {"matrix": manifest.matrix, "cells": len(manifest.cells), **manifest.provenance}
    return {name: _fact(value) for name, value in facts.items() if value not in ("", None)}


def _fact(value: object) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, Mapping) else str(value)
