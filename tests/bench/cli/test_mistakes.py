"""A mistake is one line and exit status 2."""

import pytest
from command_line import assay, refused, run


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


def test_a_folder_that_cannot_be_written(matrix, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    assert str(tmp_path / "out") in refused(run(matrix(), tmp_path))


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
