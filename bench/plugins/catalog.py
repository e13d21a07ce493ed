"""Catalogs: what is built in of one kind, such as attacks, datasets or studies, by name.

A new one is a new file in the kind's folder. `bench.plugins.scan` finds its name without importing it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar

from bench.contracts.cards import attached
from bench.contracts.errors import UserError, unknown
from bench.plugins.files import one_line
from bench.plugins.scan import Declaration, Scan, scan

CardT = TypeVar("CardT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Declared(Generic[CardT, FunctionT]):
    """A function with its card, and the name of the module that declares it."""

    card: CardT
    function: FunctionT
    module: str


class Catalog(Generic[CardT, FunctionT]):
    """The functions that a decorator declares in a package.

    The sources are scanned at each use. A module is imported when one of its names is asked for.

    Args:
        decorator: name of the decorator. Messages use it as the name of the kind.
        package: the package whose modules, and those of its folders, are scanned.
        card: type of the cards that the decorator attaches.
    """

    def __init__(self, decorator: str, package: str, card: type[CardT]) -> None:
        self.what = decorator.replace("_", " ")
        self._decorator, self._package, self._card = decorator, package, card

    def scan(self) -> Scan:
        """Returns all declarations. No module is imported."""
        return scan(self._package, self._decorator)

    def names(self) -> list[str]:
        """Returns all names, by module. No module is imported."""
        return list(dict.fromkeys(each.name for each in self.scan().declarations))

    def module(self, name: str) -> str:
        """Returns the module that declares a name, without importing it.

        Raises:
            UserError: when no module declares the name, or several do.
        """
        return self._one(name).module

    def get(self, name: str) -> Declared[CardT, FunctionT]:
        """Imports what a name stands for.

        Raises:
            UserError: as `module`, and when the module is broken.
        """
        return self.load(self._one(name))

    def rows(self) -> Iterator[tuple[str, CardT | str]]:
        """Yields each name with its card. The error's text takes the place of a card that cannot be had."""
        for name in self.names():
            try:
                yield name, self.get(name).card
            except UserError as error:
                yield name, str(error)
        for module, text in self.scan().broken.items():
            yield module.rpartition(".")[2], text

    def load(self, declaration: Declaration) -> Declared[CardT, FunctionT]:
        """Imports what one module declares under a name.

        Raises:
            UserError: when the module cannot be imported, or does not declare the name after all.
        """
        name, place = declaration.name, declaration.module
        try:
            module = importlib.import_module(place)
        except Exception as error:
            raise UserError(f"built-in {self.what} {name!r} ({place}) is broken: {one_line(error)}") from error
        for function in own_values(module):
            card = attached(function, self._card)
            if card is not None and getattr(card, "name", None) == name:
                return Declared(card, function, place)
        raise UserError(f"built-in {self.what} {name!r}: the source of {place} names it, but no card does")

    def _one(self, name: str) -> Declaration:
        found = self.scan()
        same = [each for each in found.declarations if each.name == name]
        if not same:
            broken = "".join(f"; {module} is broken: {text}" for module, text in found.broken.items())
            raise UserError(f"{unknown(self.what, name, self.names())}{broken}")
        return only(self.what, name, same, [each.module for each in same])


Item = TypeVar("Item")


def only(what: str, name: str, items: Sequence[Item], places: Sequence[str]) -> Item:
    """Returns the only item. Raises `UserError` with the places of all items if there are several."""
    if len(items) > 1:
        raise UserError(f"{what} {name!r} is declared twice, by {' and '.join(places)}; rename one")
    return items[0]


def own_values(module: ModuleType) -> list[Any]:
    """Returns the functions and classes that a module defines itself, each once, in order of definition."""
    own = {id(value): value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__}
    return list(own.values())
