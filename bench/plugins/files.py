"""Plugins in the user's files: loads the same bytes that were digested, and the modules beside them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from bench.contracts.errors import UserError
from bench.contracts.source import PACKAGES, Sources
from bench.plugins.isolation import kept_defaults


class PluginFile:
    """A local Python file with plugins, and the modules that it imports from its folder."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"--plugin {path}: no such file")
        self.path = path
        place = path.resolve()
        self.root, self.folder = place.name, place.parent
        self.sources = Sources(place)
        self.code = self.sources.closure(self.root)
        # Equal files in two folders may read other data.
        key = hashlib.sha256(f"{place} {self.code.digest}".encode()).hexdigest()[:8]
        self._place, self._name = place, f"assay_plugin_{path.stem}_{key}"

    @property
    def helpers(self) -> set[str]:
        """Top-level names of the modules that the file imports from its folder."""
        names = {name.partition(":")[0] for name in self.code.modules} - {self.root}
        return {name.partition(".")[0] for name in names} - {*PACKAGES}

    def forget(self) -> None:
        """Makes the file and the modules beside it run again at their next import."""
        for name in [name for name in sys.modules if name == self._name or name.partition(".")[0] in self.helpers]:
            del sys.modules[name]

    def load(self) -> ModuleType:
        """Returns the file as a module.

        Raises:
            UserError: when the file is not Python, raises an exception, or exits the program.
        """
        if self._name in sys.modules:
            return sys.modules[self._name]
        self.forget()
        _Beside.install(self.folder, self.sources.contents)
        loader = _BytesLoader(self._name, str(self._place), self.sources.contents)
        spec = importlib.util.spec_from_file_location(self._name, self._place, loader=loader)
        if spec is None or self.path.suffix not in SOURCE_SUFFIXES:
            raise UserError(f"{self.path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[self._name] = module
        try:
            with kept_defaults():
                loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[self._name]
            raise UserError(one_line(error)) from error
        return module


def check_helpers(files: Sequence[PluginFile]) -> None:
    """Raises `UserError` if two plugins use one name for different modules. A process can hold only one of them."""
    owners: dict[str, PluginFile] = {}
    for file in files:
        for helper in file.helpers:
            other = owners.setdefault(helper, file)
            if other.folder != file.folder:
                raise UserError(
                    f"--plugin {other.path} and {file.path}: each imports a module {helper!r} of its own folder; "
                    "rename one, or run them apart"
                )


class _BytesLoader(SourceFileLoader):
    """Runs a module from bytes read earlier or from its file, never from cached bytecode."""

    def __init__(self, name: str, path: str, contents: Mapping[Path, bytes]) -> None:
        super().__init__(name, path)
        self._contents = contents

    def get_data(self, path: str) -> bytes:
        """Returns the bytes of a file."""
        content = self._contents.get(Path(path))
        return super().get_data(path) if content is None else content

    def get_code(self, fullname: str) -> CodeType:
        """Returns the module's code."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _Beside:
    """Finds the modules in the folder of a plugin."""

    def __init__(self, folder: Path, contents: dict[Path, bytes]) -> None:
        self._folder, self._contents = folder, contents

    @classmethod
    def install(cls, folder: Path, contents: Mapping[Path, bytes]) -> None:
        """Puts a folder before all others. ``contents`` maps files, which may be in this folder, to their bytes."""
        known: dict[Path, bytes] = {}
        for finder in [finder for finder in sys.meta_path if isinstance(finder, cls) and finder._folder == folder]:
            known |= finder._contents
            sys.meta_path.remove(finder)
        sys.meta_path.insert(0, cls(folder, {**known, **contents}))

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns the spec of a module in the folder; None for other modules."""
        top = name.partition(".")[0]
        if top in PACKAGES or top in sys.stdlib_module_names:
            return None
        loaders: Any = (ExtensionFileLoader, EXTENSION_SUFFIXES), (self._loader, SOURCE_SUFFIXES)
        folders = [self._folder] if path is None else [Path(place) for place in path]
        for folder in folders:
            if not folder.is_relative_to(self._folder):
                continue
            spec = FileFinder(str(folder), *loaders).find_spec(name)
            # A folder without code, such as one with data, may share its name with an installed package.
            if spec is not None and (spec.loader is not None or PathFinder.find_spec(name, path) is None):
                return spec
        return None

    def _loader(self, name: str, path: str) -> _BytesLoader:
        return _BytesLoader(name, path, self._contents)


def one_line(error: BaseException) -> str:
    """Returns an exception as one line of text."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
