"""A run resumes, and a cell's result is the same whatever the runner, the workers, the order or the interruption."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import CHEAP, PLUGIN, results, run, write_matrix
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.contracts.confidence import Calibration
from bench.contracts.errors import UserError
from bench.contracts.work import SCHEMA_VERSION
from bench.ledger.loading import load_studies, load_study_images
from bench.ledger.manifest_file import load_manifest
from bench.plugins.registry import BUILT_IN, Registry


@pytest.fixture(scope="module")
def all_attacks(tmp_path_factory):
    """A matrix of every built-in attack, and its ledger by the serial runner."""
    folder = tmp_path_factory.mktemp("all")
    matrix = write_matrix(folder, BUILT_IN["attacks"].names())
    run(matrix, folder / "serial", runner="serial", settings=CHEAP)
    return matrix, folder / "serial"


def test_every_built_in_attack_runs_and_breaks_a_linear_classifier(all_attacks):
    _, serial = all_attacks
    frame = results(serial)
    assert set(frame["attack"]) == set(BUILT_IN["attacks"].names())
    assert set(frame["status"]) <= {"found", "not_found", "budget", "clean_error"}
    found = frame[frame["status"] != "clean_error"].groupby(["attack", "norm"])["broken"].mean()
    assert (found > 0).all()


def test_two_workers_give_the_same_ledger(all_attacks, tmp_path):
    matrix, serial = all_attacks
    run(matrix, tmp_path, runner="process", workers=2, settings=CHEAP)
    pd.testing.assert_frame_equal(results(tmp_path), results(serial), check_exact=True)
    files = {file for cell in load_manifest(tmp_path).cells for file in cell.files}
    images = [Path(file).with_suffix(".npz") for file in files]
    assert all((tmp_path / "ledger" / i).read_bytes() == (serial / "ledger" / i).read_bytes() for i in images)


def test_the_order_of_cells_does_not_matter_and_what_is_there_is_not_run_again(all_attacks, tmp_path):
    matrix, serial = all_attacks
    run(matrix, tmp_path, runner="serial", attacks=["fgm"], settings=CHEAP)
    run(matrix, tmp_path, runner="serial", attacks=["fab"], settings=CHEAP)  # a library's, with the global generator
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "ledger").glob("*.parquet")}
    assert kept
    chosen = ["pointwise", "fab", "transfer", "fgm", "gaussian_noise"]
    run(matrix, tmp_path, runner="serial", attacks=chosen, settings=CHEAP)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    whole = results(serial)
    expected = whole[whole["attack"].isin(chosen)].reset_index(drop=True)
    pd.testing.assert_frame_equal(results(tmp_path), expected, check_exact=True)


def test_a_killed_run_goes_on_to_the_same_ledger(tmp_path):
    matrix = write_matrix(tmp_path, ["slow_noise", "gaussian_noise", "pointwise", "bim"])
    whole = tmp_path / "whole"
    run(matrix, whole, runner="serial")
    killed = tmp_path / "killed"
    arguments = ["run", matrix, "--plugin", str(PLUGIN), "--out", str(killed), "--workers", "2", "--device", "cpu"]
    command = [sys.executable, "-c", "from bench.cli.app import main; main()", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(killed.glob("ledger/*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None or list(killed.glob("ledger/*.parquet"))
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(matrix, killed, workers=2)
    pd.testing.assert_frame_equal(results(killed), results(whole), check_exact=True)


@pytest.mark.parametrize("runner", ["serial", "process"])
def test_a_failing_cell_does_not_stop_the_others_and_is_tried_again(tmp_path, runner):
    matrix = write_matrix(tmp_path, ["crash", "gaussian_noise"])
    frame = run(matrix, tmp_path / "out", runner=runner, workers=2)
    crashed = frame[frame["attack"] == "crash"]
    attacked = crashed[crashed["status"] != "clean_error"]
    assert attacked["reason"].unique().tolist() == ["exception: RuntimeError: as it happens"]
    assert not attacked["broken"].any()
    assert attacked["l2"].isna().all()
    assert "failed" not in set(frame[frame["attack"] == "gaussian_noise"]["status"])
    file = next((tmp_path / "out" / "ledger").glob("*crash*.parquet"))
    before = file.stat().st_mtime_ns
    run(matrix, tmp_path / "out", runner="serial")
    assert file.stat().st_mtime_ns > before


def test_a_lost_worker_fails_its_cell_only(tmp_path):
    matrix = write_matrix(tmp_path, ["die", "gaussian_noise", "slow_noise"])
    frame = run(matrix, tmp_path / "out", runner="process", workers=1)
    assert frame[frame["attack"] == "die"]["reason"].unique().tolist() == ["worker lost (exit code 9)"]
    assert set(frame[frame["attack"] != "die"]["status"]) <= {"found", "not_found", "clean_error"}


def test_a_defense_that_is_built_differently_each_time_is_not_measured(tmp_path):
    matrix = write_matrix(tmp_path, ["gaussian_noise"])
    frame = run(matrix, tmp_path / "out", runner="process", workers=1, defenses=["moody"])
    assert frame["reason"].str.contains("has other weights each time it is built").all()


def test_what_is_not_applicable_says_why(tmp_path):
    matrix = write_matrix(tmp_path, ["latent_descent"])
    run(matrix, tmp_path / "out", runner="serial", defenses=["class_means", "nearest_neighbour"])
    (gap,) = load_manifest(tmp_path / "out").not_applicable
    assert (gap.defense, gap.attack, gap.norm) == ("nearest_neighbour", "latent_descent", "L2")
    assert gap.reason == "has no reconstructions"


def test_more_samples_than_the_test_set_has_are_refused(tmp_path):
    matrix = write_matrix(tmp_path, ["gaussian_noise"])
    with pytest.raises(UserError, match=r"samples is 601; the test set of digits has 600 images"):
        run(matrix, tmp_path / "out", samples=601)


def test_other_parameters_are_another_cell(tmp_path):
    matrix = write_matrix(tmp_path, ["salt_and_pepper"])
    first = run(matrix, tmp_path / "out", runner="serial")
    second = run(matrix, tmp_path / "out", runner="serial", seed=1)
    assert set(first["cell"]).isdisjoint(second["cell"])
    assert len(list((tmp_path / "out" / "ledger").glob("*.parquet"))) == 2


def test_a_listing_has_the_card_of_every_plugin():
    attacks = bench.list_attacks([PLUGIN])
    assert set(BUILT_IN["attacks"].names()) | {"crash"} <= set(attacks["name"])
    assert attacks.set_index("name").loc["crash", "source"] == f"file {PLUGIN}"
    assert (attacks["error"] == "").all()
    assert set(Registry().names("defenses")) <= set(bench.list_defenses()["name"])


def test_only_what_transfers_depends_on_the_substitute(tmp_path):
    matrix = write_matrix(tmp_path, ["transfer", "fgm"])
    ids = {}
    for substitute in ("class_means", "nearest_neighbour"):
        out = tmp_path / substitute
        run(matrix, out, runner="serial", settings=[f"substitute={substitute}"])
        ids[substitute] = {(cell.attack, cell.norm): cell.id for cell in load_manifest(out).cells}
    changed = {place[0] for place, cell in ids["class_means"].items() if ids["nearest_neighbour"][place] != cell}
    assert changed == {"transfer"}


def test_an_unknown_substitute_is_named(tmp_path):
    matrix = write_matrix(tmp_path, ["transfer"])
    with pytest.raises(UserError, match=r"small\.toml: key substitute: unknown defense 'cnm'"):
        run(matrix, tmp_path / "out", settings=["substitute=cnm"])


# What is there already.


def test_a_run_of_schema_2_is_run_again_and_its_manifest_replaced(tmp_path):
    shutil.copytree(Path(__file__).parents[2] / "stored_runs" / "schema_2", tmp_path / "out")
    (tmp_path / "v2.toml").write_text(OF_SCHEMA_2)
    before = load_manifest(tmp_path / "out")
    frame = run(tmp_path / "v2.toml", tmp_path / "out", runner="serial")
    after = load_manifest(tmp_path / "out")
    assert (before.schema_version, after.schema_version) == (2, SCHEMA_VERSION)
    assert {cell.id for cell in before.cells}.isdisjoint(cell.id for cell in after.cells)
    assert set(frame["cell"]) == {cell.id for cell in after.cells}
    assert after.files


OF_SCHEMA_2 = """
dataset = "digits"
samples = 3
defenses = ["nearest_neighbour"]
attacks = [{ name = "gaussian_noise", parameters = { repetitions = 1, num_scales = 4 } }]
thresholds = { L2 = 0.5 }
"""


@pytest.mark.parametrize("alteration", ["threshold", "record", "rows", "other cell"])
def test_an_altered_ledger_is_one_line_and_status_2_for_every_command(tmp_path, alteration):
    matrix = write_matrix(tmp_path, ["gaussian_noise"])
    run(matrix, tmp_path / "out", runner="serial")
    path = next((tmp_path / "out" / "ledger").glob("*--L2--*.parquet"))
    if alteration == "threshold":
        path = path.with_name("manifest.json")
        path.write_text(path.read_text().replace('"L2": 1.0', '"L2": 50.0'))
    elif alteration == "other cell":
        shutil.copy(next(path.parent.glob("*--Linf--*.parquet")), path)
    else:
        table = pq.read_table(path)
        frame = table.to_pandas()
        row = int(frame.index[frame["status"].eq("found")][0])
        frame.loc[row, ["broken", "l2"]] = [False, float("inf")]
        frame = frame.head(3) if alteration == "rows" else frame
        pq.write_table(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False), path)
    ran = ["run", matrix, "--plugin", PLUGIN, "--out", tmp_path / "out", "--device", "cpu", "--runner", "serial"]
    out = tmp_path / "out"
    for command in (ran, ["report", out], ["status", out], ["compare", out, out]):
        result = CliRunner().invoke(app, [*map(str, command)])
        assert isinstance(result.exception, UserError)  # `bench.cli.app.main` makes one line and status 2 of it
        assert path.name in str(result.exception)


# Studies.

BOUNDED = """
import torch
from bench import defense
from bench.conformance.checks import ClassMeans
from bench.contracts.protocols import LowerBound

class WithBounds(ClassMeans):
    bound_norms = ("L2",)
    def lower_bound(self, x, y, norm, streams):
        bound = BOUND
        if bound is None:
            raise RuntimeError("no luck")
        return LowerBound(torch.where(self.logits(x).argmax(1) == y, bound, 0.0), certificate=True)

@defense("bounded", datasets=["digits"])
def bounded(dataset):
    return WithBounds(dataset)
"""


@pytest.mark.parametrize(
    ("bound", "status", "message"),
    [
        ("0.01", 0, ""),
        ("50.0", 1, "wrong certificate: bounded, L2: "),
        ("None", 1, "failed: bounded · lower bound · L2"),
        ("float('nan')", 1, "failed: bounded · lower bound · L2"),
    ],
)
@pytest.mark.parametrize("runner", ["serial", "process"])
def test_lower_bounds_are_judged_by_the_adversarials(tmp_path, bound, status, message, runner):
    plugin = tmp_path / "bounded.py"
    plugin.write_text(BOUNDED.replace("BOUND", bound))
    options = ["--plugin", plugin, "--defenses", "bounded", "--attacks", "deepfool", "--norms", "L2,Linf"]
    command = ["run", "digits", *options, "--samples", "12", "--runner", runner, "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert (result.exit_code, message in result.output) == (status, True), result.output
    studies = load_manifest(tmp_path / "out").studies
    assert [study.norm for study in studies if study.kind == "lower_bound"] == ["L2"]
    frame = load_studies(tmp_path / "out", "lower_bound")
    assert len(frame) == 12
    assert set(frame["status"]) == ({"bound"} if bound in ("0.01", "50.0") else {"failed"})
    if status == 0:
        assert (tmp_path / "out" / "report" / "bracket_L2.md").exists()
        again = CliRunner().invoke(app, [*map(str, command)])
        assert "Nothing to do" in again.output


def test_distal_adversarials_are_studied_with_their_pictures(tmp_path):
    options = ["--plugin", PLUGIN, "--defenses", "class_means,quantized", "--attacks", "deepfool", "--norms", "L2"]
    command = ["run", "digits", *options, "--samples", "4", "--workers", "1", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    frame = load_studies(tmp_path / "out", "distal")
    assert frame.groupby("defense").size().to_dict() == {"class_means": 20, "quantized": 20}
    sound, masked = frame[frame["defense"] == "class_means"], frame[frame["defense"] == "quantized"]
    assert sound["target"].tolist() == [*range(10)] * 2
    assert sound["status"].eq("reached").all()
    assert (sound["confidence"] >= 0.9).all()
    assert masked["status"].eq("not_reached").any()
    images = load_study_images(tmp_path / "out", sound["cell"].iloc[0])
    assert images.shape == (20, 1, 8, 8)
    logits = bench.load_defense("class_means", "digits", plugins=[PLUGIN], device="cpu").logits(torch.tensor(images))
    again = Calibration(sound["alpha"].iloc[0], sound["log_eta"].iloc[0]).confidence(logits)
    confidence = again[range(20), sound["target"].tolist()].tolist()
    assert confidence == pytest.approx(sound["confidence"].tolist(), abs=1e-4)
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert page.count("noise that class_means takes for") == 2 * 10  # as text and as title
    assert "| class_means | 20 of 20 |" in (tmp_path / "out" / "report" / "distal.md").read_text()


def test_a_matrix_may_do_without_studies(tmp_path):
    options = ["--plugin", PLUGIN, "--defenses", "class_means", "--attacks", "deepfool", "--set", "studies=[]"]
    result = CliRunner().invoke(app, [*map(str, ["plan", "digits", *options])])
    assert "2 cells" in result.output
    result = CliRunner().invoke(app, [*map(str, ["plan", "digits", *options[:-1], "studies=['distals']"])])
    assert result.exit_code != 0


@pytest.mark.parametrize("runner", ["serial", "process"])
def test_variants_of_a_defense_run_side_by_side_with_parameters_of_their_own(tmp_path, runner):
    smoothed, few = "randomized_smoothing:class_means", "{ repetitions = 1, num_scales = 2 }"
    matrix = tmp_path / "sigmas.toml"
    matrix.write_text(f"""
dataset = "digits"
samples = 10
defenses = ["{smoothed}", {{ name = "{smoothed}", variant = "loud", parameters = {{ sigma = 2.0 }} }}]
attacks = [{{ name = "gaussian_noise", parameters = {few}, defenses = ["{smoothed}:loud"] }},
           {{ name = "uniform_noise", norms = ["Linf"], parameters = {few} }}]
studies = []
thresholds = {{ L2 = 1.0, Linf = 0.2 }}
""")
    records = run(str(matrix), tmp_path / "run", runner=runner, workers=2)
    assert set(records["defense"]) == {smoothed, f"{smoothed}:loud"}
    assert set(records.loc[records["attack"] == "gaussian_noise", "defense"]) == {f"{smoothed}:loud"}
    errors = (records["status"] == "clean_error").groupby(records["defense"]).mean()
    assert errors[f"{smoothed}:loud"] >= errors[smoothed] + 0.3
    listed = {each.name: each.parameters for each in load_manifest(tmp_path / "run").defenses}
    assert listed == {smoothed: {"sigma": 0.2}, f"{smoothed}:loud": {"sigma": 2.0}}
