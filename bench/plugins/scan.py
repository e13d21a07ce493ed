"""Finds the names that modules declare, from their sources. No module is imported.

A module declares a name by a decorator on a function or class of its own: ``@attack("ddn", ...)``. The name is a
literal string. Names that are declared by other means stand in a literal tuple of the module:
``ATTACK_NAMES = ("pgd_ge", ...)``, ``DEFENSE_NAMES``, and so on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from bench.contracts.source import ROOT


@dataclass(frozen=True)
class Declaration:
    """A name that a module declares.

    Attributes:
        name: the declared name.
        module: the module, such as ``attacks.ddn``.
        examples: the literal ``examples`` among the decorator's arguments, if any.
    """

    name: str
    module: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What the modules of a package declare.

    Attributes:
        declarations: ordered by module, then as in the source.
        broken: error messages of modules whose declarations cannot be read, by module.
    """

    declarations: tuple[Declaration, ...]
    broken: Mapping[str, str]


def scan(package: str, decorator: str) -> Scan:
    """Returns the names that the modules of a package of ours, and of its folders, declare by a decorator."""
    found: list[Declaration] = []
    broken: dict[str, str] = {}
    folder = ROOT.joinpath(*package.split("."))
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in folder.rglob("*.py")}
    for name, file in sorted((name.removesuffix(".__init__"), file) for name, file in files.items()):
        try:
            found += _declared(name, _module_level(file.read_bytes()), decorator)
        except (SyntaxError, ValueError) as error:
            broken[name] = " ".join(f"{type(error).__name__}: {error}".split())
    return Scan(tuple(found), broken)


@dataclass(frozen=True)
class _ModuleLevel:
    """The decorators of a module's functions and classes, in order, and the values that it assigns to names."""

    decorators: tuple[ast.Call, ...]
    assigned: Mapping[str, ast.expr]


@cache
def _module_level(source: bytes) -> _ModuleLevel:
    body = ast.parse(source).body
    decorated = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    decorators = [each for node in decorated for each in node.decorator_list if isinstance(each, ast.Call)]
    assigned: dict[str, ast.expr] = {}
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                assigned[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                assigned[name] = value
    return _ModuleLevel(tuple(decorators), assigned)


def _declared(module: str, level: _ModuleLevel, decorator: str) -> Iterator[Declaration]:
    for call in level.decorators:
        if ast.unparse(call.func).rpartition(".")[2] == decorator:
            name = ast.literal_eval(call.args[0]) if call.args else None
            if not isinstance(name, str):
                raise ValueError(f"line {call.lineno}: the first argument of @{decorator} must be a literal string")
            examples = [ast.literal_eval(each.value) for each in call.keywords if each.arg == "examples"]
            yield Declaration(name, module, *examples)
    key = f"{decorator.upper()}_NAMES"
    listed = level.assigned.get(key)
    if listed is None:
        return
    names = ast.literal_eval(listed) if isinstance(listed, ast.Tuple | ast.List) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise ValueError(f"line {listed.lineno}: {key} must be a literal tuple of strings")
    for name in names:
        yield Declaration(name, module)
