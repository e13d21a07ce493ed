"""Finds the tables and figures of a report: functions that carry a card, in the modules of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

CARD = "_exhibit_card"
"""Attribute of a function that holds its card."""


@dataclass(frozen=True)
class Exhibit:
    """What is declared about a table or figure.

    Attributes:
        name: its name.
        order: its place on the page: the smallest comes first.
        heading: heading of its part of a norm's section. Without one, a table continues the part before.
    """

    name: str
    order: int
    heading: str


Card = TypeVar("Card", bound=Exhibit)


def exhibits(package: ModuleType, kind: type[Card]) -> list[Card]:
    """Returns the cards of one kind in the modules of a package, in order."""
    found = []
    for module in iter_modules(package.__path__):
        for value in vars(import_module(f"{package.__name__}.{module.name}")).values():
            card = getattr(value, CARD, None)
            if isinstance(card, kind) and card not in found:
                found.append(card)
    return sorted(found, key=lambda card: card.order)
