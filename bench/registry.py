"""Finds defenses and attacks: built-ins by name, local files by path, installed packages by entry point.

Nothing is imported before it is needed. A broken plugin is listed with its error and is fatal only if selected.

A local file runs from the very bytes that its digest is taken of, not from Python's cache of bytecode. So do the
modules of its folder that it imports. They are found before others, as those beside a script are. Names of our packages
and of Python's own modules are not looked up there.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from importlib.metadata import Distribution, EntryPoint, entry_points, packages_distributions
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal

from bench.cards import AttackCard, Card, DefenseCard, card_of
from bench.errors import UserError, unknown
from bench.isolation import kept_defaults
from bench.source import PACKAGES, Closure, Sources

Group = Literal["defenses", "attacks"]
WRAPPERS = {"randomized_smoothing": "defenses.smoothing", "variational_smoothing": "defenses.smoothing"}
"""Modules of the defenses that are built around another one, ``<wrapper>:<defense>``, by a function of that name."""
Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""From labels to defenses' names and parameters: what a matrix calls a defense whose parameters it sets."""
_CARD_TYPES: dict[Group, type[Card]] = {"defenses": DefenseCard, "attacks": AttackCard}

BUILTINS: dict[Group, dict[str, str]] = {
    "defenses": {
        "cnn": "defenses.cnn",
        "binary_cnn": "defenses.cnn",
        "cnn_gaussian": "defenses.cnn",
        "nearest_neighbour": "defenses.nearest_neighbour",
        "adv_linf": "defenses.adversarial_training",
        "adv_l2": "defenses.adversarial_training",
        "abs": "defenses.abs",
        "binary_abs": "defenses.abs",
        "abs:schott2019": "defenses.abs",
        "binary_abs:schott2019": "defenses.abs",
        "eabs": "defenses.eabs",
        "cnn:ju2020": "defenses.eabs.cnn",
        "abs:ju2020": "defenses.eabs",
        "a_abs": "defenses.eabs",
        "d_abs": "defenses.eabs",
        "v_abs": "defenses.eabs",
        "ad_abs": "defenses.eabs",
        "av_abs": "defenses.eabs",
        "dv_abs": "defenses.eabs",
        "beta_vac": "defenses.beta_vac",
    },
    "attacks": {
        "gaussian_noise": "attacks.noise",
        "uniform_noise": "attacks.noise",
        "salt_and_pepper": "attacks.noise",
        "pointwise": "attacks.pointwise",
        "pointwise_10x": "attacks.pointwise",
        "fgm": "attacks.fast_gradient",
        "fgsm": "attacks.fast_gradient",
        "bim": "attacks.iterative_gradient",
        "pgd": "attacks.iterative_gradient",
        "mim": "attacks.iterative_gradient",
        "eot_pgd": "attacks.iterative_gradient",
        "unrolled_pgd": "attacks.iterative_gradient",
        "apgd_ce": "attacks.apgd",
        "apgd_dlr": "attacks.apgd",
        "apgd_t": "attacks.apgd",
        "ddn": "attacks.ddn",
        "cw": "attacks.cw",
        "fmn": "attacks.fmn",
        "deepfool": "attacks.deepfool",
        "autoattack": "attacks.autoattack",
        "fab": "attacks.autoattack",
        "boundary": "attacks.boundary",
        "square": "attacks.square",
        "sparse_rs": "attacks.sparse_rs",
        "hopskipjump": "attacks.hopskipjump",
        "sigma_zero": "attacks.sigma_zero",
        "vfga": "attacks.vfga",
        "latent_descent": "attacks.latent_descent",
        "transfer": "attacks.transfer",
        "fgm_ge": "attacks.gradient_estimation",
        "fgsm_ge": "attacks.gradient_estimation",
        "bim_ge": "attacks.gradient_estimation",
        "mim_ge": "attacks.gradient_estimation",
        "pgd_ge": "attacks.gradient_estimation",
        "deepfool_ge": "attacks.gradient_estimation",
    },
}
"""Where each built-in lives, so that one can be found without importing the others."""


@dataclass(frozen=True)
class Plugin:
    """A defense's factory or an attack's function, with its card.

    Attributes:
        source: where it comes from, for people: ``built-in``, ``package NAME VERSION`` or ``file PATH``.
        module: where it is declared, as `sources` know it.
        sources: the files of its code.
        settings: those of its parameters that a matrix sets.
    """

    card: Card
    function: Callable[..., Any]
    source: str
    module: str
    sources: Sources = field(compare=False, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def code(self) -> Closure:
        """The modules that it consists of: its own, and what that imports."""
        return self.sources.closure(self.module)

    @property
    def recipe(self) -> str:
        """What its training depends on besides its card: code that is not ours, and what a matrix sets."""
        settings = json.dumps(dict(self.settings), sort_keys=True) if self.settings else ""
        return " ".join(filter(None, [self.code.foreign_digest, settings]))

    @property
    def attack_card(self) -> AttackCard:
        """The card, of an attack."""
        assert isinstance(self.card, AttackCard)
        return self.card

    @property
    def defense_card(self) -> DefenseCard:
        """The card, of a defense."""
        assert isinstance(self.card, DefenseCard)
        return self.card


@dataclass(frozen=True)
class _Found:
    """A name that somebody declares, not imported yet."""

    name: str
    source: str
    load: Callable[[], Plugin]


class Registry:
    """All plugins that can be selected.

    Args:
        plugins: paths of local Python files; every defense and attack declared in them is available. A file that is
            named twice counts once.
        variants: defenses with parameters of their own.
        reuse: take local files as they ran in this process before, where their code is the same.
    """

    def __init__(
        self, plugins: Sequence[str | Path] = (), variants: Variants | None = None, *, reuse: bool = False
    ) -> None:
        spellings: dict[Path, str] = {}
        for plugin in plugins:
            spellings.setdefault(Path(plugin).resolve(), str(plugin))
        self.plugins = tuple(spellings.values())
        self.variants = variants or {}
        self._sources = Sources()
        self._broken_files: dict[str, str] = {}
        self._found: dict[Group, dict[str, list[_Found]]] = {"defenses": {}, "attacks": {}}
        for group, names in BUILTINS.items():
            for name, module in names.items():
                self._add(group, _builtin(group, name, module, self._sources))
        for wrapper in WRAPPERS:
            base = "cnn_gaussian"
            self._add("defenses", _Found(f"{wrapper}:{base}", "built-in", partial(self._around, wrapper, base)))
        for group in self._found:
            for entry_point in entry_points(group=f"assay.{group}"):
                self._add(group, _installed(group, entry_point))
        files = [_PluginFile(Path(path)) for path in self.plugins]
        _check_helpers(files)
        for file in files if not reuse else ():
            file.forget()
        for file in files:
            for group, found in self._local(file):
                self._add(group, found)

    @cached_property
    def _plain(self) -> Registry:
        """The same plugins without variants."""
        return Registry(self.plugins, reuse=True)

    def names(self, group: Group) -> list[str]:
        """Names of all plugins of a group, built-ins first."""
        return list(self._found[group])

    def get(self, group: Group, name: str) -> Plugin:
        """Imports one plugin.

        Raises:
            UserError: when the name is unknown, declared twice, or the plugin is broken.
        """
        if group == "defenses" and name in self.variants:
            return self._variant(name)
        if group == "defenses" and name.startswith("robustbench:"):
            return self._from_zoo(name)
        found = self._found[group].get(name)
        wrapper, _, wrapped = name.partition(":")
        if found is None and group == "defenses" and wrapper in WRAPPERS and wrapped:
            return self._around(wrapper, wrapped)
        if found is None:
            error = unknown(group.removesuffix("s"), name, self._found[group])
            broken = "; ".join(f"plugin {path} is broken: {text}" for path, text in self._broken_files.items())
            raise UserError(f"{error}; {broken}" if broken else str(error))
        if len(found) > 1:
            sources = " and ".join(f.source for f in found)
            raise UserError(f"{group.removesuffix('s')} {name!r} is declared twice, by {sources}; rename one")
        return found[0].load()

    def rows(self, group: Group) -> Iterable[tuple[str, str, Plugin | str]]:
        """Name, source and plugin of each entry of a group; the error's text in place of a broken one."""
        for name, found in self._found[group].items():
            try:
                yield name, found[0].source, self.get(group, name)
            except UserError as error:
                yield name, found[0].source, str(error)
        for path, text in self._broken_files.items():
            yield Path(path).stem, f"file {path}", text

    def _variant(self, label: str) -> Plugin:
        """A defense with parameters, known by its label."""
        name, parameters = self.variants[label]
        plugin = self._plain.get("defenses", name)
        if not parameters and name == label:
            return plugin
        card = replace(plugin.defense_card, name=label, parameters={**plugin.defense_card.parameters, **parameters})
        return replace(plugin, card=card, function=partial(plugin.function, **parameters), settings=parameters)

    def _around(self, wrapper: str, wrapped: str) -> Plugin:
        """A defense around another one: ``<wrapper>:<wrapped>``."""
        base = self.get("defenses", wrapped)
        factory = getattr(importlib.import_module(WRAPPERS[wrapper]), wrapper)(base.defense_card)
        card = card_of(factory)
        assert isinstance(card, DefenseCard)
        return Plugin(card, factory, base.source, WRAPPERS[wrapper], self._sources)

    def _from_zoo(self, name: str) -> Plugin:
        """A model of RobustBench's zoo, whose names are not listed here: ``robustbench:<dataset>/<threat>/<name>``."""
        module = "defenses.robustbench_adapter"
        factory = importlib.import_module(module).zoo_defense(name)
        card = card_of(factory)
        assert isinstance(card, DefenseCard)
        return Plugin(card, factory, "built-in", module, self._sources)

    def _add(self, group: Group, found: _Found) -> None:
        self._found[group].setdefault(found.name, []).append(found)

    def _local(self, file: _PluginFile) -> list[tuple[Group, _Found]]:
        source = f"file {file.path}"
        try:
            module = file.load()
        except UserError as error:
            self._broken_files[str(file.path)] = str(error)
            return []
        found: list[tuple[Group, _Found]] = []
        for group, card_type in _CARD_TYPES.items():
            for function in _declared(module):
                card = card_of(function)
                if isinstance(card, card_type):
                    plugin = Plugin(card, function, source, file.root, file.sources)
                    found.append((group, _Found(card.name, source, partial(_same, plugin))))
        if not found:
            self._broken_files[str(file.path)] = "declares no @defense and no @attack"
        return found


def _same(plugin: Plugin) -> Plugin:
    return plugin


def _builtin(group: Group, name: str, module: str, sources: Sources) -> _Found:
    def load() -> Plugin:
        try:
            imported = importlib.import_module(module)
        except Exception as error:
            raise UserError(f"built-in {name!r} is broken: {_one_line(error)}") from error
        for function in _declared(imported):
            card = card_of(function)
            if isinstance(card, _CARD_TYPES[group]) and card.name == name:
                return Plugin(card, function, "built-in", module, sources)
        raise UserError(f"built-in {name!r}: {module} declares no such plugin")

    return _Found(name, "built-in", load)


def _installed(group: Group, entry_point: EntryPoint) -> _Found:
    package = f"package {entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "a package"

    def load() -> Plugin:
        what = f"{group.removesuffix('s')} {entry_point.name!r} of {package}"
        try:
            with kept_defaults():
                function = entry_point.load()
        except (Exception, SystemExit) as error:
            raise UserError(f"{what} is broken: {_one_line(error)}") from error
        card = card_of(function)
        if not isinstance(card, _CARD_TYPES[group]):
            raise UserError(f"{what} is broken: {entry_point.value} carries no @{group.removesuffix('s')} card")
        if card.name != entry_point.name:
            raise UserError(f"{what} is broken: its card says {card.name!r}")
        sources = Sources(distribution=_folders(entry_point.module.partition(".")[0], entry_point.dist))
        return Plugin(card, function, package, entry_point.module, sources)

    return _Found(entry_point.name, package, load)


def _declared(module: ModuleType) -> list[Callable[..., Any]]:
    """The functions with a card that a module defines itself, in their order, each once."""
    own = {id(v): v for v in vars(module).values() if card_of(v) and v.__module__ == module.__name__}
    return list(own.values())


def _folders(top: str, distribution: Distribution | None) -> dict[str, Path]:
    """The top-level modules and packages of an installed distribution, ``top`` among them, and the folders they are
    in."""
    tops = {top}
    if distribution is not None:
        tops |= {name for name, owners in packages_distributions().items() if distribution.name in owners}
    specs = {name: importlib.util.find_spec(name) for name in tops}
    found = {name: [*(spec.submodule_search_locations or ()), spec.origin] for name, spec in specs.items() if spec}
    return {name: Path(places[0]).parent for name, places in found.items() if places[0]}


class _PluginFile:
    """A local Python file with plugins, and what it imports from its folder."""

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
        """Top-level names of the modules that it imports from its folder."""
        names = {name.partition(":")[0] for name in self.code.modules} - {self.root}
        return {name.partition(".")[0] for name in names} - {*PACKAGES}

    def forget(self) -> None:
        """Makes the file and the modules beside it run again when they are next imported."""
        for name in [name for name in sys.modules if name == self._name or name.partition(".")[0] in self.helpers]:
            del sys.modules[name]

    def load(self) -> ModuleType:
        """The file as a module.

        Raises:
            UserError: when running it ends in an exception, or ends the program.
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
            raise UserError(_one_line(error)) from error
        return module


def _check_helpers(files: Sequence[_PluginFile]) -> None:
    """Refuses two plugins that mean different modules by one name: a process can hold only one of them."""
    owners: dict[str, _PluginFile] = {}
    for file in files:
        for helper in file.helpers:
            other = owners.setdefault(helper, file)
            if other.folder != file.folder:
                raise UserError(
                    f"--plugin {other.path} and {file.path}: each imports a module {helper!r} of its own folder; "
                    "rename one, or run them apart"
                )


class _BytesLoader(SourceFileLoader):
    """Runs a module from bytes that were read before, or from its file, never from cached bytecode."""

    def __init__(self, name: str, path: str, contents: Mapping[Path, bytes]) -> None:
        super().__init__(name, path)
        self._contents = contents

    def get_data(self, path: str) -> bytes:
        """The bytes of a file."""
        content = self._contents.get(Path(path))
        return super().get_data(path) if content is None else content

    def get_code(self, fullname: str) -> CodeType:
        """The module's code."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _Beside:
    """Finds the modules in the folder of a plugin."""

    def __init__(self, folder: Path, contents: dict[Path, bytes]) -> None:
        self._folder, self._contents = folder, contents

    @classmethod
    def install(cls, folder: Path, contents: Mapping[Path, bytes]) -> None:
        """Puts a folder before all others; ``contents`` are of files that may be in it."""
        known: dict[Path, bytes] = {}
        for finder in [finder for finder in sys.meta_path if isinstance(finder, cls) and finder._folder == folder]:
            known |= finder._contents
            sys.meta_path.remove(finder)
        sys.meta_path.insert(0, cls(folder, {**known, **contents}))

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Where a module of the folder is; None for others."""
        top = name.partition(".")[0]
        if top in PACKAGES or top in sys.stdlib_module_names:
            return None
        loaders: Any = (ExtensionFileLoader, EXTENSION_SUFFIXES), (self._loader, SOURCE_SUFFIXES)
        folders = [self._folder] if path is None else [Path(place) for place in path]
        for folder in folders:
            if not folder.is_relative_to(self._folder):
                continue
            spec = FileFinder(str(folder), *loaders).find_spec(name)
            # A folder without code, such as one with data, may have the name of an installed package.
            if spec is not None and (spec.loader is not None or PathFinder.find_spec(name, path) is None):
                return spec
        return None

    def _loader(self, name: str, path: str) -> _BytesLoader:
        return _BytesLoader(name, path, self._contents)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
