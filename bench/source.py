"""What code a result comes from: a digest of each module, and all the modules that one imports.

A digest is taken of a normal form of the syntax tree: equal on all Pythons that we support, without comments and
docstrings. `Sources.closure` follows imports within our packages and within a plugin's own folder or distribution.
Imports inside functions count, imports under ``if TYPE_CHECKING`` do not. Neither does the ``__init__`` of a package
that merely stands on the way to a module.

This module imports nothing of ours, so that any Python can run it alone.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

PACKAGES = ("bench", "defenses", "attacks", "reports")
"""Our import packages."""
ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds them."""
UNCOUNTED = frozenset({"bench.api", "bench.cli", "bench.errors", "bench.progress", "bench.provenance", "bench.source"})
"""Modules that speak to the user or name results. No number depends on them, so no closure holds them."""
UNCOUNTED_LIBRARIES = frozenset(
    {"jinja2", "matplotlib", "pandas", "platformdirs", "pyarrow", "pydantic", "rich", "safetensors", "typer"}
)
"""Libraries that read, keep or show what was computed. Their versions are in no identity."""
ENGINE = "bench.engine"
"""The module whose closure computes a cell, whatever the attack and the defense."""
CONTRACT = "bench.contract"
"""The module whose remarks on a defense stand in its records."""
TRAINING = "bench.training"
"""The module whose closure trains a defense, beside the defense's own."""

_FOREIGN_SOURCE = re.compile(r"[\w./-]+\.(c|cc|cpp|cxx|cu|cuh|h|hpp|pyx|pxd|f|f90|cl|metal|so|pyd|dll|dylib)")
"""File names of sources that are not Python, and of what is compiled from them."""
_LOCAL_INCLUDE = re.compile(rb'^\s*#\s*include\s*"([\w./-]+)"', re.MULTILINE)
_IMPORTERS = ("importlib.import_module", "import_module", "__import__")
_END = object()


@dataclass(frozen=True)
class Closure:
    """Modules that belong together: one, and what it imports.

    Attributes:
        modules: digests by name.
        libraries: by the same names, the third-party packages that a module imports.
    """

    modules: Mapping[str, str]
    libraries: Mapping[str, frozenset[str]]

    @cached_property
    def digest(self) -> str:
        """One digest for all modules."""
        return _digest("\n".join(f"{name} {self.modules[name]}" for name in sorted(self.modules)).encode())

    @cached_property
    def foreign_digest(self) -> str:
        """One digest for the modules that are not ours; empty where there are none."""
        foreign = {name: digest for name, digest in self.modules.items() if not _is_ours(name)}
        return Closure(foreign, {}).digest if foreign else ""

    def __or__(self, other: Closure) -> Closure:
        return Closure({**self.modules, **other.modules}, {**self.libraries, **other.libraries})

    def versions(self, without: Closure) -> str:
        """Names and installed versions of torch and of the libraries that the modules import, but those that only the
        modules of ``without`` do."""
        names = {name for module, names in self.libraries.items() if module not in without.modules for name in names}
        return ", ".join(f"{name} {library_version(name)}" for name in sorted({"torch", *names} - UNCOUNTED_LIBRARIES))


@dataclass(frozen=True)
class _Import:
    """One imported module, still relative, and the name that is taken from it; None for the module itself."""

    level: int
    module: str
    name: str | None


@dataclass(frozen=True)
class _Parsed:
    """What a module's source says.

    Attributes:
        imports: what it imports when it runs.
        exports: where the names come from that it imports from elsewhere, for type checkers too: that is how packages
            say where their lazy names are.
        mentions: file names of foreign sources among its strings.
    """

    digest: str
    imports: tuple[_Import, ...]
    exports: Mapping[str, _Import]
    mentions: tuple[str, ...]


class Sources:
    """The source files in some folders, each read once.

    Args:
        plugin: a Python file; what lies beside it counts, but modules named as ours or as Python's own. Its own name
            as a module is the file's (``plugin.py``).
        distribution: folders of the top-level modules and packages of an installed plugin.

    Attributes:
        contents: what was read.
    """

    def __init__(self, plugin: Path | None = None, distribution: Mapping[str, Path] | None = None) -> None:
        self._folders = {**(distribution or {}), **dict.fromkeys(PACKAGES, ROOT)}
        self._beside = None if plugin is None else plugin.parent
        self._files: dict[str, Path | None] = {} if plugin is None else {plugin.name: plugin}
        self.contents: dict[Path, bytes] = {}

    def closure(self, *roots: str) -> Closure:
        """The modules ``roots`` and all that they import, directly or not."""
        digests: dict[str, str] = {}
        libraries: dict[str, frozenset[str]] = {}
        waiting = list(roots)
        while waiting:
            name = waiting.pop()
            file = self._file(name)
            if name in digests or name in UNCOUNTED or file is None:
                continue
            if file.suffix not in SOURCE_SUFFIXES:
                digests[name] = _digest(self._content(file))
                continue
            parsed = _parsed(self._content(file))
            digests[name] = parsed.digest
            digests |= {f"{name}: {mention}": digest for mention, digest in self._mentioned(file, parsed)}
            found = [(of, self._origin(*self._absolute(name, of))) for of in parsed.imports]
            waiting += [origin for _, origin in found if origin is not None]
            tops = {of.module.partition(".")[0] for of, origin in found if origin is None and not of.level}
            libraries[name] = frozenset(tops - sys.stdlib_module_names - self._folders.keys())
        return Closure(digests, libraries)

    def _file(self, name: str) -> Path | None:
        """Where a module's code is; None for a module that is not in these folders, or has no code."""
        if name not in self._files:
            self._files[name] = self._search(name)
        return self._files[name]

    def _search(self, name: str) -> Path | None:
        top = name.partition(".")[0]
        folder = self._folders.get(top, None if top in sys.stdlib_module_names else self._beside)
        if folder is None:
            return None
        base = folder.joinpath(*name.split("."))
        suffixes = [*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES, *BYTECODE_SUFFIXES]
        # Python's own order.
        names = [f"{stem}{suffix}" for stem in (f"{base}/__init__", str(base)) for suffix in suffixes]
        return next((file for file in map(Path, names) if file.is_file()), None)

    def _content(self, file: Path) -> bytes:
        if file not in self.contents:
            self.contents[file] = file.read_bytes()
        return self.contents[file]

    def _absolute(self, importer: str, of: _Import) -> tuple[str, str | None]:
        if not of.level:
            return of.module, of.name
        file = self._file(importer)
        package = importer if file is not None and _is_package(file) else importer.rpartition(".")[0]
        try:
            return resolve_name("." * of.level + of.module, package), of.name
        except ImportError:  # it would fail when it runs, too
            return "", None

    def _origin(self, module: str, name: str | None, depth: int = 8) -> str | None:
        """The module that ``name`` of ``module`` comes from; None if it is in none of these folders."""
        if name is not None and self._file(f"{module}.{name}") is not None:
            return f"{module}.{name}"
        file = self._file(module)
        if file is None:
            return None
        if name is not None and _is_package(file) and file.suffix in SOURCE_SUFFIXES and depth:
            export = _parsed(self._content(file)).exports.get(name)
            if export is not None:
                return self._origin(*self._absolute(module, export), depth - 1) or module
        return module

    def _mentioned(self, file: Path, parsed: _Parsed) -> Iterator[tuple[str, str]]:
        """Names and digests of the foreign sources that lie beside a module, or one folder below, and are named in it;
        and of what these include."""
        waiting = [(file.parent, mention) for mention in parsed.mentions]
        done: set[Path] = set()
        while waiting:
            folder, mention = waiting.pop()
            for place in (folder / mention, *folder.glob(f"*/{mention.lstrip('/')}")):
                if place.is_file() and place not in done:
                    done.add(place)
                    content = self._content(place)
                    yield mention, _digest(content)
                    waiting += [(place.parent, name.decode()) for name in _LOCAL_INCLUDE.findall(content)]


def engine_code() -> Closure:
    """The modules that compute a cell, and what it remarks on, whatever the attack and the defense."""
    return Sources().closure(ENGINE, CONTRACT)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """The id of a cell or study with this identity."""
    return _digest(json.dumps(identity, sort_keys=True).encode())


def changed_modules(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the modules whose digests differ, or that one side does not have."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@cache
def library_version(name: str) -> str:
    """The installed version of the distribution that a third-party package belongs to."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # Reading what all distributions hold takes a second.
        distributions = importlib.metadata.packages_distributions().get(name, [])
        return " ".join(sorted(importlib.metadata.version(of) for of in set(distributions))) or "not installed"


def normal_form(source: bytes) -> str:
    """A Python module's syntax tree as text: the same on every Python, whatever comments and docstrings it has.

    ``ast.dump`` differs between Pythons in the fields that it leaves out, and in how f-strings are cut into constants.

    Raises:
        SyntaxError: when it is not a module of this Python.
    """
    return _normal_form(_tree(source))


def _normal_form(tree: ast.Module) -> str:
    words: list[str] = []
    waiting: list[Any] = [tree]
    while waiting:  # not recursive: a long sum is a deep tree
        item = waiting.pop()
        if item is _END:
            words.append(")")
        elif isinstance(item, ast.Constant):
            # Decimals of a very large integer would be refused.
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
    """The name of a node's field, which is no value."""


def _fields(node: ast.AST) -> Iterator[tuple[_FieldName, Any]]:
    """A node's fields that say something."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            value = _joined(value) if isinstance(node, ast.JoinedStr) else [item for item in value if not _idle(item)]
        elif isinstance(value, ast.JoinedStr) and not _joined(value.values):
            continue  # an empty format, which older Pythons leave out
        if value is not None and value != []:
            yield _FieldName(name), value


def _idle(item: object) -> bool:
    """True for a statement that does nothing, such as a docstring."""
    return isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))


def _joined(values: Sequence[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, neighboring constants put together."""
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
        warnings.simplefilter("ignore")  # of escapes that a later Python will refuse
        return ast.parse(source)


@cache
def _parsed(source: bytes) -> _Parsed:
    try:
        tree = _tree(source)
    except (SyntaxError, ValueError, RecursionError):  # hardly anything can import it
        return _Parsed(_digest(source), (), {}, ())
    running, checked = _nodes(tree)
    mentions = {
        node.value
        for node in running
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _FOREIGN_SOURCE.fullmatch(node.value)
    }
    return _Parsed(
        _digest(_normal_form(tree).encode()),
        (*_names_imported(running).values(), *_modules_imported(running)),
        _names_imported([*checked, *running]),
        tuple(sorted(mentions)),
    )


def _nodes(tree: ast.Module) -> tuple[list[ast.AST], list[ast.AST]]:
    """The nodes of a tree that run, and those that type checkers alone see."""
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


def _names_imported(nodes: Iterable[ast.AST]) -> dict[str, _Import]:
    """What ``from ... import`` brings in, by the names it gets."""
    return {
        alias.asname or alias.name: _Import(node.level, node.module or "", alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _modules_imported(nodes: Sequence[ast.AST]) -> Iterator[_Import]:
    """What ``import`` brings in: of a module whose attributes are used these, for they may be another module's."""
    bound = {
        alias.asname or alias.name: alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    used: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and (module := _dotted(node.value)) in bound:
            used.add(module)
            yield _Import(0, bound[module], node.attr)
        elif isinstance(node, ast.Call) and _dotted(node.func) in _IMPORTERS and node.args:
            named = node.args[0]
            if isinstance(named, ast.Constant) and isinstance(named.value, str) and not named.value.startswith("."):
                yield _Import(0, named.value, None)
    yield from (_Import(0, module, None) for name, module in bound.items() if name not in used)


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` as text; empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed([*names, node.id])) if isinstance(node, ast.Name) else ""


def _is_package(file: Path) -> bool:
    return file.name.partition(".")[0] == "__init__"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES and not module.endswith(".py")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
