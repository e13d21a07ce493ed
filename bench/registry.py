"""Finds defenses and attacks: built-ins by name, local files by path, installed packages by entry point.

Nothing is imported before it is needed. A broken plugin is listed with its error and is fatal only if selected.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from bench.cards import AttackCard, Card, DefenseCard, card_of
from bench.errors import UserError, unknown

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
        digest: a hash of its code, for identities; empty for built-ins, whose cards have versions.
    """

    card: Card
    function: Callable[..., Any]
    source: str
    digest: str

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
        plugins: paths of local Python files; every defense and attack declared in them is available.
        variants: defenses with parameters of their own.
    """

    def __init__(self, plugins: Sequence[str | Path] = (), variants: Variants | None = None) -> None:
        self.plugins = tuple(str(plugin) for plugin in plugins)
        self.variants = variants or {}
        self._broken_files: dict[str, str] = {}
        self._found: dict[Group, dict[str, list[_Found]]] = {"defenses": {}, "attacks": {}}
        for group, names in BUILTINS.items():
            for name, module in names.items():
                self._add(group, _builtin(group, name, module))
        for wrapper in WRAPPERS:
            base = "cnn_gaussian"
            self._add("defenses", _Found(f"{wrapper}:{base}", "built-in", partial(self._around, wrapper, base)))
        for group in self._found:
            for entry_point in entry_points(group=f"assay.{group}"):
                self._add(group, _installed(group, entry_point))
        for path in self.plugins:
            for group, found in self._local(Path(path)):
                self._add(group, found)

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
            return _from_zoo(name)
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
        plugin = Registry(self.plugins).get("defenses", name)
        if not parameters and name == label:
            return plugin
        card = replace(plugin.defense_card, name=label, parameters={**plugin.defense_card.parameters, **parameters})
        digest = " ".join(filter(None, [plugin.digest, json.dumps(dict(parameters), sort_keys=True)]))
        return replace(plugin, card=card, function=partial(plugin.function, **parameters), digest=digest)

    def _around(self, wrapper: str, wrapped: str) -> Plugin:
        """A defense around another one: ``<wrapper>:<wrapped>``."""
        base = self.get("defenses", wrapped)
        factory = getattr(importlib.import_module(WRAPPERS[wrapper]), wrapper)(base.defense_card)
        card = card_of(factory)
        assert isinstance(card, DefenseCard)
        return Plugin(card, factory, base.source, base.digest)

    def _add(self, group: Group, found: _Found) -> None:
        self._found[group].setdefault(found.name, []).append(found)

    def _local(self, path: Path) -> list[tuple[Group, _Found]]:
        if not path.is_file():
            raise UserError(f"--plugin {path}: no such file")
        source, digest = f"file {path}", _digest(path)
        try:
            module = _import_file(path, digest)
        except UserError as error:
            self._broken_files[str(path)] = str(error)
            return []
        found: list[tuple[Group, _Found]] = []
        for group, card_type in _CARD_TYPES.items():
            for function in _declared(module):
                card = card_of(function)
                if isinstance(card, card_type):
                    plugin = Plugin(card, function, source, digest)
                    found.append((group, _Found(card.name, source, partial(_same, plugin))))
        if not found:
            self._broken_files[str(path)] = "declares no @defense and no @attack"
        return found


def _same(plugin: Plugin) -> Plugin:
    return plugin


def _builtin(group: Group, name: str, module: str) -> _Found:
    def load() -> Plugin:
        try:
            imported = importlib.import_module(module)
        except Exception as error:
            raise UserError(f"built-in {name!r} is broken: {_one_line(error)}") from error
        for function in _declared(imported):
            card = card_of(function)
            if isinstance(card, _CARD_TYPES[group]) and card.name == name:
                return Plugin(card, function, "built-in", "")
        raise UserError(f"built-in {name!r}: {module} declares no such plugin")

    return _Found(name, "built-in", load)


def _from_zoo(name: str) -> Plugin:
    """A model of RobustBench's zoo, whose names are not listed here: ``robustbench:<dataset>/<threat>/<name>``."""
    factory = importlib.import_module("defenses.robustbench_adapter").zoo_defense(name)
    card = card_of(factory)
    assert isinstance(card, DefenseCard)
    return Plugin(card, factory, "built-in", "")


def _installed(group: Group, entry_point: EntryPoint) -> _Found:
    package = f"package {entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "a package"

    def load() -> Plugin:
        what = f"{group.removesuffix('s')} {entry_point.name!r} of {package}"
        try:
            function = entry_point.load()
        except Exception as error:
            raise UserError(f"{what} is broken: {_one_line(error)}") from error
        card = card_of(function)
        if not isinstance(card, _CARD_TYPES[group]):
            raise UserError(f"{what} is broken: {entry_point.value} carries no @{group.removesuffix('s')} card")
        if card.name != entry_point.name:
            raise UserError(f"{what} is broken: its card says {card.name!r}")
        file = inspect.getsourcefile(function)
        return Plugin(card, function, package, f"{package} {_digest(Path(file)) if file else ''}")

    return _Found(entry_point.name, package, load)


def _declared(module: ModuleType) -> list[Callable[..., Any]]:
    """The functions with a card that a module defines itself, in their order, each once."""
    own = {id(v): v for v in vars(module).values() if card_of(v) and v.__module__ == module.__name__}
    return list(own.values())


def _import_file(path: Path, digest: str) -> ModuleType:
    name = f"assay_plugin_{path.stem}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(_one_line(error)) from error
    return module


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text and not isinstance(error, UserError) else text
