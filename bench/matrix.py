"""Matrix files: what ``assay run`` executes. TOML, validated; unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench.cards import AttackCard, Kind
from bench.errors import UserError, unknown
from bench.norms import NORMS, Norm
from bench.parameters import refusal
from bench.registry import Group, Plugin, Registry, Variants

StudyKind = Literal["lower_bound", "distal", "detection", "reconstruction"]
PLUGINS: tuple[Group, ...] = ("defenses", "attacks")
"""The keys of a matrix whose entries are plugins."""
Threshold = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Entry(_Strict):
    """A plugin of a matrix.

    Attributes:
        name: its registered name.
        variant: what tells two entries of the same plugin apart; shown after a colon.
        parameters: the plugin's own, as its function declares them.
    """

    name: str
    variant: str = Field("", pattern=r"^[a-z0-9_]*$")
    parameters: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """The name in ledgers and tables."""
        return f"{self.name}:{self.variant}" if self.variant else self.name


class DefenseEntry(_Entry):
    """One defense of a matrix.

    Attributes:
        attacks: only these run on it, by name or label (default: all).
        studies: only these of the matrix's are made of it (default: all).
    """

    attacks: tuple[str, ...] | None = None
    studies: tuple[StudyKind, ...] | None = None

    def admits(self, attack: AttackEntry) -> bool:
        """True if the attack may run on this defense."""
        return self.attacks is None or bool({attack.name, attack.label} & {*self.attacks})


class AttackEntry(_Entry):
    """One attack of a matrix.

    Attributes:
        norms: threat models (default: all that the attack and the matrix share).
        bounded: fill the ball of the norm's threshold instead of minimising the distance.
        budget: forward plus backward passes per sample (default: the card's).
        defenses: only against these; others have entries of their own, or none.
    """

    norms: tuple[Norm, ...] | None = None
    bounded: bool = False
    budget: int | None = Field(None, ge=1)
    defenses: tuple[str, ...] | None = None

    @property
    def kind(self) -> Kind:
        """Whether it fills a ball or minimizes the distance."""
        return "bounded" if self.bounded else "minimal"

    def covers(self, defense: str) -> bool:
        """True if this entry is meant for the defense of this label."""
        return self.defenses is None or defense in self.defenses

    def effective(self, card: AttackCard, norms: Sequence[str]) -> dict[str, Any]:
        """The parameters that have an effect in one of these norms: as set here, or their defaults."""
        parameters = {**card.parameters, **self.parameters}
        return {name: parameters[name] for name in parameters if any(card.matters(name, self.kind, n) for n in norms)}


class Matrix(_Strict):
    """A benchmark: one dataset, some defenses, some attacks.

    Attributes:
        name: of the run's folder; the file's stem unless given.
        samples: the first so many images of the test set.
        thresholds: per norm, the epsilon of accuracies and of bounded attacks; its keys are the norms attacked. At
            0 accuracy is clean accuracy.
        seed: of training and attacks.
        chunk: samples attacked together (default: the defense's batch size).
        cell_timeout: seconds after which a cell fails.
        substitute: the defense that attacks with `transfer` access make their perturbations on.
        studies: what is found out about each defense besides (kinds of `bench.studies`), where it applies.
        estimation_draws: further draws that say how often a randomized defense misclassifies an image.
        resubmissions: of an image to a randomized defense, until one is misclassified.
    """

    name: str = ""
    dataset: str
    samples: int = Field(ge=1)
    thresholds: dict[Norm, Threshold] = Field(min_length=1)
    defenses: tuple[DefenseEntry, ...] = Field(min_length=1)
    attacks: tuple[AttackEntry, ...] = Field(min_length=1)
    seed: int = Field(0, ge=0)
    chunk: int | None = Field(None, ge=1)
    cell_timeout: float | None = Field(None, gt=0)
    substitute: str = "cnn"
    studies: tuple[StudyKind, ...] = ("lower_bound",)
    estimation_draws: int = Field(20, ge=1)
    resubmissions: int = Field(10, ge=1)

    @property
    def labels(self) -> list[str]:
        """The defenses, as ledgers and tables call them."""
        return [entry.label for entry in self.defenses]

    @property
    def variants(self) -> Variants:
        """The defenses whose labels or parameters are the matrix's own, for the registry."""
        return {
            entry.label: (entry.name, entry.parameters) for entry in self.defenses if entry.variant or entry.parameters
        }

    @field_validator("attacks", "defenses", mode="before")
    @classmethod
    def _names_are_entries(cls, value: object) -> object:
        return [_entry(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    @field_validator("studies")
    @classmethod
    def _no_study_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a study stands twice")
        return value

    @model_validator(mode="after")
    def _enough_draws(self) -> Matrix:
        if self.resubmissions > self.estimation_draws:
            raise ValueError(
                f"resubmissions is {self.resubmissions}; at most estimation_draws, {self.estimation_draws}, are allowed"
            )
        return self

    @model_validator(mode="after")
    def _no_place_twice(self) -> Matrix:
        for label, count in Counter(self.labels).items():
            if count > 1:
                raise ValueError(f"defense {label!r} stands twice; give one a variant")
        seen: set[tuple[str, str, Norm | None]] = set()
        for entry in self.attacks:
            for defense in self.attacked_by(entry):
                for norm in entry.norms or (None,):
                    place = (entry.label, defense, norm)
                    if place in seen:
                        raise ValueError(f"attack {entry.label!r} stands twice for {defense!r}; give one a variant")
                    seen.add(place)
        return self

    def attacked_by(self, entry: AttackEntry) -> list[str]:
        """The labels of the defenses that an attack's entry runs on, in order."""
        return [each.label for each in self.defenses if entry.covers(each.label) and each.admits(entry)]

    def studied(self, kind: StudyKind) -> list[str]:
        """The labels of the defenses that a kind of study is made of, in order."""
        return [each.label for each in self.defenses if each.studies is None or kind in each.studies]

    def norms_of(self, entry: AttackEntry, card: AttackCard) -> list[Norm]:
        """The norms an entry attacks, in the order of the thresholds."""
        wanted = set(card.norms) if entry.norms is None else set(entry.norms)
        return [norm for norm in self.thresholds if norm in wanted]


def matrices() -> list[str]:
    """Names of the embedded matrices."""
    folder = resources.files("bench") / "matrices"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_matrix(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """Where a matrix comes from, for messages, and its TOML as a dictionary with ``name`` filled in.

    Raises:
        UserError: when there is no such matrix or it is not TOML.
    """
    path = Path(name_or_path)
    if name_or_path in matrices():
        where = f"matrix {name_or_path}"
        text = (resources.files("bench") / "matrices" / f"{name_or_path}.toml").read_text()
    elif path.suffix == ".toml" and path.is_file():
        where, text = f"matrix {path}", path.read_text()
    else:
        raise UserError(f"{unknown('matrix', name_or_path, matrices())}, or the path of a .toml file")
    try:
        return where, {"name": path.stem, **tomllib.loads(text)}
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None


def with_settings(where: str, data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A matrix with ``key=value`` changes; values are TOML.

    ``thresholds.L2=2`` and ``chunk=7`` change the matrix's keys, ``boundary.steps=100`` a parameter of an attack (or of
    a defense), ``boundary.budget=500`` an attack's budget.

    Raises:
        UserError: for a setting that names no key.
    """
    data = _with_entries(data)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UserError(f"--set {setting}: write key=value, for example thresholds.L2=2 or boundary.steps=100")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        head, _, tail = key.partition(".")
        entries = {group: [entry for entry in _entries(data, group) if _label(entry) == head] for group in PLUGINS}
        if not tail and head in Matrix.model_fields:
            data = _with_entries({**data, head: value})
        elif head == "thresholds":
            data["thresholds"] = {**data.get("thresholds", {}), tail: value}
        elif tail == "budget" and entries["attacks"]:
            for entry in entries["attacks"]:
                entry["budget"] = value
        elif tail and any(entries.values()):
            for entry in (*entries["defenses"], *entries["attacks"]):
                entry["parameters"] = {**entry.get("parameters", {}), tail: value}
        else:
            labels = [_label(entry) for group in PLUGINS for entry in _entries(data, group)]
            raise unknown("key", key, [*Matrix.model_fields, *(f"{label}.PARAMETER" for label in labels)], "--set")
    return data


def build_matrix(
    where: str,
    data: dict[str, Any],
    registry: Registry,
    *,
    samples: int | None = None,
    seed: int | None = None,
    defenses: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    norms: Sequence[str] | None = None,
) -> Matrix:
    """A validated matrix, with the command line's choices.

    ``defenses`` and ``attacks`` select by name or label, and may name plugins that the matrix does not.

    Raises:
        UserError: with one line that names the file, the key, the value and what is allowed.
    """
    data = _with_entries(data)
    _check_attacks(where, data)
    if samples is not None:
        data["samples"] = samples
    if seed is not None:
        data["seed"] = seed
    if defenses is not None:
        data["defenses"] = _selected(_entries(data, "defenses"), defenses)
    if attacks is not None:
        data["attacks"] = _selected(_entries(data, "attacks"), attacks)
    if norms is not None:
        for norm in norms:
            if norm not in NORMS:
                raise unknown("norm", norm, NORMS, "--norms")
            if norm not in data.get("thresholds", {}):
                raise UserError(f"--norms {norm}: {where} has no threshold for it; add --set thresholds.{norm}=...")
        data["thresholds"] = {norm: data["thresholds"][norm] for norm in norms}
    try:
        matrix = Matrix.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error)}") from None
    _check_plugins(where, matrix, registry)
    return matrix


def _entry(entry: Any) -> Any:
    return {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else entry


def _with_entries(data: dict[str, Any]) -> dict[str, Any]:
    """A matrix whose plugins are entries where they are lists; what is not is left for the validation to refuse."""
    plugins = {group: data[group] for group in PLUGINS if isinstance(data.get(group), list)}
    return {**data, **{group: [_entry(entry) for entry in entries] for group, entries in plugins.items()}}


def _entries(data: dict[str, Any], group: Group) -> list[dict[str, Any]]:
    """The entries of a group, by reference, without those that are none."""
    entries = data.get(group)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _label(entry: dict[str, Any]) -> str:
    return ":".join(filter(None, (str(entry.get("name", "")), str(entry.get("variant", "")))))


def _selected(entries: Sequence[dict[str, Any]], wanted: Sequence[str]) -> list[dict[str, Any]]:
    chosen = []
    for name in wanted:
        matching = [entry for entry in entries if name in (entry.get("name"), _label(entry))]
        chosen += matching or [{"name": name}]
    return chosen


def _check_attacks(where: str, data: dict[str, Any]) -> None:
    """Refuses a defense's attack that the whole matrix does not have; what the command line chooses of it may not."""
    known = {name for entry in _entries(data, "attacks") for name in (str(entry.get("name")), _label(entry))}
    for defense in _entries(data, "defenses"):
        named = defense.get("attacks")
        for attack in map(str, named if isinstance(named, list) else ()):
            if attack not in known:
                raise unknown(f"attack of {_label(defense)}", attack, known, where)


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


def _check_plugins(where: str, matrix: Matrix, registry: Registry) -> None:
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
        if entry.bounded and not entry.variant and "minimal" in card.kinds:
            raise UserError(f'{where}: attack {entry.name!r} is bounded here; give it a variant, such as "bounded"')
        if card.access == "transfer":
            _check_substitute(where, matrix.substitute, registry)
    if not any(matrix.attacked_by(entry) for entry in matrix.attacks):
        labels = ", ".join(dict.fromkeys(entry.label for entry in matrix.attacks))
        raise UserError(f"{where}: its entries let none of {labels} run on any of {', '.join(matrix.labels)}")


def _is_defense(name: str, registry: Registry) -> bool:
    try:
        registry.get("defenses", name)
    except UserError:
        return False
    return True


def _check_parameters(where: str, entry: _Entry, plugin: Plugin) -> None:
    defaults = plugin.card.parameters
    for parameter, value in entry.parameters.items():
        if not defaults:
            raise UserError(f"{where}: {entry.name} has no parameters, and {parameter!r} is set")
        if parameter not in defaults:
            raise unknown(f"parameter of {entry.name}", parameter, defaults, where)
        if (wanted := refusal(plugin.function, parameter, value)) is not None:
            raise UserError(f"{where}: {entry.name}.{parameter} is {value!r}; it must be {wanted}")


def _check_effects(where: str, entry: AttackEntry, card: AttackCard) -> None:
    """Refuses parameters that change nothing in the entry's kind and norms."""
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
