"""Tables with published numbers beside the measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reports.measures.facts import NormFacts
from reports.measures.numbers import Numbers
from reports.published.numbers import PAPERS, Published, published_numbers
from reports.tables.registry import table
from reports.tables.summary import summary_table
from reports.tables.table import Table, TableCell, laid_out


@table("published", per="norm", order=40, heading="Beside published numbers")
def published_tables(numbers: Numbers, norm: NormFacts) -> list[Table]:
    """Builds the part of the summary that a paper has numbers for, once for each paper that has some."""
    summary = summary_table(numbers, norm)
    return beside(summary, {paper: published_numbers(numbers, norm, paper) for paper in numbers.papers})


def beside(table: Table, published: Mapping[str, Published]) -> list[Table]:
    """Returns the part of ``table`` for which a paper has numbers, with these numbers in its cells.

    Papers without numbers for the table are left out. ``published`` is keyed by paper.
    """
    shown = (_with_published(table, own, paper) for paper, own in published.items())
    return [each for each in shown if each is not None]


def _with_published(table: Table, numbers: Published, paper: str) -> Table | None:
    rows = [str(row) for row in table.frame.index if any(str(row) == label for label, _ in numbers)]
    columns = [str(column) for column in table.frame if any(str(column) == name for _, name in numbers)]
    if not rows:
        return None
    shown = {row: [_cell(table.row(row)[column], numbers, row, column) for column in columns] for row in rows}
    return replace(
        table,
        name=f"{table.name.replace('summary', 'published')}_{paper}",
        title=f"{table.title}, beside published numbers",
        caption=f"{table.caption} In parentheses: {PAPERS[paper].reference}.",
        frame=laid_out(str(table.frame.index.name), columns, shown),
        rules=tuple(i for i, row in enumerate(rows) if list(table.frame.index).index(row) in table.rules),
    )


def _cell(cell: TableCell, numbers: Published, row: str, column: str) -> TableCell:
    published = numbers.get((row, column))
    if published is None:
        return cell
    return replace(cell, published=published.values, notes=(*cell.notes, *published.notes))
