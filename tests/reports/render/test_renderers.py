"""Renderers are guarded by golden files. To write them anew, after looking at the difference:

ASSAY_WRITE_GOLDEN=1 pytest tests/reports/render/test_renderers.py
"""

import os
import subprocess
from pathlib import Path

import pytest
from reading import estimates, one_cell, table_of, tables_of
from synthetic_runs import every_defense, every_status, random_answers, studied

from reports.render.csv import to_csv
from reports.render.latex import to_latex
from reports.render.markdown import to_markdown
from reports.tables.table import TableCell

GOLDEN = Path(__file__).with_name("golden")
RENDERERS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}


def tables():
    run = every_status()
    per_norm = [
        table for norm in run.norms for table in (table_of(run, "summary", norm), table_of(run, "mcnemar", norm))
    ]
    return [
        *per_norm,
        table_of(run, "strength", "L2"),
        table_of(random_answers(), "strength", "Linf"),
        table_of(run, "ranking", "L2"),
        table_of(run, "masking"),
        table_of(run, "attacks"),
        table_of(run, "cost"),
        table_of(run, "defenses"),
        table_of(every_defense(samples=20, dataset="mnist"), "published", "L2", papers=["schott2019"]),
        table_of(studied(), "bracket", "L2"),
        table_of(studied(), "distal"),
        table_of(studied(), "detection"),
        table_of(run, "accuracy"),
        *tables_of(studied(), "ablation"),
    ]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.name)
@pytest.mark.parametrize("kind", RENDERERS)
def test_rendering_is_the_golden_file(table, kind):
    golden = GOLDEN / f"{table.name}.{kind}"
    text = RENDERERS[kind](table)
    if os.environ.get("ASSAY_WRITE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_what_is_significant_is_bold_in_print():
    table = one_cell(TableCell(estimates(0.001, 0.5), significant=True))
    assert "**<0.01 / 50%**" in to_markdown(table).replace("\\", "")
    assert r"\textbf{$<$\num{0.01}\,/\,\num{50}\%}" in to_latex(table)


@pytest.mark.needs("pdflatex")
def test_latex_compiles_with_booktabs_and_siunitx(tmp_path):
    awkward = one_cell(
        TableCell(text="n/a", notes=("exception: 100% of C:\\a_b^c~d|e<f>{g}$h#i&j «k» 你好 β ∞ “l” é",))
    )
    inputs = []
    for table in [*tables(), awkward]:
        (tmp_path / f"{table.name}.tex").write_text(to_latex(table), encoding="utf-8")
        inputs.append(rf"\input{{{table.name}}}")
    document = [
        r"\documentclass{article}\usepackage{booktabs,siunitx}",
        rf"\begin{{document}}{' '.join(inputs)}\end{{document}}",
    ]
    (tmp_path / "paper.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "Missing character" not in log
