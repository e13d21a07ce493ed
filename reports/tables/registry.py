"""The tables of a report, found by scanning this folder for what `table` marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import reports.tables
from reports.measures.facts import NormFacts
from reports.measures.numbers import Numbers
from reports.tables.scanning import CARD, Exhibit, exhibits
from reports.tables.table import Table

Made = Table | list[Table] | None
"""What the function behind a table returns: None if the run has no such table."""
Function = TypeVar("Function", bound=Callable[..., Made])


@dataclass(frozen=True)
class TableCard(Exhibit):
    """What is declared about a table.

    Attributes:
        per: whether a report has it once for each norm, or once for the run.
        make: takes the run's `Numbers`, and the `NormFacts` of a norm if it is made for each norm.
    """

    per: Literal["norm", "run"]
    make: Callable[..., Made]


def table(name: str, *, per: Literal["norm", "run"], order: int, heading: str = "") -> Callable[[Function], Function]:
    """Marks a function that makes a table, several, or None. The arguments are described in `TableCard`."""

    def mark(function: Function) -> Function:
        setattr(function, CARD, TableCard(name, order, heading, per, function))
        return function

    return mark


def tables_of_norm(numbers: Numbers, norm: NormFacts) -> Iterator[tuple[TableCard, list[Table]]]:
    """Yields the cards of the tables made for each norm, in order, each with its tables."""
    for card in exhibits(reports.tables, TableCard):
        if card.per == "norm":
            yield card, _several(card.make(numbers, norm))


def tables_of_run(numbers: Numbers) -> list[Table]:
    """Returns the tables that are made once for the run, in order."""
    cards = [card for card in exhibits(reports.tables, TableCard) if card.per == "run"]
    return [each for card in cards for each in _several(card.make(numbers))]


def _several(made: Made) -> list[Table]:
    return made if isinstance(made, list) else [made] if made is not None else []
