"""Tables as LaTeX."""

import pytest
from reading import one_cell
from synthetic_runs import INF

from reports.render.latex import escape_latex, to_latex
from reports.statistics.estimates import Estimate
from reports.tables.table import Quantity, TableCell


def test_no_line_of_a_latex_cell_begins_with_a_bracket():
    """Behind a line's end it would be the length of a space; pdfTeX does not come back from that."""
    quantities = (Quantity("median", 1, interval=True), Quantity("passes"))
    latex = to_latex(
        one_cell(TableCell({"median": Estimate(1.0, 0.5, INF), "passes": Estimate(1234.0)}), quantities=quantities)
    )
    assert r"\num{1.0} [\num{0.5}, $\infty$]\\\num{1234}" in latex
    assert r"\\{}[a b]" in to_latex(one_cell(TableCell(text="fourteen words [a b]")))


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
