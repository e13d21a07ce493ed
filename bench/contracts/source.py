"""Tracks the code behind a result: a digest of each module, and all modules that a module imports.

A digest is taken of a normal form of the syntax tree. This form is equal on all supported Pythons and has no comments
and docstrings. `Sources.closure` follows imports within our packages and within a plugin's own folder or distribution.
Imports inside functions count. Imports under ``if TYPE_CHECKING`` do not count. The ``__init__`` of a package does not
count if it is only a parent on the path to a module. The packages in `SCANNED` count with every module of their folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from importlib.util import resolve_name
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from bench.contracts.syntax import Import, Parsed, digest_of, parse

PACKAGES = ("bench", "defenses", "attacks", "reports")
"""Our import packages."""
ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds our packages."""
UNCOUNTED = frozenset(
    {
        "bench.api",
        "bench.cli.app",
        "bench.contracts.errors",
        "bench.contracts.norms.known",
        "bench.contracts.progress",
        "bench.ledger.provenance",
        "bench.plugins.catalog",
        "bench.contracts.source",
        "bench.contracts.syntax",
    }
)
"""Modules that produce messages, name results or find plugins. No number depends on them: closures leave them out."""
UNCOUNTED_LIBRARIES = frozenset(
    {"jinja2", "matplotlib", "pandas", "platformdirs", "pyarrow", "pydantic", "rich", "safetensors", "typer"}
)
"""Libraries that read, store or display results. Identities leave out their versions."""
ENGINE = "bench.engine.cell"
"""The module whose closure computes a cell, for every attack and defense."""
CONTRACT = "bench.conformance.examination"
"""The module whose remarks on a defense are stored in its records."""
TRAINING = "bench.training.trainer"
"""The module whose closure trains a defense, together with the defense's own."""
SCANNED = frozenset({"bench.contracts.norms"})
"""Packages that import all modules of their folder without naming them."""
_LOCAL_INCLUDE = re.compile(rb'^\s*#\s*include\s*"([\w./-]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Closure:
    """A closure: one or more modules and everything they import.

    Attributes:
        modules: digests by module name.
        libraries: third-party packages that each module imports, by module name.
    """

    modules: Mapping[str, str]
    libraries: Mapping[str, frozenset[str]]

    @cached_property
    def digest(self) -> str:
        """One digest for all modules."""
        return digest_of("\n".join(f"{name} {self.modules[name]}" for name in sorted(self.modules)).encode())

    @cached_property
    def foreign_digest(self) -> str:
        """One digest for the modules that are not ours; empty if all are ours."""
        foreign = {name: digest for name, digest in self.modules.items() if not _is_ours(name)}
        return Closure(foreign, {}).digest if foreign else ""

    def __or__(self, other: Closure) -> Closure:
        return Closure({**self.modules, **other.modules}, {**self.libraries, **other.libraries})

    def versions(self, without: Closure) -> str:
        """Returns names and installed versions of torch and of the libraries that the modules import.

        Imports by the modules in ``without`` do not count.
        """
        names = {name for module, names in self.libraries.items() if module not in without.modules for name in names}
        return ", ".join(f"{name} {library_version(name)}" for name in sorted({"torch", *names} - UNCOUNTED_LIBRARIES))


class Sources:
    """The source files in some folders, each read once.

    Args:
        plugin: a Python file. Modules beside it count, unless they are named like ours or Python's own. Its own module
            name is the file's name (``plugin.py``).
        distribution: folders of the top-level modules and packages of an installed plugin.

    Attributes:
        contents: bytes of the files read so far.
    """

    def __init__(self, plugin: Path | None = None, distribution: Mapping[str, Path] | None = None) -> None:
        self._folders = {**(distribution or {}), **dict.fromkeys(PACKAGES, ROOT)}
        self._beside = None if plugin is None else plugin.parent
        self._files: dict[str, Path | None] = {} if plugin is None else {plugin.name: plugin}
        self.contents: dict[Path, bytes] = {}

    def closure(self, *roots: str) -> Closure:
        """Returns the modules ``roots`` and all that they import, directly or indirectly."""
        digests: dict[str, str] = {}
        libraries: dict[str, frozenset[str]] = {}
        waiting = list(roots)
        while waiting:
            name = waiting.pop()
            file = self._file(name)
            if name in digests or name in UNCOUNTED or file is None:
                continue
            if file.suffix not in SOURCE_SUFFIXES:
                digests[name] = digest_of(self._content(file))
                continue
            parsed = parse(self._content(file))
            digests[name] = parsed.digest
            digests |= {f"{name}: {mention}": digest for mention, digest in self._mentioned(file, parsed)}
            found = [(of, self._origin(*self._absolute(name, of))) for of in parsed.imports]
            waiting += [origin for _, origin in found if origin is not None]
            if name in SCANNED:
                waiting += [f"{name}.{module.name}" for module in iter_modules([str(file.parent)])]
            tops = {of.module.partition(".")[0] for of, origin in found if origin is None and not of.level}
            libraries[name] = frozenset(tops - sys.stdlib_module_names - self._folders.keys())
        return Closure(digests, libraries)

    def _file(self, name: str) -> Path | None:
        """Returns the file of a module's code; None for a module outside these folders or without code."""
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

    def _absolute(self, importer: str, of: Import) -> tuple[str, str | None]:
        if not of.level:
            return of.module, of.name
        file = self._file(importer)
        package = importer if file is not None and is_package(file) else importer.rpartition(".")[0]
        try:
            return resolve_name("." * of.level + of.module, package), of.name
        except ImportError:  # the import would also fail at run time
            return "", None

    def _origin(self, module: str, name: str | None, depth: int = 8) -> str | None:
        """Returns the module that ``name`` of ``module`` comes from; None if it is outside these folders."""
        if name is not None and self._file(f"{module}.{name}") is not None:
            return f"{module}.{name}"
        file = self._file(module)
        if file is None:
            return None
        if name is not None and is_package(file) and file.suffix in SOURCE_SUFFIXES and depth:
            export = parse(self._content(file)).exports.get(name)
            if export is not None:
                return self._origin(*self._absolute(module, export), depth - 1) or module
        return module

    def _mentioned(self, file: Path, parsed: Parsed) -> Iterator[tuple[str, str]]:
        """Yields names and digests of the foreign sources that a module names, and of the files that they include.

        A source counts if it lies beside the file that names it, or one folder below.
        """
        waiting = [(file.parent, mention) for mention in parsed.mentions]
        done: set[Path] = set()
        while waiting:
            folder, mention = waiting.pop()
            for place in (folder / mention, *folder.glob(f"*/{mention.lstrip('/')}")):
                if place.is_file() and place not in done:
                    done.add(place)
                    content = self._content(place)
                    yield mention, digest_of(content)
                    waiting += [(place.parent, name.decode()) for name in _LOCAL_INCLUDE.findall(content)]


def engine_code() -> Closure:
    """Returns the modules that compute a cell and its remarks, for every attack and defense."""
    return Sources().closure(ENGINE, CONTRACT)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Returns the id of a cell or study with this identity."""
    return digest_of(json.dumps(identity, sort_keys=True).encode())


def changed_modules(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the names of modules whose digests differ, or that only one side has."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@cache
def library_version(name: str) -> str:
    """Returns the installed version of the distribution that a third-party package belongs to."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # Only as a fallback: reading the contents of all distributions takes a second.
        distributions = importlib.metadata.packages_distributions().get(name, [])
        return " ".join(sorted(importlib.metadata.version(of) for of in set(distributions))) or "not installed"


def is_package(file: Path) -> bool:
    """Returns whether a file is the ``__init__`` of a package."""
    return file.name.partition(".")[0] == "__init__"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES and not module.endswith(".py")
