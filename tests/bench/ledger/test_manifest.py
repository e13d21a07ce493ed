import pytest
from made_up_manifest import cell, manifest, study

from bench.contracts.errors import UserError
from bench.contracts.work import Cell, Judging, Study
from bench.ledger.entries import AttackEntry, CellEntry, DatasetEntry, DefenseEntry, Turn, entry_of
from bench.ledger.manifest import combined

WORK = {"dataset": "d", "defense": "net", "norm": "L2", "seed": 0, "samples": 2, "batch_size": 8, "timeout": None}
CELL = {"attack": "a", "function": "a", "access": "gradient", "parameters": {"steps": 3}, "budget": 7, "chunk": 8}


@pytest.mark.parametrize("judging", [None, Judging(estimation_draws=30)])
def test_a_cells_entry_holds_what_its_file_must_agree_with(judging):
    planned = Cell(**WORK, **CELL, epsilon=0.5, state={}, judging=judging)
    shards = planned.shards(["x", "y"])
    entry = entry_of(planned, shards)
    assert (entry.id, entry.epsilon, entry.budget, entry.chunk) == (planned.id, 0.5, 7, 8)
    assert entry.files == tuple(shard.file for shard in shards)
    assert (entry.alpha, entry.estimation_draws) == ((0.001, 30) if judging else (None, None))
    assert entry.imported is None


def test_an_imports_entry_holds_its_state_without_the_candidates():
    judging = Judging((0.0006, 0.0002), 20, 0.5, seed=7)
    planned = Cell(**WORK, **CELL, epsilon=None, state={"weights": "w", "attack": "digest"}, judging=judging)
    entry = CellEntry.of_import(planned, [0])
    assert entry.imported == {"weights": "w"}
    assert entry.judging.alpha == (0.0006, 0.0002)
    assert (entry.alpha, entry.samples) == (0.001, (0,))


def test_a_studys_entry_has_its_kind():
    planned = Study(kind="distal", **{**WORK, "norm": None}, epsilon=None, state={})
    entry = entry_of(planned, planned.shards([]))
    assert (entry.kind, entry.norm, entry.id) == ("distal", None, planned.id)


def test_a_selection_keeps_its_norms_and_attacks_and_the_studies_without_a_norm():
    chosen = manifest().selected(["L2"], ["pgd"])
    assert [entry.id for entry in chosen.works] == ["pgd-L2", "lower_bound-L2", "distal-None"]
    assert (chosen.thresholds, chosen.not_applicable) == ({"L2": 0.5}, ())
    assert [attack.name for attack in chosen.attacks] == ["pgd"]
    assert manifest().selected(["L2", "Linf"], ["pgd", "fgm"]) == manifest()


def test_imported_cells_are_listed_once_more_among_the_imports():
    new = cell("imported:mine", imported={}, samples=(0,))
    entered = manifest().with_imports([new])
    assert entered.cells[-1] == entered.imported[-1] == new
    assert entered.attacks[-1].access == "imported"
    assert entered.with_imports([new]) == entered


def test_studies_of_one_kind_are_replaced():
    replaced = manifest().with_studies("distal", [study("Linf", "distal")])
    assert [entry.id for entry in replaced.studies] == ["lower_bound-L2", "distal-Linf"]


def test_a_turn_is_entered_once():
    turn = Turn(defense="net", attack="imported:a", state={}, samples=(0,), seed=1, alpha=(0.1, 0.2))
    assert manifest().with_turn(turn).with_turn(turn).turns == (turn,)


# Combinations.


def test_a_combination_has_the_defenses_attacks_and_cells_of_all():
    other = manifest(
        matrix="n",
        defenses=(DefenseEntry(name="other", randomized=True),),
        attacks=(AttackEntry(name="fgm", norms=("Linf",), kind="minimal", access="gradient", budget=9),),
        cells=(cell("fgm", "Linf", id="x"), cell("fgm", "Linf", id="y", defense="other")),
        studies=(),
        resubmissions=5,
        not_applicable=(),
    )
    both = combined([manifest(), other])
    assert both.matrix == "m + n"
    assert [defense.name for defense in both.defenses] == ["net", "other"]
    assert {attack.name: attack.norms for attack in both.attacks} == {"pgd": ("L2", "Linf"), "fgm": ("L2", "Linf")}
    assert [entry.id for entry in both.cells] == ["pgd-L2", "pgd-Linf", "fgm-L2", "x", "y"]
    assert both.not_applicable == ()  # measured in the other
    assert both.resubmissions == 5


def test_runs_before_resubmissions_do_not_lower_their_number():
    assert combined([manifest(), manifest(resubmissions=0)]).resubmissions == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": DatasetEntry(name="e", classes=10, shape=(1, 4, 4))}, "different datasets: d and e"),
        ({"samples": (0, 1, 2)}, r"different images \(2 and 3 samples\)"),
        ({"seed": 1}, "different seeds: 0 and 1"),
        ({"thresholds": {"L2": 0.6}}, "different thresholds in L2: 0.5 and 0.6"),
        ({"defenses": (DefenseEntry(name="net", randomized=False, weights="w"),)}, "defense 'net' with different"),
        ({"cells": (cell(id="again"),)}, "net · pgd · L2 in two ways"),
        ({"studies": (study(id="again"),)}, "net · lower_bound · L2 in two ways"),
    ],
)
def test_runs_that_measured_differently_are_not_combined(fields, message):
    with pytest.raises(UserError, match=message):
        combined([manifest(), manifest(**fields)])
