"""Checks a matrix against the cards of its plugins."""

from __future__ import annotations

from bench.contracts.cards import AttackCard
from bench.contracts.errors import UserError, unknown
from bench.contracts.parameters import refusal
from bench.planning.matrix import AttackEntry, Entry, Matrix
from bench.plugins.registry import Plugin, Registry

RENAMED = {
    "bisections": ("binary_search_steps",),
    "clean_bisections": ("clean_binary_search_steps",),
    "draws": ("eot_samples",),
    "rungs": ("num_scales",),
    "step": ("relative_step_size", "step_size"),
}
"""Former names of parameters, and the names they may have now."""


def check_plugins(where: str, matrix: Matrix, registry: Registry) -> None:
    """Checks the plugins, parameters and kinds of a matrix from ``where``.

    Raises:
        UserError: names the error in the matrix.
    """
    for defense in matrix.defenses:
        _check_parameters(where, defense, registry.get("defenses", defense.name))
        if defense.variant and _is_defense(defense.label, registry):
            raise UserError(f"{where}: {defense.label!r} is another defense's name; choose another variant")
    for entry in matrix.attacks:
        plugin = registry.get("attacks", entry.name)
        card = plugin.attack_card
        _check_parameters(where, entry, plugin)
        for norm in entry.norms or ():
            if norm not in card.norms:
                raise unknown(f"norm of {entry.name}", norm, card.norms, where)
        if entry.kind not in card.kinds:
            kinds = " and ".join(card.kinds)
            raise UserError(f"{where}: attack {entry.name!r} is {kinds}, not {entry.kind} (key bounded)")
        _check_effects(where, entry, card)
        if entry.start and (entry.bounded or not card.refines):
            why = "bounded here" if entry.bounded else f"not one of those that can: {', '.join(_refiners(registry))}"
            raise UserError(f"{where}: attack {entry.label!r} has start = {[*entry.start]}, and it is {why}")
        if entry.bounded and not entry.variant and "minimal" in card.kinds:
            raise UserError(f'{where}: attack {entry.name!r} is bounded here; give it a variant, such as "bounded"')
        if card.access == "transfer":
            _check_substitute(where, matrix.substitute, registry)
    if not any(matrix.attacked_by(entry) for entry in matrix.attacks):
        labels = ", ".join(dict.fromkeys(entry.label for entry in matrix.attacks))
        raise UserError(f"{where}: its entries let none of {labels} run on any of {', '.join(matrix.labels)}")


def _refiners(registry: Registry) -> list[str]:
    return [name for name in registry.names("attacks") if registry.get("attacks", name).attack_card.refines]


def _is_defense(name: str, registry: Registry) -> bool:
    try:
        registry.get("defenses", name)
    except UserError:
        return False
    return True


def _check_parameters(where: str, entry: Entry, plugin: Plugin) -> None:
    defaults = plugin.card.parameters
    for parameter, value in entry.parameters.items():
        if not defaults:
            raise UserError(f"{where}: {entry.name} has no parameters, and {parameter!r} is set")
        if parameter not in defaults:
            if new := [name for name in RENAMED.get(parameter, ()) if name in defaults]:
                raise UserError(f"{where}: {entry.name}.{parameter} is now called {new[0]}")
            raise unknown(f"parameter of {entry.name}", parameter, defaults, where)
        if (wanted := refusal(plugin.function, parameter, value)) is not None:
            raise UserError(f"{where}: {entry.name}.{parameter} is {value!r}; it must be {wanted}")


def _check_effects(where: str, entry: AttackEntry, card: AttackCard) -> None:
    """Refuses parameters that have no effect in the entry's kind and norms."""
    norms = entry.norms or card.norms
    effective = entry.effective(card, norms)
    for parameter, value in entry.parameters.items():
        if parameter not in effective:
            places = " ".join(place for place, names in card.only.items() if parameter in names)
            raise UserError(
                f"{where}: {entry.label}.{parameter} is {value!r}, but has no effect on {entry.kind} attacks in "
                f"{', '.join(norms)}; it is for {places} attacks only"
            )


def _check_substitute(where: str, name: str, registry: Registry) -> None:
    try:
        access = registry.get("defenses", name).defense_card.access
    except UserError as error:
        raise UserError(f"{where}: key substitute: {error}") from None
    if access != "gradient":
        raise UserError(f"{where}: substitute {name!r} gives {access} access only; transfer needs gradients")
