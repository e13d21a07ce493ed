"""Parameters are checked against what an attack does with them."""

import pytest
from built_matrix import VALID, build

from bench.contracts.cards import attack
from bench.contracts.errors import UserError
from bench.planning.files import build_matrix
from bench.plugins.registry import Registry


def entry(name, parameters, *, bounded=False, **keys):
    return {"name": name, "parameters": parameters, "bounded": bounded, "variant": "v" if bounded else "", **keys}


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (
            entry("pgd", {"epsilon": 1}, bounded=True),
            "pgd:v.epsilon is 1, but has no effect on bounded attacks in L2, Linf; it is for minimal attacks only",
        ),
        (
            entry("pgd", {"restarts": 2}),
            "pgd.restarts is 2, but has no effect on minimal attacks in L2, Linf; it is for bounded attacks only",
        ),
        (
            entry("mim_ge", {"binary_search_steps": 3}, bounded=True),
            "mim_ge:v.binary_search_steps is 3, but has no effect on bounded",
        ),
        (entry("square", {"steps": 3}), "square.steps is 3, but has no effect on minimal attacks"),
        (
            entry("square", {"search_steps": 3}, bounded=True),
            "square:v.search_steps is 3, but has no effect on",
        ),
        (
            entry("pointwise", {"binary_search_steps": 3}, norms=["L0"]),
            "pointwise.binary_search_steps is 3, but has no effect on minimal attacks in L0; it is for L2 attacks only",
        ),
    ],
)
def test_a_parameter_without_effect_is_refused(attack, message):
    with pytest.raises(UserError) as caught:
        build(changes={"attacks": [attack]})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "attack",
    [
        entry("apgd_ce", {"restarts": 2}),
        entry("apgd_ce", {"restarts": 2}, bounded=True),
        entry("eot_pgd", {"eot_samples": 2}),  # matters to randomized defenses only
        entry("pointwise", {"binary_search_steps": 3}),
    ],
)
def test_a_parameter_with_an_effect_somewhere_is_not_refused(attack):
    assert build(changes={"attacks": [attack]}).attacks[0].parameters == attack["parameters"]
    assert build(changes={"attacks": [attack]}, norms=["L0", "L2"])


def test_parameters_without_effect_are_no_part_of_an_entry():
    minimal, bounded = build(changes={"attacks": ["square", entry("square", {"steps": 9}, bounded=True)]}).attacks
    card = Registry().get("attacks", "square").attack_card
    assert minimal.effective(card, ["L2"]) == {
        "share": 0.8,
        "search_steps": 200,
        "epsilon": 0.3,
        "binary_search_steps": 10,
    }
    assert bounded.effective(card, ["L2"]) == {"share": 0.8, "steps": 9}


PLUGIN = """
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Lt

from bench import attack

if TYPE_CHECKING:
    from numbers import Real


@attack("nudge", norms=["L2"], access="decision", budget=5, kinds=["minimal", "bounded"], only={"bounded": ["once"]})
def nudge(
    oracle, x, y, *,
    steps: int = 10, size: float = 0.1, low: float | None = None, way: Literal["up", "down"] = "up",
    share: Annotated[float, Lt(1)] = 0.5, known: Real = 3, bare=7, anything=None, once: bool = False,
):
    return x

"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "nudge.py").write_text(PLUGIN)
    return Registry([tmp_path / "nudge.py"])


def with_nudge(registry, parameter, value):
    changes = {"attacks": [{"name": "nudge", "parameters": {parameter: value}}]}
    return build_matrix("matrix test", {**VALID, **changes}, registry)


@pytest.mark.parametrize(
    ("parameter", "value", "wanted"),
    [
        ("steps", "ten", "a valid integer"),
        ("steps", 1.5, "a valid integer"),
        ("steps", True, "a valid integer"),
        ("size", "1", "a valid number"),
        ("size", False, "a valid number"),
        ("size", float("inf"), "a finite number"),
        ("size", float("nan"), "a finite number"),
        ("low", "none", "a valid number"),
        ("way", "sideways", "'up' or 'down'"),
        ("share", 1, "less than 1"),
        ("known", "x", "a valid integer"),
        ("bare", 1.5, "a valid integer"),
        ("bare", [7], "a valid integer"),
    ],
)
def test_a_parameter_is_checked_against_its_annotation(plugin, parameter, value, wanted):
    """Or against the type of its default, where there is no annotation that can be evaluated."""
    with pytest.raises(UserError) as caught:
        with_nudge(plugin, parameter, value)
    assert str(caught.value) == f"matrix test: nudge.{parameter} is {value!r}; it must be {wanted}"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("steps", 3), ("size", 1), ("low", 2), ("way", "down"), ("share", 0.9), ("bare", 3), ("anything", "x")],
)
def test_what_an_annotation_allows_is_accepted(plugin, parameter, value):
    assert with_nudge(plugin, parameter, value).attacks[0].parameters == {parameter: value}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"bounded": ["size"]}, "card of 'broken': unknown only 'bounded'"),
        ({"Linf": ["size"]}, "card of 'broken': unknown only 'Linf'"),
        ({"minimal": ["sise"]}, "unknown parameter 'sise'; did you mean 'size'"),
    ],
)
def test_a_card_names_its_own_kinds_norms_and_parameters(only, message):
    with pytest.raises(UserError, match=message):

        @attack("broken", norms=["L2"], access="decision", budget=5, only=only)
        def broken(oracle, x, y, *, size=0.1):
            return x
