"""Tables as Markdown."""

from __future__ import annotations

import re

from reports.render.printing import PrintedCell, print_table
from reports.tables.table import Table


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


def _text(cell: PrintedCell) -> str:
    return " ".join(filter(None, [cell.text, f"({cell.published})" if cell.published else ""]))


def _emphasized(cell: PrintedCell) -> str:
    text = _markdown(_text(cell))
    return f"**{text}**" if cell.significant else text


def _bracketed(marks: tuple[str, ...]) -> str:
    return f" [{', '.join(marks)}]" if marks else ""


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(text.split()))
