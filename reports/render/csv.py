"""Tables as comma-separated values."""

from __future__ import annotations

import csv
import io
from math import isnan

from reports.render.printing import rows_of
from reports.statistics.estimates import MISSING
from reports.tables.table import Quantity, Table, TableCell


def to_csv(table: Table) -> str:
    """Renders a table as comma-separated values.

    Numbers have up to six significant digits. Shares are fractions, infinity is ``inf``, and an empty field means none.

    Each column of the table becomes one column per quantity (``cnn median``, ``cnn accuracy``). Further columns follow
    if any of its cells has an entry: published numbers (``cnn published median``), notes (``cnn note``: text in place
    of numbers, footnotes) and doubts (``cnn doubts``).
    """
    lines = [[label] for label, _ in rows_of(table)]
    header = [str(table.frame.index.name)]
    for position, name in enumerate(map(str, table.frame.columns)):
        cells: list[TableCell] = list(table.frame.iloc[:, position])
        columns = _columns(name, cells, () if name in table.prose else table.quantities)
        header += columns
        for line, *values in zip(lines, *columns.values(), strict=True):
            line += values
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *lines])
    return buffer.getvalue()


def _columns(name: str, cells: list[TableCell], quantities: tuple[Quantity, ...]) -> dict[str, list[str]]:
    """Returns the columns of the file that one column of the table becomes."""
    columns: dict[str, list[str]] = {}
    if not quantities:
        columns[name] = [cell.text for cell in cells]
    for quantity in quantities:
        estimates = [cell.values.get(quantity.name, MISSING) for cell in cells]
        columns[f"{name} {quantity.name}"] = [_full(estimate.value) for estimate in estimates]
        if quantity.interval:
            columns[f"{name} {quantity.name} low"] = [_full(estimate.low) for estimate in estimates]
            columns[f"{name} {quantity.name} high"] = [_full(estimate.high) for estimate in estimates]
    for quantity in quantities if any(cell.published for cell in cells) else ():
        published = [cell.published.get(quantity.name, float("nan")) for cell in cells]
        columns[f"{name} published {quantity.name}"] = [_full(value) for value in published]
    notes = ["; ".join(filter(None, [cell.text if quantities else "", *cell.notes])) for cell in cells]
    if any(notes):
        columns[f"{name} note"] = notes
    if any(cell.doubts for cell in cells):
        columns[f"{name} doubts"] = ["; ".join(cell.doubts) for cell in cells]
    return columns


def _full(value: float) -> str:
    return "" if isnan(value) else f"{value:.6g}"
