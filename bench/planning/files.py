"""Reads matrix files and applies the changes from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.contracts.errors import UserError, unknown
from bench.contracts.norms import NORMS
from bench.planning.checks import check_plugins
from bench.planning.matrix import AttackEntry, DefenseEntry, Matrix, entries_of, label_of, with_entries
from bench.plugins.registry import GROUPS, Registry


def matrices() -> list[str]:
    """Returns the names of the embedded matrices."""
    folder = resources.files("bench") / "matrices"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_matrix(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """Returns the origin of a matrix (for messages) and its TOML as a dictionary with ``name`` filled in.

    With ``extends``, the keys that it does not have are those of the embedded matrix of this name.

    Raises:
        UserError: when the matrix does not exist or is not TOML.
    """
    path = Path(name_or_path)
    if name_or_path in matrices():
        where = f"matrix {name_or_path}"
        text = (resources.files("bench") / "matrices" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    elif path.suffix == ".toml" and path.is_file():
        where = f"matrix {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: cannot be read as UTF-8 text: {error}") from None
    else:
        raise UserError(f"{unknown('matrix', name_or_path, matrices())}, or the path of a .toml file")
    try:
        data = {"name": path.stem, **tomllib.loads(text)}
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None
    if (extended := data.pop("extends", None)) is None:
        return where, data
    if extended not in matrices() or extended == name_or_path:
        raise unknown("matrix to extend", str(extended), matrices(), where)
    return where, read_matrix(extended)[1] | data


def with_settings(where: str, data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Returns a matrix with ``key=value`` changes. The values are TOML.

    ``thresholds.L2=2`` and ``chunk=7`` change keys of the matrix. ``boundary.steps=100`` changes a parameter of an
    attack or a defense. ``boundary.budget=500`` and ``boundary.inner_budget=10000`` change the budgets of an attack.

    Raises:
        UserError: for a setting that is not ``key=value`` or whose key does not exist.
    """
    data = with_entries(data)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UserError(f"--set {setting}: write key=value, for example thresholds.L2=2 or boundary.steps=100")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        head, _, tail = key.partition(".")
        entries = {group: [entry for entry in entries_of(data, group) if label_of(entry) == head] for group in GROUPS}
        if not tail and head in Matrix.model_fields:
            data = with_entries({**data, head: value})
        elif head == "thresholds":
            data["thresholds"] = {**_table(data, "thresholds"), tail: value}
        elif tail in ("budget", "inner_budget") and entries["attacks"]:
            for entry in entries["attacks"]:
                entry[tail] = value
        elif tail and any(entries.values()):
            for entry in (*entries["defenses"], *entries["attacks"]):
                entry["parameters"] = {**_table(entry, "parameters"), tail: value}
        else:
            labels = [label_of(entry) for group in GROUPS for entry in entries_of(data, group)]
            raise unknown("key", key, [*Matrix.model_fields, *(f"{label}.PARAMETER" for label in labels)], "--set")
    return data


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns a table of a matrix, or an empty one if there is none.

    Raises:
        UserError: when the key holds another value.
    """
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{key}: a table is needed (it is {value!r})")
    return value


@dataclass(frozen=True)
class Choices:
    """What a user changes in a matrix; None leaves it as it is.

    Attributes:
        samples: the first N test images.
        seed: seed of training and attacks.
        defenses, attacks: names or labels to select. A name may be a plugin that the matrix does not contain.
        norms: norms to select.
        settings: see `with_settings`.
    """

    samples: int | None = None
    seed: int | None = None
    defenses: Sequence[str] | None = None
    attacks: Sequence[str] | None = None
    norms: Sequence[str] | None = None
    settings: Sequence[str] = ()


def chosen_matrix(name_or_path: str, choices: Choices, plugins: Sequence[str | Path] = ()) -> tuple[Matrix, Registry]:
    """Returns the validated matrix of a name or file with a user's choices, and the registry with their plugins.

    Raises:
        UserError: for anything that the user has to fix.
    """
    where, data = read_matrix(name_or_path)
    registry = Registry(plugins)
    return build_matrix(where, data, registry, choices), registry


def build_matrix(where: str, data: dict[str, Any], registry: Registry, choices: Choices = Choices()) -> Matrix:
    """Returns the validated matrix with a user's choices.

    Raises:
        UserError: for an invalid matrix. One line names the file, the key, the value and what is allowed.
    """
    data = with_settings(where, data, choices.settings)
    check_attacks(where, data)
    if choices.samples is not None:
        data["samples"] = choices.samples
    if choices.seed is not None:
        data["seed"] = choices.seed
    if choices.defenses is not None:
        data["defenses"] = _selected(entries_of(data, "defenses"), choices.defenses)
    if choices.attacks is not None:
        data["attacks"] = _selected(entries_of(data, "attacks"), choices.attacks)
    if choices.norms is not None:
        for norm in choices.norms:
            if norm not in NORMS:
                raise unknown("norm", norm, NORMS, "--norms")
            if norm not in _table(data, "thresholds"):
                raise UserError(f"--norms {norm}: {where} has no threshold for it; add --set thresholds.{norm}=...")
        data["thresholds"] = {norm: data["thresholds"][norm] for norm in choices.norms}
    try:
        matrix = Matrix.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error)}") from None
    check_plugins(where, matrix, registry)
    return matrix


def _selected(entries: Sequence[dict[str, Any]], wanted: Sequence[str]) -> list[dict[str, Any]]:
    chosen: list[dict[str, Any]] = []
    for name in wanted:
        matching = [entry for entry in entries if name in (entry.get("name"), label_of(entry))] or [{"name": name}]
        chosen += [entry for entry in matching if entry not in chosen]
    return chosen


def check_attacks(where: str, data: dict[str, Any]) -> None:
    """Refuses attacks of a defense that are missing from the whole matrix.

    The check comes before the command line's selection, because a selection may leave such attacks out.
    """
    known = {name for entry in entries_of(data, "attacks") for name in (str(entry.get("name")), label_of(entry))}
    for defense in entries_of(data, "defenses"):
        named = defense.get("attacks")
        for attack in map(str, named if isinstance(named, list) else ()):
            if attack not in known:
                raise unknown(f"attack of {label_of(defense)}", attack, known, where)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        models: dict[object, type[BaseModel]] = {"attacks": AttackEntry, "defenses": DefenseEntry}
        model = models.get(problem["loc"][0], Matrix)
        *place, wrong = map(str, problem["loc"])
        return ": ".join(filter(None, [".".join(place), str(unknown("key", wrong, model.model_fields))]))
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if problem["type"] in ("missing", "value_error") else f" (it is {problem['input']!r})"
    return f"{key}: {message}{value}" if key else message
