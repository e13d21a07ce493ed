"""Finds defenses and attacks: built-ins by name, local files by path, installed packages by entry point.

Nothing is imported before it is needed. A broken plugin is listed with its error and is fatal only if selected.

A local file runs from the same bytes as its digest, not from Python's bytecode cache. So do the modules that it imports
from its folder. These modules take precedence over others, like modules beside a script. Names of our packages and of
Python's own modules are not looked up in the folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import Distribution, EntryPoint, entry_points, packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.contracts.cards import AttackCard, Card, DefenseCard, card_of
from bench.contracts.errors import UserError, unknown
from bench.contracts.source import Closure, Sources
from bench.plugins.builtins import BUILTINS, WRAPPERS, Group
from bench.plugins.files import PluginFile, check_helpers, one_line
from bench.plugins.isolation import kept_defaults

Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Maps labels to names and parameters of defenses. A matrix gives a label to a defense whose parameters it sets."""
_CARD_TYPES: dict[Group, type[Card]] = {"defenses": DefenseCard, "attacks": AttackCard}


@dataclass(frozen=True)
class Plugin:
    """A plugin: a defense's factory or an attack's function, with its card.

    Attributes:
        source: its origin, for people: ``built-in``, ``package NAME VERSION`` or ``file PATH``.
        module: name of the module that declares it, as used in `sources`.
        sources: the files of its code.
        settings: the parameters that a matrix sets, with their values.
    """

    card: Card
    function: Callable[..., Any]
    source: str
    module: str
    sources: Sources = field(compare=False, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def code(self) -> Closure:
        """The plugin's modules: its own module, and everything that this module imports."""
        return self.sources.closure(self.module)

    @property
    def recipe(self) -> str:
        """The inputs of its training besides its card: a digest of code that is not ours, and a matrix's settings."""
        settings = json.dumps(dict(self.settings), sort_keys=True) if self.settings else ""
        return " ".join(filter(None, [self.code.foreign_digest, settings]))

    @property
    def attack_card(self) -> AttackCard:
        """The card of an attack plugin."""
        assert isinstance(self.card, AttackCard)
        return self.card

    @property
    def defense_card(self) -> DefenseCard:
        """The card of a defense plugin."""
        assert isinstance(self.card, DefenseCard)
        return self.card


@dataclass(frozen=True)
class _Found:
    """A declared name whose plugin is not imported yet."""

    name: str
    source: str
    load: Callable[[], Plugin]


class Registry:
    """All plugins that can be selected.

    Args:
        plugins: paths of local Python files. Every defense and attack declared in them is available. A file that is
            named twice counts once.
        variants: defenses whose parameters a matrix sets, by label.
        reuse: whether local files with unchanged code are reused as they ran earlier in this process.
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
        files = [PluginFile(Path(path)) for path in self.plugins]
        check_helpers(files)
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
        """Returns the names of all plugins of a group, built-ins first."""
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
        """Yields name, source and plugin of each entry of a group. A broken plugin is replaced by its error text."""
        for name, found in self._found[group].items():
            try:
                yield name, found[0].source, self.get(group, name)
            except UserError as error:
                yield name, found[0].source, str(error)
        for path, text in self._broken_files.items():
            yield Path(path).stem, f"file {path}", text

    def _variant(self, label: str) -> Plugin:
        """Returns the defense with the parameters that a matrix sets, by its label."""
        name, parameters = self.variants[label]
        plugin = self._plain.get("defenses", name)
        if not parameters and name == label:
            return plugin
        card = replace(plugin.defense_card, name=label, parameters={**plugin.defense_card.parameters, **parameters})
        return replace(plugin, card=card, function=partial(plugin.function, **parameters), settings=parameters)

    def _around(self, wrapper: str, wrapped: str) -> Plugin:
        """Returns a defense that wraps another one: ``<wrapper>:<wrapped>``."""
        base = self.get("defenses", wrapped)
        factory = getattr(importlib.import_module(WRAPPERS[wrapper]), wrapper)(base.defense_card)
        card = card_of(factory)
        assert isinstance(card, DefenseCard)
        return Plugin(card, factory, base.source, WRAPPERS[wrapper], self._sources)

    def _from_zoo(self, name: str) -> Plugin:
        """Returns a model of RobustBench's zoo: ``robustbench:<dataset>/<threat>/<name>``.

        `names` does not list these models.
        """
        module = "defenses.robustbench_adapter"
        factory = importlib.import_module(module).zoo_defense(name)
        card = card_of(factory)
        assert isinstance(card, DefenseCard)
        return Plugin(card, factory, "built-in", module, self._sources)

    def _add(self, group: Group, found: _Found) -> None:
        self._found[group].setdefault(found.name, []).append(found)

    def _local(self, file: PluginFile) -> list[tuple[Group, _Found]]:
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
            raise UserError(f"built-in {name!r} is broken: {one_line(error)}") from error
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
            raise UserError(f"{what} is broken: {one_line(error)}") from error
        card = card_of(function)
        if not isinstance(card, _CARD_TYPES[group]):
            raise UserError(f"{what} is broken: {entry_point.value} carries no @{group.removesuffix('s')} card")
        if card.name != entry_point.name:
            raise UserError(f"{what} is broken: its card says {card.name!r}")
        sources = Sources(distribution=_folders(entry_point.module.partition(".")[0], entry_point.dist))
        return Plugin(card, function, package, entry_point.module, sources)

    return _Found(entry_point.name, package, load)


def _declared(module: ModuleType) -> list[Callable[..., Any]]:
    """Returns the functions with a card that a module defines itself, each once, in order of definition."""
    own = {id(v): v for v in vars(module).values() if card_of(v) and v.__module__ == module.__name__}
    return list(own.values())


def _folders(top: str, distribution: Distribution | None) -> dict[str, Path]:
    """Returns the folders of an installed distribution's top-level modules and packages, by name, including ``top``."""
    tops = {top}
    if distribution is not None:
        tops |= {name for name, owners in packages_distributions().items() if distribution.name in owners}
    specs = {name: importlib.util.find_spec(name) for name in tops}
    found = {name: [*(spec.submodule_search_locations or ()), spec.origin] for name, spec in specs.items() if spec}
    return {name: Path(places[0]).parent for name, places in found.items() if places[0]}
