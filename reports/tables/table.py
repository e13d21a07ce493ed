"""A table, its cells and its quantities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Quantity:
    """A quantity: one of the numbers in a table's cells. Shares and p-values are fractions in [0, 1].

    Attributes:
        name: its name in data files.
        decimals: number of digits after the point, in print.
        percent: whether it is printed as a percentage.
        interval: whether two more numbers follow it, the ends of its confidence interval.
    """

    name: str
    decimals: int = 0
    percent: bool = False
    interval: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: what one place of a table says.

    Attributes:
        values: the numbers of the table's quantities, NaN where one does not apply; empty if the cell has none.
        text: what is shown instead of numbers.
        significant: whether the cell is set off in print, as the caption explains.
        notes: footnotes.
        doubts: footnotes behind a dagger that say why the numbers may be too good.
        published: a publication's numbers for the same quantities, NaN where it has none; empty if there are none.
    """

    values: tuple[float, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    published: tuple[float, ...] = ()
    significant: bool = False


@dataclass(frozen=True)
class Published:
    """A publication's numbers for a cell, NaN where it has none, and their footnotes."""

    values: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of cells.

    Attributes:
        name: stem of its files and of its LaTeX label.
        title: a few words.
        caption: what the numbers are and what they were measured on.
        frame: the cells. The index holds the row labels, and its name is their heading. The columns are the column
            labels.
        quantities: the quantities that the cells' values hold, in this order.
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

    def row(self, label: str) -> dict[str, Cell]:
        """Returns the cells of a row by column label."""
        cells: list[Cell] = self.frame.iloc[list(self.frame.index).index(label)].tolist()
        return dict(zip(map(str, self.frame.columns), cells, strict=True))


def laid_out(heading: str, columns: list[str], rows: Mapping[str, list[Cell]]) -> pd.DataFrame:
    """Returns a table's frame, built from its rows by label."""
    index = pd.Index(list(rows), name=heading)
    return pd.DataFrame(list(rows.values()), index=index, columns=columns, dtype=object)


def sentences(*texts: str) -> str:
    """Returns a caption made of the texts that are not empty."""
    return " ".join(filter(None, texts))
