"""The command line: what it says, and that a mistake is one line and exit status 2."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench.ledger.loading import load_ledger

PLUGIN = Path(__file__).parents[1] / "plugins.py"
TUTORIALS = Path(__file__).parents[3] / "docs" / "tutorials"
SMALL = """
dataset = "{dataset}"
samples = {samples}
defenses = ["{defense}"]
attacks = ["gaussian_noise", "fgm"]
{extra}
[thresholds]
L2 = 1.0
"""


def assay(*arguments, cwd=None, **environment):
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'assay'; from bench.cli.app import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env={**{k: v for k, v in os.environ.items() if k != "ASSAY_DATA"}, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(result):
    """The one line of a refusal."""
    assert result.returncode == 2, result
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture
def matrix(tmp_path):
    def write(dataset="digits", samples=4, defense="class_means", extra=""):
        path = tmp_path / "small.toml"
        path.write_text(SMALL.format(dataset=dataset, samples=samples, defense=defense, extra=extra))
        return path

    return write


def run(matrix, tmp_path, *more):
    return assay("run", matrix, "--plugin", PLUGIN, "--out", tmp_path / "out", "--workers", "1", *more)


@pytest.mark.parametrize(
    ("attack", "thresholds", "message"),
    [
        (
            '{ name = "pgd", variant = "b", bounded = true, parameters = { epsilon = 1 } }',
            "L2 = 1",
            "pgd:b.epsilon is 1, but has no effect on bounded attacks in L2, Linf; it is for minimal attacks only",
        ),
        (
            '{ name = "pgd", parameters = { restarts = 2 } }',
            "L2 = 1",
            "pgd.restarts is 2, but has no effect on minimal attacks in L2, Linf; it is for bounded attacks only",
        ),
        (
            '{ name = "pgd", parameters = { steps = "ten" } }',
            "L2 = 1",
            "pgd.steps is 'ten'; it must be a valid integer",
        ),
        (
            '{ name = "pgd", norms = ["L3"] }',
            "L2 = 1",
            "attacks.0.norms.0: norm 'L3' is not known here. Allowed: L0, L2, Linf, L1",
        ),
        ('"pgd"', "L3 = 1", "thresholds.L3: norm 'L3' is not known here. Allowed: L0, L2, Linf"),
        ('"pgd"', "L2 = -0.1", "thresholds.L2: Input should be greater than or equal to 0 (it is -0.1)"),
        ('"pgd"', "L2 = inf", "thresholds.L2: Input should be a finite number (it is inf)"),
        ('"pgd"', "L2 = nan", "thresholds.L2: Input should be a finite number (it is nan)"),
    ],
)
def test_a_matrix_that_would_be_run_as_another_one_is_refused(tmp_path, attack, thresholds, message):
    path = tmp_path / "wrong.toml"
    path.write_text(
        f'dataset = "digits"\nsamples = 2\ndefenses = ["cnn"]\nattacks = [{attack}]\n[thresholds]\n{thresholds}\n'
    )
    assert f"matrix {path}: {message}" in refused(assay("run", path, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["-1", "inf", "nan", "high"])
def test_a_threshold_that_is_none_is_refused_on_the_command_line(matrix, tmp_path, value):
    line = refused(run(matrix(), tmp_path, "--set", f"thresholds.L2={value}"))
    assert "thresholds.L2: Input should be" in line


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


def test_a_folder_that_cannot_be_written(matrix, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    assert str(tmp_path / "out") in refused(run(matrix(), tmp_path))


def test_a_run_with_a_failed_cell_ends_with_status_1_and_a_report(matrix, tmp_path):
    result = run(matrix(), tmp_path, "--attacks", "gaussian_noise,crash", "--set", "thresholds.Linf=0.1")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("failed")]
    assert len(lines) == 1
    assert lines[0].startswith("failed: class_means · crash · L")
    assert lines[0].endswith(" and 1 more: exception: RuntimeError: as it happens")
    assert (tmp_path / "out" / "report" / "index.html").exists()


def test_unknown_defense(tmp_path):
    assert "unknown defense 'cnm'; did you mean 'cnn'?" in refused(assay("run", "--defenses", "cnm"))


def test_unknown_key_in_a_matrix(matrix, tmp_path):
    line = refused(run(matrix(extra="sampels = 3"), tmp_path))
    assert "small.toml: unknown key 'sampels'; did you mean 'samples'?" in line


def test_missing_data_that_cannot_be_downloaded(matrix, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(run(matrix(dataset="mnist", defense="cnn"), tmp_path, "--data-dir", tmp_path / "empty"))
    assert "mnist" in line
    assert "--data-dir" in line
    assert "ASSAY_DATA" in line


def test_corrupt_idx(matrix, tmp_path):
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(b"not gzip")
    line = refused(run(matrix(dataset="mnist", defense="cnn"), tmp_path, "--data-dir", tmp_path / "data"))
    assert "-ubyte.gz" in line


def test_corrupt_checkpoint(matrix, tmp_path):
    cache = tmp_path / "cache"
    # The package holds the weights of seed 0.
    assert assay("train", "cnn", "--dataset", "digits", "--seed", "1", ASSAY_CACHE=str(cache)).returncode == 0
    checkpoint = next(cache.rglob("*.safetensors"))
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 0xFF
    checkpoint.write_bytes(content)
    arguments = ["run", matrix(defense="cnn"), "--seed", "1", "--out", tmp_path / "out"]
    line = refused(assay(*arguments, ASSAY_CACHE=str(cache)))
    assert checkpoint.name in line
    assert "SHA-256 differs" in line
    checkpoint.write_bytes(content[:100])
    assert "not a readable safetensors file" in refused(assay(*arguments, ASSAY_CACHE=str(cache)))


def test_corrupt_result_file(matrix, tmp_path):
    path = matrix()
    assert run(path, tmp_path).returncode == 0
    result = next((tmp_path / "out" / "ledger").glob("*fgm*.parquet"))
    result.write_bytes(result.read_bytes()[:-20])
    for line in (refused(run(path, tmp_path)), refused(assay("report", tmp_path / "out"))):
        assert result.name in line
        assert "corrupt" in line


def test_sample_count_above_the_test_set(matrix, tmp_path):
    assert "the test set of digits has 600 images" in refused(run(matrix(samples=601), tmp_path))


def test_weights_of_the_wrong_shape(tmp_path, data_dir, matrix):
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(data_dir / "weights" / "schott2019_abs.safetensors")
    state["3.Decoder.conv_0.weight"] = torch.zeros(8, 32, 3, 3)
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "mnist").symlink_to(data_dir / "mnist")
    save_file(state, tmp_path / "data" / "weights" / "schott2019_abs.safetensors")
    path = matrix(dataset="mnist", defense="abs:schott2019")
    line = refused(run(path, tmp_path, "--data-dir", tmp_path / "data"))
    assert "schott2019_abs.safetensors" in line
    assert "3.Decoder.conv_0.weight" in line
    assert "of shape (8, 32, 3, 3), expected (8, 32, 4, 4)" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--bogus"], "No such option: --bogus"),
        (["run", "digit"], "unknown matrix 'digit'; did you mean 'digits'?"),
        (["run", "--norms", "L3"], "--norms: unknown norm 'L3'"),
        (["run", "--device", "tpu9"], "--device tpu9: not available here"),
        (["run", "--runner", "slurm"], "--runner: unknown runner 'slurm'"),
        (["run", "--set", "samples"], "write key=value"),
        (["run", "--plugin", "none.py"], "--plugin none.py: no such file"),
        (["list", "models"], "Allowed: attacks, datasets, defenses, matrices"),
        (["status", "nowhere"], "run nowhere: no ledger there"),
        (["check", "cnnn"], "unknown plugin 'cnnn'; did you mean 'cnn'?"),
        (["train", "cnn", "--dataset", "minst"], "unknown dataset 'minst'; did you mean 'mnist'?"),
        (["new", "attack", "a"], "unknown kind of plugin 'attack'"),
        (["new", "defense", "Bad-Name"], "not lower_snake_case"),
    ],
)
def test_every_other_mistake_is_one_line_too(arguments, message):
    assert message in refused(assay(*arguments))


def test_a_new_defense_is_ten_lines_passes_the_checks_and_runs(tmp_path):
    made = assay("new", "defense", "my_defense", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert len([line for line in (tmp_path / "my_defense.py").read_text().splitlines() if line]) <= 10
    checked = assay("check", "my_defense.py", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    command = ["run", "--samples", "4", "--plugin", "my_defense.py", "--defenses", "my_defense", "--attacks", "fgm"]
    assert assay(*command, cwd=tmp_path).returncode == 0
    assert "my_defense.py exists" in refused(assay("new", "defense", "my_defense", cwd=tmp_path))


def test_check_fails_a_defense_that_returns_probabilities_in_training_mode(tmp_path):
    text = PLUGIN.read_text().replace(
        "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))",
        "torch.manual_seed(0); return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), "
        "torch.nn.Softmax(1))",
    )
    (tmp_path / "probable.py").write_text(text)
    result = assay("check", "moody", "--plugin", tmp_path / "probable.py")
    assert result.returncode == 1
    assert "FAIL logits are not probabilities (the outputs look like probabilities" in result.stdout


def test_check_goes_on_behind_a_factory_that_fails(tmp_path):
    text = "from bench import defense\nfrom bench.conformance.checks import ClassMeans\n"
    text += '@defense("broken", datasets=["digits"])\ndef broken():\n    raise OSError("no weights")\n'
    text += '@defense("sound", datasets=["digits"])\ndef sound(dataset):\n    return ClassMeans(dataset)\n'
    (tmp_path / "two.py").write_text(text)
    result = assay("check", tmp_path / "two.py")
    assert result.returncode == 1
    assert "FAIL can be built (defense 'broken' (file" in result.stdout
    assert "OSError: no weights)" in result.stdout
    behind = result.stdout.partition("defense sound")[2]
    assert "ok   logits are float32" in behind
    assert "FAIL" not in behind


def test_a_run_names_the_defense_that_cannot_be_built_and_reports_the_others(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from bench import defense\n"
        '@defense("broken", datasets=["digits"])\ndef broken():\n    raise OSError("no weights")\n'
    )
    command = ["run", "--samples", "4", "--attacks", "gaussian_noise", "--norms", "L2", "--out", tmp_path / "run"]
    command += ["--plugin", tmp_path / "broken.py", "--plugin", PLUGIN, "--set", "studies=[]", "--defenses"]
    result = assay(*command, "broken,class_means")
    assert result.returncode == 1
    assert result.stderr.count("cannot be built: OSError: no weights") == 1
    assert "Traceback" not in result.stderr
    table = (tmp_path / "run" / "report" / "summary_L2.md").read_text()
    assert "not run: defense 'broken' (file" in table
    assert "class_means" in table
    assert "cannot be built: OSError: no weights" in refused(assay(*command, "broken"))


def test_another_package_of_our_names_is_found_out(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text("")
    result = assay("list", "matrices", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert f"package 'reports' comes from {tmp_path / 'reports'}, expected" in refused(result)


def test_the_tutorials_defense_runs_as_it_stands(tmp_path):
    code = re.search(r"```python\n(import torch\n.*?@defense.*?)```", (TUTORIALS / "defense.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "rounded_means.py").write_text(code[1])
    result = assay("check", "rounded_means.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    choices = ["--defenses", "rounded_means", "--attacks", "bim", "--norms", "L2"]
    command = ["run", "--samples", "4", "--plugin", "rounded_means.py", *choices]
    result = assay(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_tutorials_attack_passes_the_checks(tmp_path):
    code = re.search(r"```python\n(from bench import attack\n.*?)```", (TUTORIALS / "attack.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "toward_gray.py").write_text(code[1])
    result = assay("check", "toward_gray.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout


def test_the_tutorials_matrix_is_valid(tmp_path):
    code = re.search(r"```toml\n(.*?)```", (TUTORIALS / "matrix.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "mine.toml").write_text(code[1])
    result = assay("plan", "mine.toml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "pgd:bounded" in result.stdout


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
