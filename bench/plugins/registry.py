"""Finds defenses and attacks: built-ins by name, local files by path, installed packages by entry point.

Nothing is imported before it is needed. A broken plugin is listed with its error and is fatal only if selected.

A local file runs from the same bytes as its digest, not from Python's bytecode cache. So do the modules that it imports
from its folder. These modules take precedence over others, like modules beside a script. Names of our packages and of
Python's own modules are not looked up in the folder.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import Distribution, EntryPoint, entry_points, packages_distributions
from pathlib import Path
from typing import Any, Literal, TypeVar

from bench.contracts.cards import AttackCard, Card, CardOf, DefenseCard, FamilyCard, attached, card_of
from bench.contracts.errors import UserError, unknown
from bench.contracts.source import Closure, Sources
from bench.plugins.catalog import Catalog, Declared, only, own_values
from bench.plugins.files import PluginFile, check_helpers, one_line
from bench.plugins.isolation import kept_defaults
from bench.plugins.scan import Declaration, Scan

Group = Literal["defenses", "attacks"]
GROUPS: tuple[Group, ...] = ("defenses", "attacks")
Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Maps labels to names and parameters of defenses. A matrix gives a label to a defense whose parameters it sets."""
MakeMember = Callable[[str, CardOf], Callable[..., Any]]
"""The function of a family of defenses (`bench.contracts.cards.defense_family`)."""
CARD_TYPES: dict[Group, type[Card]] = {"defenses": DefenseCard, "attacks": AttackCard}
BUILT_IN: dict[Group, Catalog[Card, Callable[..., Any]]] = {
    "defenses": Catalog("defense", "defenses", DefenseCard),
    "attacks": Catalog("attack", "attacks", AttackCard),
}
FAMILIES: Catalog[FamilyCard, MakeMember] = Catalog("defense_family", "defenses", FamilyCard)
BUILT_IN_SOURCE = "built-in"
Item = TypeVar("Item")


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
    """A declared name whose plugin is not imported yet.

    Attributes:
        source: its origin, as in `Plugin.source`.
        place: its origin in messages, which also names the module of a built-in.
    """

    name: str
    source: str
    place: str
    load: Callable[[], Plugin]


@dataclass(frozen=True)
class _Family:
    """A declared family of defenses whose function is not imported yet; ``place`` as in `_Found`."""

    source: str
    place: str
    sources: Sources
    load: Callable[[], Declared[FamilyCard, MakeMember]]


@dataclass(frozen=True)
class _Broken:
    """A file or module whose names cannot be read. Built-in modules belong to one group, files may belong to both."""

    name: str
    source: str
    place: str
    error: str
    groups: tuple[Group, ...] = GROUPS


class Registry:
    """All plugins that can be selected.

    Args:
        plugins: paths of local Python files. Everything declared in them is available. A file that is named twice
            counts once.
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
        self._broken: dict[str, _Broken] = {}
        self._found: dict[Group, dict[str, list[_Found]]] = {"defenses": {}, "attacks": {}}
        self._families: dict[str, list[_Family]] = {}
        self._add_built_in("attacks", BUILT_IN["attacks"].scan())
        self._add_built_in("defenses", BUILT_IN["defenses"].scan())
        self._add_built_in_families(FAMILIES.scan())
        for group in GROUPS:
            for entry_point in entry_points(group=f"assay.{group}"):
                self._add(group, _installed(group, entry_point))
        files = [PluginFile(Path(path)) for path in self.plugins]
        check_helpers(files)
        for file in files if not reuse else ():
            file.forget()
        for file in files:
            self._add_local(file)

    @cached_property
    def _plain(self) -> Registry:
        """The same plugins without variants."""
        return Registry(self.plugins, reuse=True)

    def names(self, group: Group) -> list[str]:
        """Returns the names of all plugins of a group: built-ins by module, then packages, then files."""
        return list(self._found[group])

    def get(self, group: Group, name: str) -> Plugin:
        """Imports one plugin.

        Raises:
            UserError: when the name is unknown, declared twice, or the plugin is broken.
        """
        if group == "defenses" and name in self.variants:
            return self._variant(name)
        what, found = group.removesuffix("s"), self._found[group].get(name)
        if found is not None:
            return only(what, name, found, [each.place for each in found]).load()
        family, _, member = name.partition(":")
        if group == "defenses" and member and family in self._families:
            return self._member(family, member)
        error = str(unknown(what, name, self._found[group]))
        broken = [f"{each.place} is broken: {each.error}" for each in self._broken.values() if group in each.groups]
        raise UserError("; ".join([error, *broken]))

    def rows(self, group: Group) -> Iterable[tuple[str, str, Plugin | str]]:
        """Yields name, source and plugin of each entry of a group. A broken plugin is replaced by its error text."""
        for name, found in self._found[group].items():
            try:
                yield name, found[0].source, self.get(group, name)
            except UserError as error:
                yield name, found[0].source, str(error)
        for broken in self._broken.values():
            if group in broken.groups:
                yield broken.name, broken.source, broken.error

    def _variant(self, label: str) -> Plugin:
        """Returns the defense with the parameters that a matrix sets, by its label."""
        name, parameters = self.variants[label]
        plugin = self._plain.get("defenses", name)
        if not parameters and name == label:
            return plugin
        card = replace(plugin.defense_card, name=label, parameters={**plugin.defense_card.parameters, **parameters})
        return replace(plugin, card=card, function=partial(plugin.function, **parameters), settings=parameters)

    def _member(self, name: str, member: str) -> Plugin:
        """Returns the defense ``<name>:<member>`` of a family. It has the source of the defense that it wraps."""
        families = self._families[name]
        family = only("family of defenses", name, families, [each.place for each in families])
        made = family.load()
        what = f"defense '{name}:{member}' ({family.place})"
        try:
            factory = made.function(member, lambda other: self.get("defenses", other).defense_card)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{what} is broken: {one_line(error)}") from error
        card = attached(factory, DefenseCard)
        if card is None or card.name != f"{name}:{member}":
            found = "no @defense card" if card is None else f"a card for {card.name!r}"
            raise UserError(f"{what} is broken: the family's function returned {found}")
        source = family.source if card.wraps is None else self.get("defenses", card.wraps).source
        return Plugin(card, factory, source, made.module, family.sources)

    def _add(self, group: Group, found: _Found) -> None:
        self._found[group].setdefault(found.name, []).append(found)

    def _add_built_in(self, group: Group, scan: Scan) -> None:
        for declaration in scan.declarations:
            load = partial(self._built_in, group, declaration)
            self._add(group, _Found(declaration.name, BUILT_IN_SOURCE, _place(declaration.module), load))
        self._add_broken(group, scan)

    def _built_in(self, group: Group, declaration: Declaration) -> Plugin:
        found = BUILT_IN[group].load(declaration)
        return Plugin(found.card, found.function, BUILT_IN_SOURCE, found.module, self._sources)

    def _add_built_in_families(self, scan: Scan) -> None:
        for declaration in scan.declarations:
            load = partial(FAMILIES.load, declaration)
            family = _Family(BUILT_IN_SOURCE, _place(declaration.module), self._sources, load)
            self._add_family(declaration.name, declaration.examples, family)
        self._add_broken("defenses", scan)

    def _add_broken(self, group: Group, scan: Scan) -> None:
        for module, error in scan.broken.items():
            place = _place(module)
            self._broken[place] = _Broken(module.rpartition(".")[2], BUILT_IN_SOURCE, place, error, (group,))

    def _add_family(self, name: str, examples: Iterable[str], family: _Family) -> None:
        self._families.setdefault(name, []).append(family)
        for member in examples:
            load = partial(self._member, name, member)
            self._add("defenses", _Found(f"{name}:{member}", family.source, family.place, load))

    def _add_local(self, file: PluginFile) -> None:
        source, place = f"file {file.path}", f"plugin {file.path}"
        try:
            values = own_values(file.load())
        except UserError as fault:
            self._broken[place] = _Broken(file.path.stem, source, place, str(fault))
            return
        for value in values:
            card, family = card_of(value), attached(value, FamilyCard)
            if card is not None:
                plugin = Plugin(card, value, source, file.root, file.sources)
                group: Group = "defenses" if isinstance(card, DefenseCard) else "attacks"
                self._add(group, _Found(card.name, source, source, partial(_same, plugin)))
            if family is not None:
                declared = Declared(family, value, file.root)
                self._add_family(
                    family.name, family.examples, _Family(source, source, file.sources, partial(_same, declared))
                )
        if not any(attached(value, kind) for value in values for kind in (DefenseCard, AttackCard, FamilyCard)):
            error = "declares no @defense, @attack or @defense_family"
            self._broken[place] = _Broken(file.path.stem, source, place, error)


def _same(value: Item) -> Item:
    return value


def _place(module: str) -> str:
    return f"{BUILT_IN_SOURCE} {module}"


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
        if not isinstance(card, CARD_TYPES[group]):
            raise UserError(f"{what} is broken: {entry_point.value} carries no @{group.removesuffix('s')} card")
        if card.name != entry_point.name:
            raise UserError(f"{what} is broken: its card says {card.name!r}")
        sources = Sources(distribution=_folders(entry_point.module.partition(".")[0], entry_point.dist))
        return Plugin(card, function, package, entry_point.module, sources)

    return _Found(entry_point.name, package, package, load)


def _folders(top: str, distribution: Distribution | None) -> dict[str, Path]:
    """Returns the folders of an installed distribution's top-level modules and packages, by name, including ``top``."""
    tops = {top}
    if distribution is not None:
        tops |= {name for name, owners in packages_distributions().items() if distribution.name in owners}
    specs = {name: importlib.util.find_spec(name) for name in tops}
    found = {name: [*(spec.submodule_search_locations or ()), spec.origin] for name, spec in specs.items() if spec}
    return {name: Path(places[0]).parent for name, places in found.items() if places[0]}
