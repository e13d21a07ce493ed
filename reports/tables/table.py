"""A table, its cells and its quantities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from reports.statistics.estimates import Estimate


@dataclass(frozen=True)
class Quantity:
    """A quantity: one of the numbers in a table's cells. Shares and p-values are fractions in [0, 1].

    Attributes:
        name: its name in cells and in data files.
        decimals: number of digits after the point, in print.
        percent: whether it is printed as a percentage.
        interval: whether the ends of its confidence interval are shown.
    """

    name: str
    decimals: int = 0
    percent: bool = False
    interval: bool = False


@dataclass(frozen=True)
class TableCell:
    """What one place of a table says.

    Attributes:
        values: the number of each of the table's quantities that applies, by name.
        text: what is shown instead of numbers.
        notes: footnotes.
        doubts: footnotes behind a dagger that say why the numbers may be too good.
        published: a publication's numbers for the same quantities, by name.
        significant: whether the cell is set off in print, as the caption explains.
    """

    values: Mapping[str, Estimate] = field(default_factory=dict)
    text: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    significant: bool = False


@dataclass(frozen=True)
class Table:
    """A table of cells.

    Attributes:
        name: stem of its files and of its LaTeX label.
        title: a few words.
        caption: what the numbers are and what they were measured on.
        frame: the cells (`TableCell`). The index holds the row labels, and its name is their heading. The columns are
            the column labels.
        quantities: the quantities of the cells, in the order of print.
        prose: columns that hold running text.
        rules: positions of the rows that are set off from the row above.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    quantities: tuple[Quantity, ...] = ()
    prose: tuple[str, ...] = ()
    rules: tuple[int, ...] = ()

    def row(self, label: str) -> dict[str, TableCell]:
        """Returns the cells of a row by column label."""
        cells: list[TableCell] = self.frame.iloc[list(self.frame.index).index(label)].tolist()
        return dict(zip(map(str, self.frame.columns), cells, strict=True))


def laid_out(heading: str, columns: Sequence[str], rows: Mapping[str, Sequence[TableCell]]) -> pd.DataFrame:
    """Returns a table's frame, built from its rows by label."""
    return listed(heading, columns, list(rows.items()))


def listed(heading: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[TableCell]]]) -> pd.DataFrame:
    """Returns a table's frame, built from labels and rows; several rows may have the same label."""
    index = pd.Index([label for label, _ in rows], name=heading)
    return pd.DataFrame([list(cells) for _, cells in rows], index=index, columns=list(columns), dtype=object)


def sentences(*texts: str) -> str:
    """Returns a caption made of the texts that are not empty."""
    return " ".join(filter(None, texts))
