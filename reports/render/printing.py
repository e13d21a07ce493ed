"""Tables in print: cells as text, and footnotes collected and marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isinf, isnan

from reports.statistics.estimates import Estimate
from reports.tables.table import Quantity, Table, TableCell


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

    def print_cell(cell: TableCell) -> PrintedCell:
        return PrintedCell(
            text=cell.text or print_numbers(cell.values, table.quantities),
            words=bool(cell.text and table.quantities),
            published=print_published(cell.published, table.quantities),
            marks=(*marks(cell.notes, notes), *(f"†{mark}" for mark in marks(cell.doubts, doubts))),
            significant=cell.significant,
        )

    rows = [(label, [print_cell(cell) for cell in cells]) for label, cells in rows_of(table)]
    header = [str(table.frame.index.name), *map(str, table.frame.columns)]
    footnotes = {mark: note for note, mark in notes.items()} | {f"†{mark}": sign for sign, mark in doubts.items()}
    return PrintedTable(header, rows, footnotes)


def print_numbers(values: Mapping[str, Estimate], quantities: Sequence[Quantity]) -> str:
    """Prints numbers as in a paper, separated by slashes; NaN is left out.

    >>> values = {"median": Estimate(float("inf")), "accuracy": Estimate(0.5)}
    >>> print_numbers(values, (Quantity("median", 2), Quantity("accuracy", percent=True)))
    '∞ / 50%'
    """
    shown = [(values[quantity.name], quantity) for quantity in quantities if quantity.name in values]
    return " / ".join(_print_estimate(estimate, quantity) for estimate, quantity in shown if not isnan(estimate.value))


def print_published(values: Mapping[str, float], quantities: Sequence[Quantity]) -> str:
    """Prints numbers like `print_numbers`, with as many digits as the publication gives (at most four significant
    ones).

    >>> print_published({"median": 1.1, "accuracy": 0.991}, (Quantity("median", 2), Quantity("accuracy", percent=True)))
    '1.1 / 99.1%'
    """
    shown = [(values[quantity.name], quantity) for quantity in quantities if quantity.name in values]
    texts = [
        f"{100 * value:.4g}%" if quantity.percent else f"{value:.4g}" for value, quantity in shown if not isnan(value)
    ]
    return " / ".join(texts).replace("inf", "∞")


def rows_of(table: Table) -> Iterator[tuple[str, list[TableCell]]]:
    """Yields the label and the cells of each row."""
    for label, cells in zip(table.frame.index, table.frame.to_numpy(), strict=True):
        yield str(label), list(cells)


def _mark(position: int) -> str:
    """Returns the mark of a position: a, b, ..., z, aa, ab, ..."""
    first, last = divmod(position, 26)
    return (_mark(first - 1) if first else "") + chr(ord("a") + last)


def _mark_order(mark: str) -> tuple[int, str]:
    return len(mark), mark


def _print_estimate(estimate: Estimate, quantity: Quantity) -> str:
    text = _print_number(estimate.value, quantity)
    if not quantity.interval or isnan(estimate.low):
        return text
    return f"{text} [{', '.join(_print_number(end, quantity) for end in (estimate.low, estimate.high))}]"


def _print_number(value: float, quantity: Quantity) -> str:
    sign, size = "−" if value < 0 else "", abs(value)
    if isinf(value):
        return f"{sign}∞"
    if quantity.percent:
        text = f"{100 * size:.{quantity.decimals}f}%"
    elif quantity.decimals and 0 < size < 10.0**-quantity.decimals:
        text = f"<{10.0**-quantity.decimals:g}"
    else:
        text = f"{size:.{quantity.decimals}f}"
    return text if float(text.strip("<%")) == 0 else sign + text
