"""Renderers: a `reports.tables.table.Table` as CSV, Markdown or LaTeX.

They do not depend on attacks or defenses.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reports.tables.table import Cell, Quantity, Table

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


@dataclass(frozen=True)
class PrintedCell:
    """A cell in print.

    Attributes:
        text: its numbers or text.
        words: whether the text stands in place of numbers.
        published: the published numbers.
        marks: the marks of its footnotes.
        significant: whether it is set off.
    """

    text: str
    words: bool
    published: str
    marks: tuple[str, ...]
    significant: bool


@dataclass(frozen=True)
class PrintedTable:
    """A table in print.

    Attributes:
        header: the heading of the row labels, then the column labels.
        rows: the label and the cells of each row.
        notes: footnotes by mark, in order of first use: a, b, ... and, for doubts, †a, †b, ...
    """

    header: list[str]
    rows: list[tuple[str, list[PrintedCell]]]
    notes: dict[str, str]


def print_table(table: Table) -> PrintedTable:
    """Returns the table with its cells as text and its footnotes collected and marked."""
    notes: dict[str, str] = {}
    doubts: dict[str, str] = {}

    def marks(texts: tuple[str, ...], known: dict[str, str]) -> list[str]:
        return sorted((known.setdefault(text, _mark(len(known))) for text in texts), key=_mark_order)

    def print_cell(cell: Cell) -> PrintedCell:
        return PrintedCell(
            text=cell.text or print_numbers(cell.values, table.quantities),
            words=bool(cell.text and table.quantities),
            published=print_published(cell.published, table.quantities),
            marks=(*marks(cell.notes, notes), *(f"†{mark}" for mark in marks(cell.doubts, doubts))),
            significant=cell.significant,
        )

    rows = [(label, [print_cell(cell) for cell in cells]) for label, cells in _rows(table)]
    header = [str(table.frame.index.name), *map(str, table.frame.columns)]
    footnotes = {mark: note for note, mark in notes.items()} | {f"†{mark}": sign for sign, mark in doubts.items()}
    return PrintedTable(header, rows, footnotes)


def print_numbers(values: tuple[float, ...], quantities: tuple[Quantity, ...]) -> str:
    """Prints numbers as in a paper, separated by slashes; NaN is left out.

    >>> print_numbers((float("inf"), 0.5), (Quantity("median", 2), Quantity("accuracy", percent=True)))
    '∞ / 50%'
    """
    shown = [(place, quantity) for place, quantity in _placed(quantities) if _known(values, place)]
    return " / ".join(_print_quantity(values, place, quantity) for place, quantity in shown)


def print_published(values: tuple[float, ...], quantities: tuple[Quantity, ...]) -> str:
    """Prints numbers like `print_numbers`, with as many digits as the publication gives (at most four significant
    ones).

    >>> print_published((1.1, 0.991), (Quantity("median", 2), Quantity("accuracy", percent=True)))
    '1.1 / 99.1%'
    """
    shown = [pair for pair in zip(values, quantities, strict=False) if not np.isnan(pair[0])]
    texts = [f"{100 * value:.4g}%" if quantity.percent else f"{value:.4g}" for value, quantity in shown]
    return " / ".join(texts).replace("inf", "∞")


def to_csv(table: Table) -> str:
    """Renders a table as comma-separated values.

    Numbers have up to six significant digits. Shares are fractions, infinity is ``inf``, and an empty field means none.

    Each column of the table becomes one column per quantity (``cnn median``, ``cnn accuracy``). Further columns follow
    if any of its cells has an entry: published numbers (``cnn published median``), notes (``cnn note``: text in place
    of numbers, footnotes) and doubts (``cnn doubts``).
    """
    lines = [[label] for label, _ in _rows(table)]
    header = [str(table.frame.index.name)]
    for position, name in enumerate(map(str, table.frame.columns)):
        cells: list[Cell] = list(table.frame.iloc[:, position])
        columns: dict[str, list[str]] = {}
        quantities = () if name in table.prose else table.quantities
        if not quantities:
            columns[name] = [cell.text for cell in cells]
        for i, quantity in _placed(quantities):
            columns[f"{name} {quantity.name}"] = [_full(cell.values, i) for cell in cells]
            for end, place in (("low", i + 1), ("high", i + 2)) if quantity.interval else ():
                columns[f"{name} {quantity.name} {end}"] = [_full(cell.values, place) for cell in cells]
        for i, quantity in enumerate(quantities):
            if any(cell.published for cell in cells):
                columns[f"{name} published {quantity.name}"] = [_full(cell.published, i) for cell in cells]
        notes = ["; ".join(filter(None, [cell.text if quantities else "", *cell.notes])) for cell in cells]
        if any(notes):
            columns[f"{name} note"] = notes
        if any(cell.doubts for cell in cells):
            columns[f"{name} doubts"] = ["; ".join(cell.doubts) for cell in cells]
        header += columns
        for line, *values in zip(lines, *columns.values(), strict=True):
            line += values
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *lines])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """Renders a table as a Markdown pipe table under its title, followed by the caption and footnotes.

    Published numbers are in parentheses.
    """
    shown = print_table(table)
    alignment = [":--"] + [":--" if name in table.prose else ":-:" for name in shown.header[1:]]
    lines = [shown.header, alignment]
    for label, cells in shown.rows:
        lines.append([_markdown(label), *(_emphasized(cell) + _bracketed(cell.marks) for cell in cells)])
    notes = [f"- [{mark}] {_markdown(note)}" for mark, note in shown.notes.items()]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join(
        [f"## {table.title}", "", *body, "", _markdown(table.caption), *([""] if notes else []), *notes, ""]
    )


def to_latex(table: Table) -> str:
    r"""Renders a table as a ``table`` float for a document with ``\usepackage{booktabs,siunitx}``.

    Its label is ``tab:`` and the table's name. Numbers are siunitx's ``\num``, so ``\sisetup`` controls how all of them
    look.
    """
    shown = print_table(table)
    columns = "".join(_latex_column(name, table) for name in shown.header[1:])
    lines = [
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
    return re.sub(r"\bL([02])\b", r"$L_\1$", text.replace(r"L$\infty$", r"$L_\infty$"))


def _rows(table: Table) -> Iterator[tuple[str, list[Cell]]]:
    for label, cells in zip(table.frame.index, table.frame.to_numpy(), strict=True):
        yield str(label), list(cells)


def _mark(position: int) -> str:
    """Returns the mark of a position: a, b, ..., z, aa, ab, ..."""
    first, last = divmod(position, 26)
    return (_mark(first - 1) if first else "") + chr(ord("a") + last)


def _mark_order(mark: str) -> tuple[int, str]:
    return len(mark), mark


def _placed(quantities: tuple[Quantity, ...]) -> Iterator[tuple[int, Quantity]]:
    """Yields the quantities with the position of their number in a cell's values."""
    place = 0
    for quantity in quantities:
        yield place, quantity
        place += 3 if quantity.interval else 1


def _known(values: tuple[float, ...], place: int) -> bool:
    return place < len(values) and not np.isnan(values[place])


def _print_quantity(values: tuple[float, ...], place: int, quantity: Quantity) -> str:
    text = _print_number(values[place], quantity)
    if not quantity.interval or not _known(values, place + 1):
        return text
    return f"{text} [{', '.join(_print_number(end, quantity) for end in values[place + 1 : place + 3])}]"


def _print_number(value: float, quantity: Quantity) -> str:
    sign, size = "−" if value < 0 else "", abs(value)
    if np.isinf(value):
        return f"{sign}∞"
    if quantity.percent:
        text = f"{100 * size:.{quantity.decimals}f}%"
    elif quantity.decimals and 0 < size < 10.0**-quantity.decimals:
        text = f"<{10.0**-quantity.decimals:g}"
    else:
        text = f"{size:.{quantity.decimals}f}"
    return text if float(text.strip("<%")) == 0 else sign + text


def _full(values: tuple[float, ...], position: int) -> str:
    return f"{values[position]:.6g}" if _known(values, position) else ""


def _text(cell: PrintedCell) -> str:
    return " ".join(filter(None, [cell.text, f"({cell.published})" if cell.published else ""]))


def _emphasized(cell: PrintedCell) -> str:
    text = _markdown(_text(cell))
    return f"**{text}**" if cell.significant else text


def _bracketed(marks: tuple[str, ...]) -> str:
    return f" [{', '.join(marks)}]" if marks else ""


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(text.split()))


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
