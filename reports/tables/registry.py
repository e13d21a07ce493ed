"""The tables of a report, found by scanning this folder for what `table` marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal, TypeVar

import reports.tables
from reports.measures.numbers import NormFacts, Numbers
from reports.tables.table import Table

Made = Table | list[Table] | None
"""What the function behind a table returns: None if the run has no such table."""
Function = TypeVar("Function", bound=Callable[..., Any])
CARD = "_exhibit_card"


@dataclass(frozen=True)
class ExhibitCard:
    """What is declared about a table or figure.

    Attributes:
        name: its name.
        per: whether a report has it once for each norm, or once for the run.
        order: its place on the page: the smallest comes first.
        heading: heading of its part of a norm's section. Without one it continues the part before.
        make: takes the run's `Numbers`, and the `NormFacts` of a norm if it is made for each norm.
    """

    name: str
    per: Literal["norm", "run"]
    order: int
    heading: str
    make: Callable[..., Any]


def table(name: str, *, per: Literal["norm", "run"], order: int, heading: str = "") -> Callable[[Function], Function]:
    """Marks a function that makes a table, several, or None. The arguments are described in `ExhibitCard`."""

    def mark(function: Function) -> Function:
        setattr(function, CARD, ExhibitCard(name, per, order, heading, function))
        return function

    return mark


def tables_of_norm(numbers: Numbers, norm: NormFacts) -> Iterator[tuple[ExhibitCard, list[Table]]]:
    """Yields the cards of the tables made for each norm, in order, each with its tables."""
    for card in exhibits(reports.tables):
        if card.per == "norm":
            yield card, _several(card.make(numbers, norm))


def tables_of_run(numbers: Numbers) -> list[Table]:
    """Returns the tables that are made once for the run, in order."""
    return [each for card in exhibits(reports.tables) if card.per == "run" for each in _several(card.make(numbers))]


def exhibits(package: ModuleType) -> list[ExhibitCard]:
    """Returns the cards of what the modules of a package mark, in order."""
    found = []
    for module in iter_modules(package.__path__):
        values = vars(import_module(f"{package.__name__}.{module.name}")).values()
        cards = (vars(value).get(CARD) for value in values if callable(value) and hasattr(value, "__dict__"))
        found += [card for card in cards if card is not None]
    return sorted(dict.fromkeys(found), key=lambda card: card.order)


def _several(made: Made) -> list[Table]:
    return made if isinstance(made, list) else [made] if made is not None else []
