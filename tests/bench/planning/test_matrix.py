"""Matrix files are validated whole; the first mistake is one line."""

import pytest
from built_matrix import VALID, build

from bench.contracts.errors import UserError
from bench.datasets.dataset import load_dataset
from bench.planning.cells import plan
from bench.planning.files import build_matrix, matrices, read_matrix
from bench.planning.matrix import Matrix
from bench.plugins.registry import Registry
from bench.studies.catalog import STUDIES
from bench.training.loading import make_defense


def test_names_become_entries_with_the_cards_norms_in_the_thresholds_order():
    matrix = build()
    registry = Registry()
    pgd = matrix.attacks[1]
    assert pgd.label == "pgd:bounded"
    assert matrix.norms_of(pgd, registry.get("attacks", "pgd").attack_card) == ["L2", "Linf"]


def test_the_command_lines_choices_win():
    matrix = build(samples=3, seed=7, defenses=["binary_cnn"], attacks=["pgd:bounded", "bim"], norms=["L2"])
    assert (matrix.samples, matrix.seed, matrix.labels) == (3, 7, ["binary_cnn"])
    assert [entry.label for entry in matrix.attacks] == ["pgd:bounded", "bim"]
    assert dict(matrix.thresholds) == {"L2": 1.5}


def test_an_entry_chosen_by_name_and_by_label_runs_once():
    matrix = build(attacks=["pgd", "pgd:bounded", "pgd"])
    assert [entry.label for entry in matrix.attacks] == ["pgd:bounded"]


def test_settings_change_keys_thresholds_parameters_and_budgets():
    matrix = build(
        ["samples=4", "thresholds.L2=2.5", "boundary.steps=9", "boundary.budget=77", "boundary.inner_budget=5000"]
    )
    assert matrix.samples == 4
    assert matrix.thresholds["L2"] == 2.5
    assert matrix.attacks[0].parameters == {"steps": 9}
    assert (matrix.attacks[0].budget, matrix.attacks[0].inner_budget) == (77, 5000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 3}, "unknown key 'sample'; did you mean 'samples'?"),
        ({"attacks": [{"name": "pgd", "paramters": {}}]}, "did you mean 'parameters'?"),
        ({"samples": 0}, "samples: Input should be greater than or equal to 1 (it is 0)"),
        ({"samples": "many"}, "samples: Input should be a valid integer"),
        ({"thresholds": {"L3": 1}}, "thresholds.L3"),
        ({"thresholds": {}}, "thresholds"),
        ({"attacks": ["pdg"]}, "unknown attack 'pdg'; did you mean 'pgd'?"),
        ({"attacks": [{"name": "pgd", "parameters": {"stepps": 3}}]}, "did you mean 'steps'?"),
        ({"attacks": [{"name": "pgd", "parameters": {"steps": "x"}}]}, "pgd.steps is 'x'; it must be a valid integer"),
        ({"thresholds": {"L2": -0.1}}, "thresholds.L2: Input should be greater than or equal to 0 (it is -0.1)"),
        ({"thresholds": {"L2": float("inf")}}, "thresholds.L2: Input should be a finite number (it is inf)"),
        ({"thresholds": {"L2": float("nan")}}, "thresholds.L2: Input should be a finite number (it is nan)"),
        ({"thresholds": {"L2": True}}, "thresholds.L2: Input should be a valid number (it is True)"),
        ({"thresholds": {"L2": "1"}}, "thresholds.L2: Input should be a valid number (it is '1')"),
        ({"attacks": [{"name": "mim", "norms": ["L2"]}]}, "unknown norm of mim 'L2'"),
        ({"attacks": [{"name": "boundary", "bounded": True, "variant": "b"}]}, "'boundary' is minimal, not bounded"),
        ({"attacks": [{"name": "pgd", "bounded": True}]}, "give it a variant"),
        ({"attacks": ["bim", "bim"]}, "attack 'bim' stands twice for 'cnn'"),
        ({"attacks": ["bim", {"name": "bim", "norms": ["L2"]}]}, "attack 'bim' stands twice for 'cnn'"),
        ({"defenses": ["cmn"]}, "did you mean 'cnn'?"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_key_and_value(changes, message):
    with pytest.raises(UserError) as caught:
        build(changes=changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "choices", "message"),
    [
        ({"thresholds": 3}, {"norms": ["L2"]}, "thresholds: a table is needed (it is 3)"),
        ({"thresholds": [1]}, {"settings": ["thresholds.L2=2"]}, "thresholds: a table is needed (it is [1])"),
        (
            {"attacks": [{"name": "pgd", "parameters": 3}]},
            {"settings": ["pgd.steps=2"]},
            "parameters: a table is needed (it is 3)",
        ),
    ],
)
def test_a_choice_within_something_that_is_no_table_is_refused(changes, choices, message):
    with pytest.raises(UserError) as caught:
        build(changes=changes, **choices)
    assert str(caught.value) == message


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UserError, match=r"mine\.toml: cannot be read as UTF-8 text"):
        read_matrix(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("setting", ["samples", "sampels=3", "boundry.steps=3"])
def test_a_wrong_setting_is_refused(setting):
    with pytest.raises(UserError, match="--set"):
        build([setting])


def test_the_same_attack_may_differ_between_defenses():
    entries = [{"name": "bim", "defenses": ["cnn"]}, {"name": "bim", "defenses": ["binary_cnn"], "budget": 5}]
    matrix = build(changes={"attacks": entries, "defenses": ["cnn", "binary_cnn"]})
    assert [entry.covers("cnn") for entry in matrix.attacks] == [True, False]


def test_an_entry_that_names_a_defense_replaces_the_general_one_there():
    entries = ["bim", "fgm", {"name": "bim", "defenses": ["binary_cnn"], "budget": 5}]
    matrix = build(changes={"attacks": entries, "defenses": ["cnn", "binary_cnn", "abs"]})
    everywhere = ["cnn", "binary_cnn", "abs"]
    assert [matrix.attacked_by(entry) for entry in matrix.attacks] == [["cnn", "abs"], everywhere, ["binary_cnn"]]


@pytest.mark.parametrize(
    ("attacks", "attacked_by"),
    [
        (["pgd:bounded"], ["pgd:bounded"]),
        (["pgd"], ["pgd", "pgd:bounded"]),
        (["boundary", "pgd:bounded"], ["boundary", "pgd:bounded"]),
        ([], []),
    ],
)
def test_a_defense_may_be_for_some_attacks_only_by_name_or_label(attacks, attacked_by):
    changes = {"attacks": ["pgd", *VALID["attacks"]], "defenses": ["cnn", {"name": "binary_cnn", "attacks": attacks}]}
    matrix = build(changes=changes.items())
    assert all("cnn" in matrix.attacked_by(entry) for entry in matrix.attacks)
    assert {e.label for e in matrix.attacks if "binary_cnn" in matrix.attacked_by(e)} == set(attacked_by)


def test_attacks_and_defenses_restrict_each_other():
    attacks = [{"name": "bim", "defenses": ["cnn"]}, {"name": "bim", "defenses": ["abs"], "budget": 5}, "fgm"]
    matrix = build(changes={"attacks": attacks, "defenses": ["cnn", {"name": "abs", "attacks": ["bim"]}]}.items())
    assert [matrix.attacked_by(entry) for entry in matrix.attacks] == [["cnn"], ["abs"], ["cnn"]]


def test_a_choice_of_attacks_may_leave_a_defense_with_none_but_not_all_defenses():
    changes = {"defenses": ["cnn", {"name": "abs", "attacks": ["pgd:bounded"]}]}
    matrix = build(changes=changes.items(), attacks=["boundary"])
    assert [matrix.attacked_by(entry) for entry in matrix.attacks] == [["cnn"]]
    with pytest.raises(UserError, match="matrix test: its entries let none of boundary run on any of abs"):
        build(changes=changes.items(), attacks=["boundary"], defenses=["abs"])


def test_a_defense_may_be_for_some_studies_only():
    defenses = ["cnn", {"name": "abs", "studies": ["distal"]}, {"name": "binary_abs", "studies": []}]
    matrix = build(changes={"defenses": defenses, "studies": ["lower_bound", "distal"]}.items())
    assert matrix.studied("lower_bound") == ["cnn"]
    assert matrix.studied("distal") == ["cnn", "abs"]


def test_a_matrix_that_is_not_there_or_not_toml_is_named(tmp_path):
    with pytest.raises(UserError, match="unknown matrix 'digit'; did you mean 'digits'"):
        read_matrix("digit")
    (tmp_path / "bad.toml").write_text("samples = ")
    with pytest.raises(UserError, match=r"bad.toml: not valid TOML"):
        read_matrix(str(tmp_path / "bad.toml"))


def test_a_matrix_may_extend_an_embedded_one(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("extends = 'digits'\nsamples = 7\ndefenses = ['cnn']\n[thresholds]\nL2 = 2")
    _, data = read_matrix(str(path))
    assert data == {
        **read_matrix("digits")[1],
        "name": "mine",
        "samples": 7,
        "defenses": ["cnn"],
        "thresholds": {"L2": 2},
    }
    for extended in ("digit", "mine.toml", 3):
        path.write_text(f"extends = {extended!r}")
        with pytest.raises(UserError, match=f"mine.toml: unknown matrix to extend {str(extended)!r}"):
            read_matrix(str(path))


@pytest.mark.parametrize("name", matrices())
def test_every_embedded_matrix_is_valid(name):
    where, data = read_matrix(name)
    assert build_matrix(where, data, Registry()).name == name


def test_the_studies_of_a_matrix_are_those_there_are():
    assert build(changes=[("studies", STUDIES.names())]).studies == tuple(STUDIES.names())
    assert Matrix.model_json_schema()["properties"]["studies"]["items"]["enum"] == STUDIES.names()


SMOOTHED = {"name": "variational_smoothing:cnn", "variant": "wide", "parameters": {"radius": 0.2, "steps": 3}}


@pytest.mark.parametrize(
    ("attack", "before", "now"),
    [
        ("pgd", "bisections", "binary_search_steps"),
        ("pgd", "step", "relative_step_size"),
        ("fmn", "step", "step_size"),
        ("latent_descent", "clean_bisections", "clean_binary_search_steps"),
        ("eot_pgd", "draws", "eot_samples"),
        ("gaussian_noise", "rungs", "num_scales"),
    ],
)
def test_a_former_name_of_a_parameter_is_refused_with_the_new_one(attack, before, now):
    with pytest.raises(UserError, match=rf"{attack}\.{before} is now called {now}$"):
        build(changes={"attacks": [{"name": attack, "parameters": {before: 1}}]}.items())


def test_a_defenses_parameters_make_it_a_defense_of_its_own():
    matrix = build(changes={"defenses": ["variational_smoothing:cnn", SMOOTHED]}.items())
    assert matrix.labels == ["variational_smoothing:cnn", "variational_smoothing:cnn:wide"]
    registry = Registry(variants=matrix.variants)
    dataset = load_dataset("digits")
    plain, wide = (make_defense(label, dataset, registry) for label in matrix.labels)
    assert (plain.defense.radius, plain.defense.steps) == (0.025, 1)
    assert (wide.defense.radius, wide.defense.steps) == (0.2, 3)
    assert wide.card.parameters == {**plain.card.parameters, "radius": 0.2, "steps": 3}
    assert wide.parameters != plain.parameters
    assert wide.learner.card.name == "cnn"


def test_a_defense_is_chosen_by_its_label_and_set_on_the_command_line():
    changes = {"defenses": ["cnn", SMOOTHED]}.items()
    matrix = build(["variational_smoothing:cnn:wide.steps=5"], changes, defenses=["variational_smoothing:cnn:wide"])
    (entry,) = matrix.defenses
    assert entry.parameters == {"radius": 0.2, "steps": 5}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "binary_cnn", "parameters": {"sigma": 1}}, "binary_cnn has no parameters, and 'sigma' is set"),
        ({**SMOOTHED, "parameters": {"step": 1}}, "unknown parameter of variational_smoothing:cnn 'step'.*'steps'"),
        (
            {**SMOOTHED, "parameters": {"steps": "x"}},
            "variational_smoothing:cnn.steps is 'x'; it must be a valid integer",
        ),
        ({**SMOOTHED, "parameters": {"radius": "wide"}}, "cnn.radius is 'wide'; it must be a valid number"),
        (
            {**SMOOTHED, "parameters": {"norm": "L0"}},
            "variational_smoothing:cnn.norm is 'L0'; it must be 'L2' or 'Linf'",
        ),
        ({**SMOOTHED, "varient": "x"}, "defenses.1: unknown key 'varient'; did you mean 'variant'"),
        ({"name": "abs", "variant": "schott2019"}, "'abs:schott2019' is another defense's name"),
        ({**SMOOTHED, "variant": "ju2020"}, "'variational_smoothing:cnn:ju2020' is another defense's name"),
        ({"name": "abs", "attacks": ["pdg"]}, "matrix test: unknown attack of abs 'pdg'; did you mean 'pgd'"),
        ({"name": "abs", "attacks": "pgd"}, "defenses.1.attacks: Input should be a valid tuple .it is 'pgd'"),
        ({"name": "abs", "attacks": [5]}, "unknown attack of abs '5'"),
        (
            {"name": "abs", "studies": ["distals"]},
            "defenses.1.studies.0: unknown study 'distals'; did you mean 'distal'. Allowed: ",
        ),
        (5, "defenses.1: Input should be a valid dictionary"),
        ("cnn", "defense 'cnn' stands twice; give one a variant"),
    ],
)
def test_a_mistake_in_a_defense_is_one_line(entry, message):
    with pytest.raises(UserError, match=message):
        build(changes={"defenses": ["cnn", entry]}.items())


@pytest.mark.parametrize("parameters", [{"sigma": -1.0}, {"draws": 0}, {"radius": -1.0}])
def test_what_a_defense_cannot_do_is_said_when_it_is_built(parameters):
    matrix = build(changes={"defenses": [{**SMOOTHED, "parameters": parameters}]}.items())
    (key,) = parameters
    with pytest.raises(UserError, match=f"'variational_smoothing:cnn:wide' .built-in. cannot be built: .*{key} is"):
        make_defense(matrix.labels[0], load_dataset("digits"), Registry(variants=matrix.variants))


def test_settings_and_choices_bear_matrices_that_are_wrong():
    assert build(["defenses=['binary_cnn']", "samples=3"]).labels == ["binary_cnn"]
    for changes in ({"defenses": 5}, {"defenses": "cnn"}, {"attacks": ["pgd", 5]}):
        for settings in ([], ["samples=3"]):
            with pytest.raises(UserError, match="Input should be"):
                build(settings, changes.items())
    assert build(changes={"defenses": 5}.items(), defenses=["cnn"]).labels == ["cnn"]


def _cells(matrix, dataset, loaded):
    return {cell.defense: cell for cell in plan(matrix, dataset, loaded, None, Registry(), {})[0]}


def test_attacks_ask_defenses_that_can_in_the_way_that_the_matrix_says():
    """By default from earlier queries. The way is part of a cell's id."""
    chosen = {"defenses": ["cnn", "abs", "eabs"], "attacks": ["ddn"], "norms": ["L2"]}
    dataset = load_dataset("digits")
    loaded = {name: make_defense(name, dataset, Registry()) for name in chosen["defenses"]}
    warm, exact = (_cells(build(settings, **chosen), dataset, loaded) for settings in ([], ["inference=exact"]))
    assert {name: cell.inference for name, cell in warm.items()} == {"cnn": "exact", "abs": "warm", "eabs": "exact"}
    assert {cell.inference for cell in exact.values()} == {"exact"}
    assert {name for name in warm if warm[name].id == exact[name].id} == {"cnn", "eabs"}
    with pytest.raises(UserError, match="inference: Input should be 'warm' or 'exact'"):
        build(["inference=hot"], **chosen)


@pytest.mark.parametrize(
    ("attack", "norm", "way"),
    [
        ("ddn", "L2", "warm"),
        ("boundary", "L2", "warm"),
        ("latent_descent", "L2", "warm"),
        ("pgd_ge", "L2", "exact"),
        ("fab", "L2", "warm"),
        ("transfer", "L2", "warm"),
        ("square", "L2", "exact"),
        ("unrolled_pgd", "L2", "exact"),
    ],
)
def test_access_to_scores_alone_is_answered_exactly(attack, norm, way):
    """Differences of approximate scores mislead. So do derivatives through a part of the optimization."""
    dataset, loaded = load_dataset("digits"), make_defense("abs", load_dataset("digits"), Registry())
    matrix = build(defenses=["abs"], attacks=[attack], norms=[norm])
    assert _cells(matrix, dataset, {"abs": loaded})["abs"].inference == way
