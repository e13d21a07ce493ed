"""The report of a run: every table and figure as a file, and one page that shows all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.contracts.errors import unknown
from reports.figures.drawing import draw
from reports.figures.gallery import (
    Gallery,
    distal_gallery,
    gallery,
    gallery_figure,
    quantile_gallery,
    reconstruction_gallery,
)
from reports.figures.registry import Plot, plots_of_norm
from reports.measures.facts import NormFacts
from reports.measures.measure import measure
from reports.measures.numbers import Numbers
from reports.published.numbers import PAPERS
from reports.render.csv import to_csv
from reports.render.latex import to_latex
from reports.render.leaderboard import leaderboard
from reports.render.markdown import to_markdown
from reports.render.page import Part, Section, page
from reports.runs.run import Run, load_run
from reports.tables.registry import tables_of_norm, tables_of_run

BRACKET_COLUMNS = ["defense", "sample", "lower_bound", "distance", "certificate", "refuted", "untested", "note"]
LAYOUT = 2
"""Version of the tables' columns and words. A report of another version cannot be compared with the ledger."""
OPTIONS = "options.json"
"""File of a report that stores the options chosen for it. Its numbers can be derived again from this file."""
_RENDERERS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
FORMATS = (*_RENDERERS, "figures", "html")
"""The parts of a report. The page embeds its own figures."""


def write_report(run_dir: Path, out_dir: Path, processes: int = 1) -> Path:
    """Writes the report of the run in ``run_dir`` and returns the path of its page.

    ``run_dir`` holds ``ledger/``. ``out_dir`` receives ``index.html``, each table as ``*.csv``, ``*.md`` and ``*.tex``,
    and ``figures/``. The same ledger gives the same files, byte for byte. ``processes`` is the number of processes that
    draw the figures (see `reports.figures.drawing.draw`).

    Raises:
        UserError: when there is no ledger or it is damaged.
    """
    return write_run_report(load_run(run_dir), out_dir, processes=processes)


def write_run_report(
    run: Run,
    out_dir: Path,
    *,
    formats: Sequence[str] = FORMATS,
    baseline: str | None = None,
    papers: Sequence[str] = tuple(PAPERS),
    processes: int = 1,
) -> Path:
    """Writes the report of a run that is already in memory, like `write_report`.

    Returns the path of the page, or ``out_dir`` if no page is written.

    Args:
        run: the run to report.
        out_dir: the folder to write to; created if it does not exist.
        formats: the parts to write (`FORMATS`).
        baseline: a defense that all others are compared with.
        papers: the papers whose numbers are shown beside the run's, where they have some
            (`reports.published.numbers.PAPERS`).
        processes: number of processes that draw the figures (see `reports.figures.drawing.draw`).

    Raises:
        UserError: for a format, a baseline or a paper that does not exist.
    """
    _check(formats, baseline, papers, run.defenses)
    out_dir.mkdir(parents=True, exist_ok=True)
    numbers = measure(run, baseline=baseline, papers=papers)
    sections = [_section(numbers, norm, run) for norm in numbers.norms.values()]
    tables, galleries = tables_of_run(numbers), _galleries(run)
    for name in formats:
        for table in [*(each for section in sections for each in section.tables), *tables]:
            if name in _RENDERERS:
                (out_dir / f"{table.name}.{name}").write_text(_RENDERERS[name](table), encoding="utf-8")
    if "csv" in formats:
        _write_brackets(numbers, out_dir)
        chosen = {"norms": list(numbers.norms), "attacks": numbers.chosen, "baseline": baseline}
        options = {"layout": LAYOUT, **chosen}
        (out_dir / OPTIONS).write_text(json.dumps(options, indent=1), encoding="utf-8")
    pictured = [*(each for section in sections for each in section.galleries), *galleries.values()]
    drawn = _draw(sections, pictured, out_dir / "figures", formats, processes)
    if "html" not in formats:
        return out_dir
    index = out_dir / "index.html"
    index.write_text(page(numbers, sections, tables, drawn, galleries=galleries, files=formats), encoding="utf-8")
    return index


def _check(formats: Sequence[str], baseline: str | None, papers: Sequence[str], defenses: Sequence[str]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS, "--format")
    for name in papers:
        if name not in PAPERS:
            raise unknown("paper", name, PAPERS, "--published")
    if baseline is not None and baseline not in defenses:
        raise unknown("defense", baseline, defenses, "--baseline")


def _section(numbers: Numbers, norm: NormFacts, run: Run) -> Section:
    parts = [Part(card.order, card.heading, tables=tables) for card, tables in tables_of_norm(numbers, norm) if tables]
    plots: list[Plot] = []
    for card, own in plots_of_norm(numbers, norm):
        if not card.heading:
            plots += own
        elif own:
            parts.append(Part(card.order, card.heading, plots=own))
    return Section(
        norm=norm.norm,
        leaderboard=leaderboard(numbers, norm),
        parts=sorted(parts, key=lambda part: part.order),
        plots=plots,
        gallery=gallery(run, norm),
        quantiles=quantile_gallery(run, norm),
        reconstructions=reconstruction_gallery(run, norm.norm),
    )


def _galleries(run: Run) -> dict[str, Gallery]:
    """Returns the pictures that stand below tables of the run, by the table's name."""
    distal = distal_gallery(run)
    return {distal.name: distal} if distal else {}


def _draw(
    sections: Sequence[Section], galleries: Sequence[Gallery], folder: Path, formats: Sequence[str], processes: int
) -> dict[str, bytes]:
    """Writes the figures and galleries if they are wanted, and returns the page's figures as SVG files by name."""
    shown = {plot.name: plot.figure for section in sections for plot in section.figures}
    if "figures" not in formats:
        return draw(shown, None, shown if "html" in formats else (), processes)
    pictured = {each.name: gallery_figure(each) for each in galleries if each.rows and each.defenses}
    return draw(shown | pictured, folder, shown if "html" in formats else (), processes)


def _write_brackets(numbers: Numbers, out_dir: Path) -> None:
    """Writes each image's lower bound and smallest distance."""
    for norm in numbers.norms.values():
        if len(norm.bounds):
            norm.bounds[BRACKET_COLUMNS].to_csv(out_dir / f"brackets_{norm.norm}.csv", index=False)
