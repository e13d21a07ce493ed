"""A normal form of Python sources, equal on all supported Pythons, and the imports in these sources.

This module imports none of our modules, so that any Python can run it alone.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

_FOREIGN_SOURCE = re.compile(r"[\w./-]+\.(c|cc|cpp|cxx|cu|cuh|h|hpp|pyx|pxd|f|f90|cl|metal|so|pyd|dll|dylib)")
"""File names of sources in other languages, and of binaries compiled from them."""
_IMPORTERS = ("importlib.import_module", "import_module", "__import__")
_END = object()


@dataclass(frozen=True)
class Import:
    """One import: a module, possibly relative, and the name imported from it. The name is None for a plain import."""

    level: int
    module: str
    name: str | None


@dataclass(frozen=True)
class Parsed:
    """The facts in a module's source.

    Attributes:
        imports: the imports that it makes when it runs.
        exports: the origins of the names that it imports, by name. Imports for type checkers count, because packages
            declare the origins of their lazy names there.
        mentions: file names of foreign sources among its strings.
    """

    digest: str
    imports: tuple[Import, ...]
    exports: Mapping[str, Import]
    mentions: tuple[str, ...]


def normal_form(source: bytes) -> str:
    """Returns a Python module's syntax tree as text, without comments and docstrings. It is the same on every Python.

    ``ast.dump`` differs between Pythons in the fields that it omits and in how it splits f-strings into constants.

    Raises:
        SyntaxError: when the source is not valid in this Python.
    """
    return _normal_form(_tree(source))


def _normal_form(tree: ast.Module) -> str:
    words: list[str] = []
    waiting: list[Any] = [tree]
    while waiting:  # not recursive: a long sum is too deep a tree for recursion
        item = waiting.pop()
        if item is _END:
            words.append(")")
        elif isinstance(item, ast.Constant):
            # Python refuses to convert a very large integer to decimals.
            value = hex(item.value) if type(item.value) is int else ascii(item.value)
            words.append(f"{type(item.value).__name__}:{value}")
        elif isinstance(item, ast.AST):
            words.append(f"{type(item).__name__}(")
            waiting.append(_END)
            waiting += reversed([part for field in _fields(item) for part in field])
        elif isinstance(item, list):
            words.append("[")
            waiting.append(_END)
            waiting += reversed(item)
        elif isinstance(item, _FieldName):
            words.append(f"{item}=")
        else:
            words.append(ascii(item))
    return " ".join(words)


class _FieldName(str):
    """The name of a node's field, as opposed to a value."""


def _fields(node: ast.AST) -> Iterator[tuple[_FieldName, Any]]:
    """Yields names and values of a node's non-empty fields."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            value = _joined(value) if isinstance(node, ast.JoinedStr) else [item for item in value if not _idle(item)]
        elif isinstance(value, ast.JoinedStr) and not _joined(value.values):
            continue  # older Pythons leave out an empty format
        if value is not None and value != []:
            yield _FieldName(name), value


def _idle(item: object) -> bool:
    """Returns whether an item is a statement without effect, such as a docstring."""
    return isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))


def _joined(values: Sequence[ast.expr]) -> list[ast.expr]:
    """Returns the parts of an f-string, with neighboring constants joined."""
    parts: list[ast.expr] = []
    for value in values:
        text = value.value if isinstance(value, ast.Constant) else None
        last = parts[-1].value if parts and isinstance(parts[-1], ast.Constant) else None
        if isinstance(text, str) and isinstance(last, str):
            parts[-1] = ast.Constant(last + text)
        elif text != "":
            parts.append(value)
    return parts


def _tree(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes that a later Python will refuse
        return ast.parse(source)


@cache
def parse(source: bytes) -> Parsed:
    """Returns the facts in a module's source, given its bytes."""
    try:
        tree = _tree(source)
    except (SyntaxError, ValueError, RecursionError):  # such a module can hardly be imported
        return Parsed(digest_of(source), (), {}, ())
    running, checked = _nodes(tree)
    mentions = {
        node.value
        for node in running
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _FOREIGN_SOURCE.fullmatch(node.value)
    }
    return Parsed(
        digest_of(_normal_form(tree).encode()),
        (*_names_imported(running).values(), *_modules_imported(running)),
        _names_imported([*checked, *running]),
        tuple(sorted(mentions)),
    )


def _nodes(tree: ast.Module) -> tuple[list[ast.AST], list[ast.AST]]:
    """Returns the nodes of a tree that run, and those that only type checkers see."""
    running: list[ast.AST] = []
    checked: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        running.append(node)
        if isinstance(node, ast.If) and _dotted(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            checked += [inner for statement in node.body for inner in ast.walk(statement)]
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return running, checked


def _names_imported(nodes: Iterable[ast.AST]) -> dict[str, Import]:
    """Returns the imports by ``from ... import``, by the names they are bound to."""
    return {
        alias.asname or alias.name: Import(node.level, node.module or "", alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _modules_imported(nodes: Sequence[ast.AST]) -> Iterator[Import]:
    """Yields the imports by ``import``.

    If a module's attributes are used, these are yielded instead. They may come from another module.
    """
    bound = {
        alias.asname or alias.name: alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    used: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and (module := _dotted(node.value)) in bound:
            used.add(module)
            yield Import(0, bound[module], node.attr)
        elif isinstance(node, ast.Call) and _dotted(node.func) in _IMPORTERS and node.args:
            named = node.args[0]
            if isinstance(named, ast.Constant) and isinstance(named.value, str) and not named.value.startswith("."):
                yield Import(0, named.value, None)
    yield from (Import(0, module, None) for name, module in bound.items() if name not in used)


def _dotted(node: ast.AST) -> str:
    """Returns ``a.b.c`` as text; an empty text for any other node."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed([*names, node.id])) if isinstance(node, ast.Name) else ""


def digest_of(content: bytes) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()[:16]
