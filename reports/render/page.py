"""The report's page: one self-contained HTML file that opens from disk."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from bench.contracts.norms import NormName
from reports.figures.gallery import Gallery
from reports.figures.registry import Plot
from reports.measures.numbers import Numbers
from reports.render.printing import print_table
from reports.runs.labels import NORM_LABELS
from reports.tables.table import Table

TABLE_FILES = {"csv": "CSV", "md": "Markdown", "tex": "LaTeX"}
"""File name extensions of a table, with the name of each format."""


@dataclass(frozen=True)
class Part:
    """A part of a section: tables and figures under one heading.

    Attributes:
        order: its place; the smallest comes first.
        heading: its heading; empty if it continues the part before.
        tables: its tables.
        plots: its figures.
    """

    order: int
    heading: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class Section:
    """A section: what the page shows of one norm.

    Attributes:
        norm: the norm.
        leaderboard: data that the reader can compute with (`reports.render.leaderboard`); empty if there is none.
        parts: its tables, and the figures among them, in order.
        plots: other figures.
        gallery: the smallest adversarial examples.
        quantiles: adversarial examples from the nearest to the farthest.
        reconstructions: reconstructions of images and adversarial examples; None if they were not studied.
    """

    norm: NormName
    leaderboard: dict[str, Any]
    parts: Sequence[Part]
    plots: Sequence[Plot]
    gallery: Gallery
    quantiles: Gallery
    reconstructions: Gallery | None

    @property
    def label(self) -> str:
        """The norm's name in print."""
        return NORM_LABELS[self.norm]

    @property
    def tables(self) -> list[Table]:
        """All tables of the section."""
        return [table for part in self.parts for table in part.tables]

    @property
    def figures(self) -> list[Plot]:
        """All figures of the section."""
        return [*(plot for part in self.parts for plot in part.plots), *self.plots]

    @property
    def galleries(self) -> list[Gallery]:
        """All galleries of the section."""
        return [self.gallery, self.quantiles, *([self.reconstructions] if self.reconstructions else [])]


def page(
    numbers: Numbers,
    sections: Sequence[Section],
    tables: Sequence[Table],
    drawn: Mapping[str, bytes],
    *,
    galleries: Mapping[str, Gallery],
    files: Sequence[str] = (),
) -> str:
    """Renders the page as HTML.

    Args:
        numbers: the numbers of the run.
        sections: what is shown of each norm.
        tables: the tables of the run, which follow in sections of their own.
        drawn: the sections' figures as SVG files, by name.
        galleries: pictures below the tables of the run, by the table's name.
        files: the formats in which each table is stored beside the page.
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
        numbers=numbers,
        sections=sections,
        tables=tables,
        galleries=galleries,
        files=[(ending, name) for ending, name in TABLE_FILES.items() if ending in files],
        thresholds=", ".join(f"{norm.label} {norm.threshold:g}" for norm in numbers.norms.values()),
        provenance=_provenance(numbers),
    )


def svg_uri(svg: bytes) -> str:
    """Returns an SVG file as a ``data:`` URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _provenance(numbers: Numbers) -> dict[str, str]:
    """Returns the name and value of everything that says where the results come from."""
    facts = {"matrix": numbers.matrix, "cells": numbers.cells, **numbers.provenance}
    return {name: _fact(value) for name, value in facts.items() if value not in ("", None)}


def _fact(value: object) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, Mapping) else str(value)
