"""An attack that starts from others waits for them, begins at the nearest they found, and never ends farther."""

import pytest
from small_runs import PLUGIN, run

import bench
from bench.contracts.errors import UserError
from bench.execution.forecast import Schedule, Task
from bench.ledger.manifest_file import load_manifest

MATRIX = """
dataset = "digits"
samples = 4
chunk = 2
defenses = ["class_means"{defenses}]
substitute = "class_means"
attacks = [
    {{ name = "closer", variant = "refined", start = ["slow_noise", "fails_on_demand"]{more} }},
    {{ name = "slow_noise"{noise} }},
    "fails_on_demand",
]
[thresholds]
L2 = 1.0
"""


def matrix(folder, defenses="", noise="", more="", text=MATRIX):
    path = folder / "small.toml"
    path.write_text(text.format(defenses=defenses, noise=noise, more=more))
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_it_starts_from_the_nearest_and_ends_no_farther(tmp_path, workers):
    frame = run(matrix(tmp_path), tmp_path / "run", runner="process", workers=workers)
    l2 = frame.pivot(index="sample", columns="attack", values="l2")
    nearest = l2[["slow_noise", "fails_on_demand"]].min(axis=1)
    gain = l2["closer:refined"] / nearest
    assert ((gain - 0.9).abs().lt(1e-6) | (gain - 1).abs().lt(1e-6)).all()
    assert gain.min() < 0.95
    (cell,) = [cell for cell in load_manifest(tmp_path / "run").cells if cell.attack == "closer:refined"]
    assert cell.start == ("slow_noise", "fails_on_demand")


def test_its_id_holds_theirs(tmp_path):
    ids = []
    for noise in ("", ", budget = 99"):
        run(matrix(tmp_path, noise=noise), tmp_path / f"run {len(ids)}", runner="serial")
        ids.append({cell.attack: cell.id for cell in load_manifest(tmp_path / f"run {len(ids)}").cells})
    assert {attack for attack in ids[0] if ids[0][attack] != ids[1][attack]} == {"slow_noise", "closer:refined"}


def test_where_one_of_them_failed_it_fails_and_is_run_again_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_TEST_FAILS", "1")
    frame = run(matrix(tmp_path), tmp_path / "run", runner="serial")
    reasons = frame[frame["attack"] == "closer:refined"].set_index("sample")["reason"]
    assert reasons[:2].tolist() == ["", ""]
    assert set(reasons[2:]) == {"class_means · fails_on_demand · L2, from which it starts, failed"}
    monkeypatch.delenv("ASSAY_TEST_FAILS")
    again = run(matrix(tmp_path), tmp_path / "run", runner="serial")
    assert again["status"].eq("found").all()


def test_where_none_of_them_runs_it_is_not_applicable(tmp_path):
    text = MATRIX.replace('"fails_on_demand",\n]', '{{ name = "fails_on_demand", defenses = ["class_means"] }},\n]')
    path = matrix(tmp_path, ', "nearest_neighbour"', ', defenses = ["class_means"]', text=text)
    run(path, tmp_path / "run", runner="serial")
    (gap,) = load_manifest(tmp_path / "run").not_applicable
    assert (gap.defense, gap.attack) == ("nearest_neighbour", "closer:refined")
    assert gap.reason == "none of the attacks that it starts from runs here: slow_noise, fails_on_demand"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": ', start = ["boundary"]'}, r"unknown start of 'slow_noise'.*'boundary'"),
        ({"noise": ', start = ["closer:refined"]'}, r"closer:refined.*: attacks start from each other"),
        (
            {"noise": ', start = ["fails_on_demand"]'},
            r"'slow_noise' has start = .*not one of those that can: .*closer",
        ),
        ({"more": ", bounded = true"}, r"attack 'closer' is minimal, not bounded"),
    ],
)
def test_what_cannot_start_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        bench.run(matrix(tmp_path, **changes), plugins=[PLUGIN], out=tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_task_waits_for_those_before_it_and_says_so():
    first, second = Task("a", "cnn", "pgd", 1), Task("b", "cnn", "refined", 100, after=("a",))
    schedule = Schedule([second, first], clock=lambda: 0.0)
    assert next(schedule) == first
    schedule.started("a")
    assert next(schedule) is None
    schedule.finished("a", 1.0)
    assert next(schedule) == second
    with pytest.raises(StopIteration):
        next(schedule)
