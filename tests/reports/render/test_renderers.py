"""Renderers are guarded by golden files. To write them anew, after looking at the difference:

ASSAY_WRITE_GOLDEN=1 pytest tests/reports/test_render.py
"""

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reading import table_of, tables_of
from synthetic_runs import INF, NAN, every_defense, every_status, random_answers, studied

from reports.render.csv import to_csv
from reports.render.latex import escape_latex, to_latex
from reports.render.markdown import to_markdown
from reports.render.printing import print_numbers, print_published, print_table
from reports.statistics.estimates import Estimate
from reports.tables.table import Quantity, Table, TableCell

GOLDEN = Path(__file__).with_name("golden")
RENDERERS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
MEDIAN, ACCURACY = Quantity("median", 2), Quantity("accuracy", percent=True)


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


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.234, 0.5), "1.23 / 50%"),
        ((INF, 1.0), "∞ / 100%"),
        ((NAN, 0.25), "25%"),
        ((0.0, 0.0), "0.00 / 0%"),
        ((0.001, 0.125), "<0.01 / 12%"),
        ((-INF, -0.25), "−∞ / −25%"),
        ((-0.5, -0.001), "−0.50 / 0%"),
        ((-0.001, 0.0), "−<0.01 / 0%"),
        ((), ""),
    ],
)
def test_numbers_are_printed_as_in_a_paper(values, text):
    assert print_numbers(estimates(*values), (MEDIAN, ACCURACY)) == text


def estimates(median=NAN, accuracy=NAN):
    return {"median": Estimate(median), "accuracy": Estimate(accuracy)}


def test_an_interval_stands_in_brackets_behind_its_number():
    quantities = (
        Quantity("median", 1, interval=True),
        Quantity("accuracy", percent=True, interval=True),
        Quantity("passes"),
    )
    values = {"median": Estimate(1.0, 0.5, INF), "accuracy": Estimate(0.5, 0.25, 0.75), "passes": Estimate(3.0)}
    assert print_numbers(values, quantities) == "1.0 [0.5, ∞] / 50% [25%, 75%] / 3"
    assert print_numbers({"median": Estimate(NAN), "accuracy": Estimate(0.5)}, quantities) == "50%"
    table = one_cell(TableCell(values), quantities=quantities)
    header, numbers = to_csv(table).splitlines()
    assert header.count(",") == numbers.count(",") == 7
    assert "median,cnn median low,cnn median high," in header


def test_no_line_of_a_latex_cell_begins_with_a_bracket():
    """Behind a line's end it would be the length of a space; pdfTeX does not come back from that."""
    quantities = (Quantity("median", 1, interval=True), Quantity("passes"))
    latex = to_latex(
        one_cell(TableCell({"median": Estimate(1.0, 0.5, INF), "passes": Estimate(1234.0)}), quantities=quantities)
    )
    assert r"\num{1.0} [\num{0.5}, $\infty$]\\\num{1234}" in latex
    assert r"\\{}[a b]" in to_latex(one_cell(TableCell(text="fourteen words [a b]")))


def test_what_is_significant_is_bold_in_print():
    table = one_cell(TableCell(estimates(0.001, 0.5), significant=True))
    assert "**<0.01 / 50%**" in to_markdown(table).replace("\\", "")
    assert r"\textbf{$<$\num{0.01}\,/\,\num{50}\%}" in to_latex(table)


def test_published_numbers_keep_their_own_digits():
    assert print_published({"median": 1.1, "accuracy": 0.991}, (MEDIAN, ACCURACY)) == "1.1 / 99.1%"
    assert print_published({"median": INF, "accuracy": NAN}, (MEDIAN, ACCURACY)) == "∞"


def one_cell(cell, **changes):
    frame = pd.DataFrame([[cell]], index=pd.Index(["row"], name="attack"), columns=["cnn"], dtype=object)
    return Table("name", "Title", "Caption.", frame, **{"quantities": (MEDIAN, ACCURACY), **changes})


def test_equal_footnotes_share_a_mark():
    cells = [[TableCell(text="n/a", notes=("why",)), TableCell(text="n/a", notes=("else", "why"))]]
    frame = pd.DataFrame(cells, index=pd.Index(["row"], name="attack"), columns=["a", "b"], dtype=object)
    shown = print_table(Table("name", "Title", "Caption.", frame, (MEDIAN,)))
    assert shown.notes == {"a": "why", "b": "else"}
    assert [cell.marks for cell in shown.rows[0][1]] == [("a",), ("a", "b")]


def test_more_footnotes_than_letters_have_marks():
    shown = print_table(one_cell(TableCell(estimates(1.0, 1.0), notes=tuple(f"note {i}" for i in range(30)))))
    assert list(shown.notes)[24:28] == ["y", "z", "aa", "ab"]
    assert shown.rows[0][1][0].marks[-4:] == ("aa", "ab", "ac", "ad")


def test_csv_holds_numbers_that_pandas_reads_back():
    frame = pd.read_csv(io.StringIO(to_csv(table_of(every_status(), "summary", "L0"))), index_col="attack")
    assert frame.loc["pointwise", "cnn median"] == 8
    assert np.isinf(frame.loc["pointwise", "binary_cnn median"])
    assert frame.loc["pointwise", "binary_cnn accuracy"] == 0.8
    assert np.isnan(frame.loc["clean", "cnn median"])


def test_csv_has_published_numbers_in_columns_of_their_own():
    text = to_csv(one_cell(TableCell(estimates(1.5, 0.5), published={"median": 1.1, "accuracy": NAN})))
    header, row = text.splitlines()
    assert header == "attack,cnn median,cnn accuracy,cnn published median,cnn published accuracy"
    assert row == "row,1.5,0.5,1.1,"


def test_markdown_escapes_what_would_break_the_table():
    text = to_markdown(one_cell(TableCell(text="a|b *c* <d>\n`e`")))
    assert r"| row | a\|b \*c\* \<d> \`e\` |" in text


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("binary_cnn & 50% #1 {x} $", r"binary\_cnn \& 50\% \#1 \{x\} \$"),
        ("L∞ and L2, L0; ABL2", r"$L_\infty$ and $L_2$, $L_0$; ABL2"),
        ("∞ ≤ ε", r"$\infty$ $\le$ $\epsilon$"),
        ("C:\\x ~ ^", r"C:\textbackslash{}x \textasciitilde{} \textasciicircum{}"),
        ("Müller – Moosavi‐Dezfooli", "Müller – Moosavi?Dezfooli"),
        ("ﬁne 你", "fine ?"),
    ],
)
def test_latex_escapes_every_character(text, latex):
    assert escape_latex(text) == latex


needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


@needs_latex
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
