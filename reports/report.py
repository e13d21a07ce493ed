"""The report of a run: every table and figure as a file, and one page that shows all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.contracts.errors import unknown
from bench.contracts.norms import NormName
from reports.figures.drawing import draw
from reports.figures.figures import curve_figure, plots
from reports.figures.gallery import distal_gallery, gallery, gallery_figure, quantile_gallery, reconstruction_gallery
from reports.published.numbers import PAPERS, Numbers, published_detection, published_numbers
from reports.render.leaderboard import leaderboard
from reports.render.page import Section, page
from reports.render.renderers import to_csv, to_latex, to_markdown
from reports.runs.run import Run, load_run
from reports.tables.accuracies import ablation_tables, accuracy_table
from reports.tables.appendix import attacks_table, cost_table, defenses_table, masking_table
from reports.tables.pairwise import baseline_table, mcnemar_table
from reports.tables.ranking import ranking_table
from reports.tables.strength import strength_table
from reports.tables.studies import bracket_table, detection_table, distal_table
from reports.tables.summary import summary_table, with_published
from reports.tables.sweeps import sweep_table, sweeps
from reports.tables.table import Table

BRACKET_COLUMNS = ["defense", "sample", "lower_bound", "distance", "certificate", "refuted", "untested", "note"]
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
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS, "--format")
    for name in papers:
        if name not in PAPERS:
            raise unknown("paper", name, PAPERS, "--published")
    if baseline is not None and baseline not in run.defenses:
        raise unknown("defense", baseline, run.defenses, "--baseline")
    out_dir.mkdir(parents=True, exist_ok=True)
    sections = [_section(run, norm, baseline, papers) for norm in run.norms]
    accuracies = accuracy_table(
        run, {each.norm: each.summary for each in sections}, {each.norm: each.strength for each in sections}
    )
    distals, detected = distal_table(run), detection_table(run)
    pictures = distal_gallery(run)
    appendix = [accuracies, *ablation_tables(run, accuracies)] if run.norms else []
    if detected:
        numbers = ((paper, published_detection(run, paper)) for paper in papers)
        appendix += [detected, *_beside(detected, numbers)]
    appendix += [masking_table(run), cost_table(run), attacks_table(run), defenses_table(run)]
    tables = [table for section in sections for table in section.tables] + ([distals] if distals else []) + appendix
    for name in formats:
        for table in tables if name in _RENDERERS else ():
            (out_dir / f"{table.name}.{name}").write_text(_RENDERERS[name](table), encoding="utf-8")
    if "csv" in formats:
        _write_brackets(run, sections, out_dir)
        options = {"norms": run.norms, "attacks": run.chosen, "baseline": baseline}
        (out_dir / OPTIONS).write_text(json.dumps(options, indent=1), encoding="utf-8")
    shown = {name: figure for section in sections for name, figure in section.figures.items()}
    figures = dict(shown)
    if "figures" in formats:
        galleries = [each for section in sections for each in section.galleries] + ([pictures] if pictures else [])
        figures |= {each.name: gallery_figure(each) for each in galleries if each.rows and each.defenses}
    drawn = draw(
        figures,
        out_dir / "figures" if "figures" in formats else None,
        shown if "html" in formats else (),
        processes,
    )
    if "html" not in formats:
        return out_dir
    index = out_dir / "index.html"
    distal = (distals, pictures) if distals and pictures else None
    index.write_text(page(run, sections, drawn, appendix, distal, formats), encoding="utf-8")
    return index


def _write_brackets(run: Run, sections: Sequence[Section], out_dir: Path) -> None:
    for section in sections:
        if section.bracket is not None:
            samples = run.brackets(section.norm)[BRACKET_COLUMNS]
            samples.to_csv(out_dir / f"brackets_{section.norm}.csv", index=False)


def _beside(table: Table, numbers: Iterable[tuple[str, Numbers]]) -> list[Table]:
    """Returns the table with published numbers, once for each paper that has some for it."""
    shown = (with_published(table, own, paper, PAPERS[paper].reference) for paper, own in numbers)
    return [each for each in shown if each is not None]


def _section(run: Run, norm: NormName, baseline: str | None, papers: Sequence[str]) -> Section:
    summary, defenses = summary_table(run, norm), run.defenses_in(norm)
    return Section(
        norm=norm,
        leaderboard=leaderboard(run, norm),
        summary=summary,
        published=_beside(summary, ((paper, published_numbers(run, norm, paper)) for paper in papers)),
        strength=strength_table(run, norm),
        mcnemar=mcnemar_table(run, norm) if len(defenses) > 1 else None,
        baseline=baseline_table(run, norm, baseline) if baseline in defenses and len(defenses) > 1 else None,
        ranking=ranking_table(run, norm),
        sweeps=[sweep_table(run, norm, parameter, sweep) for parameter, sweep in sweeps(run, norm)],
        bracket=bracket_table(run, norm),
        curves=curve_figure(run, norm),
        plots=plots(run, norm),
        gallery=gallery(run, norm),
        quantiles=quantile_gallery(run, norm),
        reconstructions=reconstruction_gallery(run, norm),
    )
