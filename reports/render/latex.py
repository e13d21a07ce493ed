"""Tables as LaTeX."""

from __future__ import annotations

import re
import unicodedata

from reports.render.printing import PrintedCell, print_table
from reports.tables.table import Quantity, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "∞": r"$\infty$",
    "ε": r"$\epsilon$",
    "α": r"$\alpha$",
    "σ": r"$\sigma$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "−": "$-$",
    "†": r"\dag{}",
    **{character: f"${character}$" for character in "<>|"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_PLAIN_LATEX = set("–—‘’“”·×±") | {chr(code) for code in (*range(0x20, 0x7F), *range(0xC0, 0x180))}
"""Characters that LaTeX sets as they are: ASCII, accented Latin letters and some punctuation."""


def to_latex(table: Table) -> str:
    r"""Renders a table as a ``table`` float for a document with ``\usepackage{booktabs,siunitx}``.

    Its label is ``tab:`` and the table's name. Numbers are siunitx's ``\num``, so ``\sisetup`` controls how all of them
    look.
    """
    shown = print_table(table)
    columns = "".join(_latex_column(name, table) for name in shown.header[1:])
    lines = [
        r"% needs \usepackage{booktabs,siunitx}",
        r"\begin{table}[htbp]",
        r"\centering",
        r"\setlength{\belowcaptionskip}{6pt}",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{3pt}",
        r"\sisetup{text-series-to-math=true,reset-text-series=false}",  # bold numbers stay bold
        rf"\makebox[\linewidth][c]{{\begin{{tabular}}{{@{{}}l{columns}@{{}}}}",  # wide tables stick out on both sides
        r"\toprule",
        _latex_row([_stack(_wrapped(name, 10)) for name in shown.header]),
        r"\midrule",
    ]
    for position, (label, cells) in enumerate(shown.rows):
        if position in table.rules:
            lines.append(r"\midrule")
        elif r"\begin" in lines[-1]:
            lines.append(r"\addlinespace[2pt]")
        texts = [
            rf"\raggedright {escape_latex(cell.text)}" if name in table.prose else _latex_cell(cell, table.quantities)
            for cell, name in zip(cells, shown.header[1:], strict=True)
        ]
        lines.append(_latex_row([_stack(_wrapped(label, 17), "l"), *texts]))
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if shown.notes:
        notes = " ".join(
            rf"\textsuperscript{{{escape_latex(mark)}}}~{escape_latex(note)}." for mark, note in shown.notes.items()
        )
        lines.append(rf"\par\smallskip\parbox{{\linewidth}}{{\raggedright {notes}}}")
    return "\n".join([*lines, r"\end{table}", ""])


def escape_latex(text: str) -> str:
    r"""Escapes text for LaTeX's text mode.

    A character that LaTeX has no glyph for becomes its nearest ASCII, or ``?``.

    >>> print(escape_latex("binary_cnn, L∞ ≤ 30%"))
    binary\_cnn, $L_\infty$ $\le$ 30\%
    """
    text = "".join(_LATEX.get(character) or _latex_glyph(character) for character in text)
    return re.sub(r"\bL(\d)\b", r"$L_\1$", text.replace(r"L$\infty$", r"$L_\infty$"))


def _latex_column(name: str, table: Table) -> str:
    return rf"p{{{0.42 / len(table.prose):.2f}\linewidth}}" if name in table.prose else "c"


def _latex_row(texts: list[str]) -> str:
    return " & ".join(texts) + r" \tabularnewline"


def _latex_cell(cell: PrintedCell, quantities: tuple[Quantity, ...]) -> str:
    marks = rf"\textsuperscript{{{escape_latex(','.join(cell.marks))}}}" if cell.marks else ""
    published = [_latex_numbers(f"({cell.published})")] if cell.published else []
    numbers = quantities and not cell.words
    lines = _wrapped(cell.text) if cell.words else _in_lines(cell.text)
    measured = [*map(_latex_numbers, lines)] if numbers else _escaped(lines)
    text = _stacked([*measured, *published])
    return (rf"\textbf{{{text}}}" if cell.significant else text) + marks


def _latex_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", r"\\num{\g<0>}", escape_latex(text).replace(" / ", r"\,/\,"))


def _stack(lines: list[str], alignment: str = "c") -> str:
    return _stacked(_escaped(lines), alignment)


def _escaped(lines: list[str]) -> list[str]:
    return [escape_latex(line).replace(" / ", r"\,/\,") for line in lines]


def _stacked(lines: list[str], alignment: str = "c") -> str:
    # LaTeX reads an opening bracket after a line break as the length of a space.
    stack = r"\\".join(re.sub(r"^(?=[\[*])", "{}", line) for line in lines)
    return stack if len(lines) == 1 else rf"\begin{{tabular}}[t]{{@{{}}{alignment}@{{}}}}{stack}\end{{tabular}}"


def _in_lines(text: str, width: int = 14) -> list[str]:
    """Splits numbers at slashes into lines of at most ``width`` characters, if possible.

    A line break replaces the slash. Text without slashes or brackets is split by `_wrapped`.
    """
    numbers = text.split(" / ")
    if len(numbers) == 1 and "[" not in text:
        return _wrapped(text, width)
    lines = [numbers[0]]
    for number in numbers[1:]:
        joined = f"{lines[-1]} / {number}"
        lines[-1:] = [joined] if len(joined) <= width else [lines[-1], number]
    return lines


def _wrapped(text: str, width: int = 14) -> list[str]:
    """Splits text into lines of at most ``width`` characters if possible.

    It can break after a space, comma, colon, semicolon or underscore.
    """
    lines = [""]
    for piece in re.split(r"(?<=[\s_:,;])", text):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines]


def _latex_glyph(character: str) -> str:
    if character in _PLAIN_LATEX:
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_LATEX.get(c, c) for c in plain) or ("" if character.isspace() else "?")
