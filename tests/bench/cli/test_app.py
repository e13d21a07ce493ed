"""The command line: what it does and says."""

import re

import pandas as pd
import pytest
from command_line import PLUGIN, assay, refused, run

from bench.ledger.loading import load_ledger


def test_accuracy_at_a_threshold_of_zero_is_clean_accuracy(tmp_path):
    """Also under bounded attacks, which have nowhere to go; the whole report is written."""
    path = tmp_path / "zero.toml"
    path.write_text("""
dataset = "digits"
samples = 12
defenses = ["class_means"]
attacks = [
    "fgm",
    "fgsm",
    { name = "pgd", variant = "bounded", bounded = true, parameters = { steps = 2, restarts = 2 } },
    { name = "square", variant = "bounded", bounded = true, parameters = { steps = 5 } },
]
[thresholds]
L2 = 0
Linf = 0.0
""")
    result = run(path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    frame = load_ledger(tmp_path / "out")
    wrong = frame["clean_prediction"] != frame["label"]
    assert 0 < wrong.sum() < len(frame)
    assert (frame["broken"] == (wrong | frame["epsilon"].isna())).all()
    assert set(frame["status"]) == {"clean_error", "found", "not_found"}
    table = pd.read_csv(tmp_path / "out" / "report" / "accuracy.csv")
    assert set(table["class_means accuracy"].round(6)) == {round(11 / 12, 6)}


def test_training_a_wrapper_trains_what_it_wraps():
    result = assay("train", "randomized_smoothing:cnn_gaussian", "--dataset", "digits")
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"^cnn_gaussian on digits: clean accuracy 9\d\.\d\d%, checkpoint .*cnn_gaussian", result.stdout, re.M
    )


def test_strict_names_masked_gradients_and_fails(tmp_path):
    """A defense that rounds its input gives no gradients; sound ones pass in silence."""
    options = ["--plugin", PLUGIN, "--norms", "L2", "--samples", 10, "--workers", 1, "--strict"]
    attacks = ["--attacks", "deepfool,boundary", "--set", "boundary.steps=100"]
    sound = assay("run", "digits", *options, *attacks, "--defenses", "class_means", "--out", tmp_path / "sound")
    assert (sound.returncode, sound.stderr.count("doubtful")) == (0, 0), sound.stderr
    masked = assay("run", "digits", *options, *attacks, "--defenses", "quantized", "--out", tmp_path / "masked")
    assert masked.returncode == 1
    lines = [line for line in masked.stderr.splitlines() if line.startswith("doubtful")]
    assert lines[0] == (
        "doubtful: quantized · all attacks · L2: gradients that are zero or not finite (100% of the derivatives)"
    )
    assert any("attacks without the defense's gradients come closer" in line for line in lines)
    assert any("quantized · deepfool · L2: gradients that are zero" in line for line in lines)
    assert "†" in (tmp_path / "masked" / "report" / "summary_L2.md").read_text()


def test_a_run_ends_with_the_path_of_its_report_and_repeated_has_nothing_to_do(matrix, tmp_path):
    path = matrix()
    first = run(path, tmp_path)
    assert first.returncode == 0, first.stderr
    index = tmp_path / "out" / "report" / "index.html"
    assert first.stdout.splitlines() == ["2 cells run, 0 were there already.", f"Report: {index}"]
    assert index.read_text().lstrip().lower().startswith("<!doctype html")
    assert "small: 2 cells: 100%" in first.stderr
    before = index.stat().st_mtime_ns
    again = run(path, tmp_path)
    assert again.stdout.startswith("Nothing to do: all 2 cells of small are in")
    assert index.stat().st_mtime_ns == before
    (tmp_path / "out" / "report" / "index.html").unlink()
    assert assay("report", tmp_path / "out").returncode == 0
    assert index.exists()
    assert "2/2" in assay("status", tmp_path / "out").stdout
    same = assay("compare", tmp_path / "out", tmp_path / "out")
    assert (same.returncode, same.stdout) == (0, "0 of 3 cells moved, none by more than chance.\n")
    chosen = assay("report", *[tmp_path / "out"] * 2, "--out", tmp_path / "both", "--format", "md", "--norm", "L2")
    assert chosen.stdout == f"Report: {tmp_path / 'both'}\n"
    assert {path.suffix for path in (tmp_path / "both").iterdir()} == {".md"}
    assert "unknown format 'pdf'" in refused(assay("report", tmp_path / "out", "--format", "pdf"))
    assert "2 there, 0 to run" in assay("plan", path, "--plugin", PLUGIN, "--out", tmp_path / "out").stdout


def test_a_run_with_a_failed_cell_ends_with_status_1_and_a_report(matrix, tmp_path):
    result = run(matrix(), tmp_path, "--attacks", "gaussian_noise,crash", "--set", "thresholds.Linf=0.1")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("failed")]
    assert len(lines) == 1
    assert lines[0].startswith("failed: class_means · crash · L")
    assert lines[0].endswith(" and 1 more: exception: RuntimeError: as it happens")
    assert (tmp_path / "out" / "report" / "index.html").exists()


COMMANDS = [
    "run",
    "plan",
    "status",
    "report",
    "compare",
    "import-adversarials",
    "list",
    "train",
    "check",
    "new",
    "verify",
    "bundle",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    assert command in assay("--help").stdout
    result = assay(command, "--help")
    assert result.returncode == 0
    assert "Usage: assay" in result.stdout
