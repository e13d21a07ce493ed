"""Cards: what a plugin declares about itself, and the decorators that attach the cards.

A decorator only attaches its card to the function. `bench.plugins.scan` finds the names in the sources of built-in
modules, and `bench.plugins.registry` the functions that carry a card.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from bench.contracts.errors import UserError, unknown
from bench.contracts.norms import NormName
from bench.contracts.norms.known import norm_names

Access = Literal["gradient", "unrolled", "score", "decision", "latent", "transfer"]
"""The queries that an attack may make. `gradient` includes scores, and scores include decisions. `unrolled` gradients
are exact through the defense's optimization at inference. `latent` is scores and class-conditional reconstructions.
`transfer` is decisions and the candidates that attacks propose on a substitute."""
Kind = Literal["minimal", "bounded"]
"""`minimal` attacks minimize the distance. `bounded` attacks use the whole epsilon ball."""
GRANTS: dict[str, frozenset[str]] = {
    "decision": frozenset({"decision"}),
    "score": frozenset({"decision", "score"}),
    "gradient": frozenset({"decision", "score", "gradient"}),
    "unrolled": frozenset({"decision", "score", "gradient"}),
    "latent": frozenset({"decision", "score", "latent"}),
    "transfer": frozenset({"decision", "transfer"}),
}
_NAME = re.compile(r"[a-z][a-z0-9_]*(:[a-z0-9_]+)*|([a-z][a-z0-9_]*:)?robustbench:\w+/\w+/[\w.-]+")
_ATTRIBUTE = "__assay_card__"


@dataclass(frozen=True, kw_only=True)
class DefenseCard:
    """The declaration of a defense.

    Attributes:
        name: lower_snake_case; a variant follows a colon.
        datasets: names of the datasets it classifies.
        citation: where it was published.
        randomized: whether its ``logits`` take ``(x, rng)`` and differ between calls.
        access: the strongest query it answers: ``gradient``, ``score`` or ``decision``. Reconstructions (``latent``)
            are detected by protocol.
        binarization_threshold: intensity at which it binarizes its input (pixel >= threshold becomes 1), or None.
        surrogate_gradient: whether autograd deliberately returns something other than the derivative of the logits.
            Examples are a straight-through estimator and an inner search that is held fixed. A threshold or
            ``input_gradient`` implies it.
        batch_size: rows of one forward pass. On a GPU only verdicts keep to it (see `bench.contracts.devices`). It is
            part of a cell's identity because float arithmetic depends on it.
        version: number to raise when its weights must be retrained. Changes in built-in code do not retrain them.
        wraps: name of the defense it is built around, or None.
        family: the ablation family it belongs to; empty for none.
        parts: the family's components that this variant includes.
        parameters: names and defaults of the parameters that a matrix may set.
    """

    name: str
    datasets: tuple[str, ...]
    citation: str = ""
    randomized: bool = False
    access: Literal["gradient", "score", "decision"] = "gradient"
    binarization_threshold: float | None = None
    surrogate_gradient: bool = False
    batch_size: int = 64
    version: int = 1
    wraps: str | None = None
    family: str = ""
    parts: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("defense", self.name)
        _check_choice(self.name, "access", [self.access], ("gradient", "score", "decision"))
        if self.batch_size < 1:
            raise UserError(f"defense {self.name!r}: batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class AttackCard:
    """The declaration of an attack.

    Attributes:
        name: lower_snake_case.
        norms: names of the norms it attacks, see `bench.contracts.norms`.
        access: the access it needs, see `Access`.
        kinds: ``minimal``, ``bounded`` or both.
        stochastic: whether it draws random numbers.
        budget: maximum number of forward plus backward passes per sample. The oracle stops a sample there.
        library: whether it runs a library's code through `Oracle.as_module`. These queries carry no sample ids. A
            sample's counts are then its chunk's mean, and the budget stops the whole chunk. Each image passes for one
            of the sample whose clean image is nearest.
        refines: whether it can start from other attacks' adversarial examples (`bench.contracts.oracle.Oracle.starts`).
        citation: where it was published.
        parameters: names and defaults of the parameters that a matrix may set.
        only: for a kind or norm, the parameters that have an effect only there.
        short: values of parameters with which tests run it that are not about its strength.
        approximation_ratio: for each norm, how far from the optimum it may end. The first number bounds the median
            over samples of the ratio of the distance found to the smallest distance of an adversarial example. The
            second number bounds this ratio for each sample. Both hold with default parameters on linear and
            nearest-prototype classifiers. Infinity promises nothing. Built-in minimal attacks state all norms.
    """

    name: str
    norms: tuple[str, ...]
    access: Access
    kinds: tuple[Kind, ...] = ("minimal",)
    stochastic: bool = False
    budget: int
    library: bool = False
    refines: bool = False
    citation: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    only: dict[Kind | NormName, tuple[str, ...]] = field(default_factory=dict)
    short: dict[str, Any] = field(default_factory=dict)
    approximation_ratio: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("attack", self.name)
        _check_choice(self.name, "norms", self.norms, norm_names())
        _check_choice(self.name, "access", [self.access], get_args(Access))
        _check_choice(self.name, "kinds", self.kinds, get_args(Kind))
        if self.budget < 1:
            raise UserError(f"attack {self.name!r}: budget is {self.budget}; it must be at least 1")
        for place, names in self.only.items():
            _check_choice(self.name, "only", [place], (*self.kinds, *self.norms))
            if names:
                _check_choice(self.name, "parameter", names, tuple(self.parameters))
        if self.short:
            _check_choice(self.name, "parameter in short", tuple(self.short), tuple(self.parameters))
        if self.approximation_ratio:
            _check_choice(self.name, "norm in approximation_ratio", tuple(self.approximation_ratio), self.norms)

    def matters(self, parameter: str, kind: Kind, norm: str) -> bool:
        """Returns whether a parameter has an effect on attacks of this kind in this norm."""
        return all(place in (kind, norm) for place, names in self.only.items() if parameter in names)


@dataclass(frozen=True, kw_only=True)
class FamilyCard:
    """The declaration of a family of defenses: all names ``<name>:<member>``.

    Attributes:
        name: the part of the names before the first colon, lower_snake_case.
        member: what may follow the colon, for people, such as ``<defense>``.
        examples: members that lists of all defenses show.
    """

    name: str
    member: str
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"name {self.name!r} of a family of defenses is not lower_snake_case")


Card = DefenseCard | AttackCard
CardT = TypeVar("CardT")
Function = TypeVar("Function", bound=Callable[..., Any])
CardOf = Callable[[str], DefenseCard]
"""Returns the card of the defense with a name."""


def defense(
    name: str,
    *,
    datasets: Sequence[str],
    citation: str = "",
    randomized: bool = False,
    access: Literal["gradient", "score", "decision"] = "gradient",
    binarization_threshold: float | None = None,
    surrogate_gradient: bool = False,
    batch_size: int = 64,
    version: int = 1,
    wraps: str | None = None,
    family: str = "",
    parts: Sequence[str] = (),
) -> Callable[[Function], Function]:
    """Declares a factory as a defense. The arguments are those of `DefenseCard`.

    The factory may take ``dataset``, the `bench.datasets.dataset.Dataset` it is built for, and ``base``, the defense
    that it ``wraps``. The base is trained as a defense of its own. The factory's other keyword parameters, with their
    defaults, are the defense's parameters in a matrix. It returns a ``torch.nn.Module`` from images to logits, or an
    object with ``logits(x)`` (see `bench.contracts.protocols.Defense`).

    Example:
        >>> import torch
        >>> from bench import defense
        >>> @defense("linear", datasets=["digits"])
        ... def linear() -> torch.nn.Module:
        ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    """

    def decorate(function: Function) -> Function:
        card = DefenseCard(
            name=name,
            datasets=tuple(datasets),
            citation=citation,
            randomized=randomized,
            access=access,
            binarization_threshold=binarization_threshold,
            surrogate_gradient=surrogate_gradient,
            batch_size=batch_size,
            version=version,
            wraps=wraps,
            family=family,
            parts=tuple(parts),
            parameters=_keyword_defaults(f"defense {name!r}", function, given=("dataset", "base")),
        )
        return attach(card)(function)

    return decorate


def defense_family(name: str, *, member: str, examples: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Declares a function that makes the defenses of a family. The arguments are those of `FamilyCard`.

    ``function(member, card_of)`` returns the factory of the defense ``<name>:<member>``, to which `defense` attached a
    card of this name. It raises `UserError` if there is no such member. ``card_of(other)`` is the card of another
    defense, which the new defense may wrap (`CardOf`). In a built-in module, ``examples`` are literal strings.
    """
    return attach(FamilyCard(name=name, member=member, examples=tuple(examples)))


def attack(
    name: str,
    *,
    norms: Sequence[str],
    access: Access,
    budget: int,
    kinds: Sequence[Kind] = ("minimal",),
    stochastic: bool = False,
    library: bool = False,
    refines: bool = False,
    citation: str = "",
    only: Mapping[Kind | NormName, Sequence[str]] | None = None,
    short: Mapping[str, Any] | None = None,
    approximation_ratio: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[Function], Function]:
    """Declares ``function(oracle, x, y, *, parameters...)`` as an attack. The arguments are those of `AttackCard`.

    The function's keyword parameters, with their defaults, are the attack's parameters in a matrix. Their values are
    checked against the annotations (`bench.contracts.parameters`). ``only={"minimal": ["binary_search_steps"]}`` names
    parameters that a bounded attack ignores. A matrix that sets them for a bounded attack is refused.

    Example:
        >>> from bench import attack
        >>> @attack("gray", norms=["L2", "Linf"], access="decision", budget=1)
        ... def gray(oracle, x, y, *, level: float = 0.5):
        ...     return x + level * (0.5 - x)
    """

    def decorate(function: Function) -> Function:
        card = AttackCard(
            name=name,
            norms=tuple(norms),
            access=access,
            budget=budget,
            kinds=tuple(kinds),
            stochastic=stochastic,
            library=library,
            refines=refines,
            citation=citation,
            parameters=_attack_parameters(name, function),
            only={place: tuple(names) for place, names in (only or {}).items()},
            short=dict(short or {}),
            approximation_ratio=dict(approximation_ratio or {}),
        )
        return attach(card)(function)

    return decorate


def card_of(plugin: object) -> Card | None:
    """Returns the card that a decorator attached, or None."""
    return attached(plugin, DefenseCard) or attached(plugin, AttackCard)


def attached(plugin: object, kind: type[CardT]) -> CardT | None:
    """Returns the card of this kind that a decorator attached, or None."""
    card = getattr(plugin, _ATTRIBUTE, None)
    return card if isinstance(card, kind) else None


def attach(card: object) -> Callable[[Function], Function]:
    """Returns the decorator that attaches a card to a function and returns the same function."""

    def decorate(function: Function) -> Function:
        setattr(function, _ATTRIBUTE, card)
        return function

    return decorate


def _attack_parameters(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    parameters = list(inspect.signature(function).parameters.values())
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != 3 or len(positional) + len(keywords) != len(parameters):
        raise UserError(f"attack {name!r}: its signature must be (oracle, x, y, *, parameters...)")
    return _keyword_defaults(f"attack {name!r}", function)


def _keyword_defaults(what: str, function: Callable[..., Any], given: Sequence[str] = ()) -> dict[str, Any]:
    """Returns names and defaults of the keyword-only parameters, except those in ``given``."""
    parameters = inspect.signature(function).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given]
    for parameter in keywords:
        if parameter.default is parameter.empty:
            raise UserError(f"{what}: parameter {parameter.name!r} needs a default")
        if not isinstance(parameter.default, (bool, int, float, str, type(None))):
            raise UserError(f"{what}: parameter {parameter.name!r} must be a number, a string or None")
    return {p.name: p.default for p in keywords}


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"{what} name {name!r} is not lower_snake_case with an optional variant (abs:schott2019)")


def _check_choice(name: str, key: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    if not values:
        raise UserError(f"card of {name!r}: {key} is empty. Allowed: {', '.join(allowed)}")
    for value in values:
        if value not in allowed:
            raise unknown(key, value, allowed, where=f"card of {name!r}")
