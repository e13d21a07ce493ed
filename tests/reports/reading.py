"""Tables as the tests read them: made by name, and numbers by quantity."""

import math

import reports.tables
from reports.measures.measure import measure
from reports.statistics.estimates import Estimate
from reports.tables.registry import TableCard
from reports.tables.scanning import exhibits
from reports.tables.table import Quantity, Table, laid_out


def facts(run, norm):
    """The facts of a norm."""
    return measure(run).norms[norm]


def tables_of(run, name, norm=None, **choices):
    """The registered tables of a name; ``choices`` are a baseline and papers."""
    numbers = measure(run, **choices)
    (card,) = [card for card in exhibits(reports.tables, TableCard) if card.name == name]
    made = card.make(numbers, *([numbers.norms[norm]] if norm else []))
    return made if isinstance(made, list) else [made] if made is not None else []


def table_of(run, name, norm=None, **choices):
    """The first registered table of a name; None if the run has none."""
    return next(iter(tables_of(run, name, norm, **choices)), None)


def values(cell):
    """The numbers of a cell by quantity, but for those that are missing."""
    return {name: estimate.value for name, estimate in cell.values.items() if not math.isnan(estimate.value)}


def interval(cell, quantity):
    """The ends of a number's confidence interval."""
    return cell.values[quantity][1:]


def cell(table, row, column):
    """A place of a table."""
    return table.frame.loc[row, column]


MEDIAN, ACCURACY = Quantity("median", 2), Quantity("accuracy", percent=True)


def estimates(median=math.nan, accuracy=math.nan):
    """The numbers of a cell."""
    return {"median": Estimate(median), "accuracy": Estimate(accuracy)}


def one_cell(cell, quantities=(MEDIAN, ACCURACY)):
    """A table of one cell."""
    return Table("name", "Title", "Caption.", laid_out("attack", ["cnn"], {"row": [cell]}), quantities)
