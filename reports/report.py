"""The report of a run: every table and figure as a file, and one page that shows them all."""

from __future__ import annotations

from pathlib import Path

from bench.norms import Norm
from reports.figures import curve_figure, write_figure
from reports.gallery import distal_gallery, gallery
from reports.page import Section, page
from reports.published import REFERENCE, published_numbers
from reports.render import to_csv, to_latex, to_markdown
from reports.runs import Run, load_run
from reports.statistics import brackets
from reports.study_tables import bracket_table, detection_table, distal_table
from reports.tables import (
    attacks_table,
    cost_table,
    defenses_table,
    masking_table,
    mcnemar_table,
    ranking_table,
    strength_table,
    summary_table,
    with_published,
)

BRACKET_COLUMNS = ["defense", "sample", "lower_bound", "distance", "certificate", "refuted", "note"]
_RENDERERS = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}


def write_report(run_dir: Path, out_dir: Path) -> Path:
    """Writes the report of the run in ``run_dir`` (which holds ``ledger/``) and returns the path of its page.

    ``out_dir`` receives ``index.html``, each table as ``*.csv``, ``*.md`` and ``*.tex``, and ``figures/``. The same
    ledger gives the same files, byte for byte.

    Raises:
        UserError: when there is no ledger or it is damaged.
    """
    return write_run_report(load_run(run_dir), out_dir)


def write_run_report(run: Run, out_dir: Path) -> Path:
    """`write_report` for a run that is already in memory."""
    out_dir.mkdir(parents=True, exist_ok=True)
    sections = [_section(run, norm, out_dir / "figures") for norm in run.norms]
    appendix = [masking_table(run), cost_table(run), attacks_table(run), defenses_table(run)]
    distals, detected = distal_table(run), detection_table(run)
    for section in sections:
        if section.bracket is not None:
            samples = brackets(run.records, run.study_records("lower_bound"), section.norm)[BRACKET_COLUMNS]
            samples.to_csv(out_dir / f"brackets_{section.norm}.csv", index=False)
    for table in [
        *(table for section in sections for table in section.tables),
        *(table for table in (distals, detected) if table),
        *appendix,
    ]:
        for suffix, renderer in _RENDERERS.items():
            (out_dir / f"{table.name}{suffix}").write_text(renderer(table), encoding="utf-8")
    index = out_dir / "index.html"
    pictures = distal_gallery(run)
    distal = (distals, pictures) if distals and pictures else None
    index.write_text(page(run, sections, [*([detected] if detected else []), *appendix], distal), encoding="utf-8")
    return index


def _section(run: Run, norm: Norm, figures: Path) -> Section:
    curves = figures / f"curves_{norm}"
    write_figure(curve_figure(run, norm), curves)
    summary = summary_table(run, norm)
    return Section(
        norm=norm,
        summary=summary,
        published=with_published(summary, published_numbers(run, norm), REFERENCE),
        strength=strength_table(run, norm),
        mcnemar=mcnemar_table(run, norm) if len(run.defenses) > 1 else None,
        ranking=ranking_table(run, norm),
        bracket=bracket_table(run, norm),
        curves=curves.with_suffix(".svg").read_bytes(),
        gallery=gallery(run, norm),
    )
