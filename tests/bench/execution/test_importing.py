"""Candidates from outside are judged like an attack's, and stay in the ledger."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import bench
from bench.cli.app import app
from bench.contracts.errors import UserError
from bench.execution.candidate_files import read_candidates
from bench.ledger.loading import load_adversarials
from bench.ledger.manifest_file import load_manifest, write_manifest

PLUGIN = Path(__file__).parents[1] / "plugins.py"
MATRIX = """
dataset = "digits"
samples = 6
defenses = ["class_means"]
attacks = [{ name = "gaussian_noise", parameters = { repetitions = 1, num_scales = 3 } }]
thresholds = { L2 = 1.0, L0 = 6 }
"""


@pytest.fixture
def made(tmp_path):
    """A run, the digits, and for each of its images the nearest training image of another class, as an adversarial."""
    (tmp_path / "small.toml").write_text(MATRIX)
    bench.run(tmp_path / "small.toml", plugins=[PLUGIN], out=tmp_path / "run", device="cpu")
    digits = bench.load_dataset("digits")
    x, y = digits.test.images[:6], digits.test.labels[:6]
    means = bench.load_defense("class_means", "digits", plugins=[PLUGIN], device="cpu")
    correct = means.logits(digits.train.images).argmax(1) == digits.train.labels
    images, labels = digits.train.images[correct], digits.train.labels[correct]
    distances = (x.flatten(1)[:, None] - images.flatten(1)).norm(dim=2)
    nearest = distances.masked_fill(y[:, None] == labels, np.inf).argmin(1)
    return tmp_path, images[nearest].numpy(), distances.gather(1, nearest[:, None])[:, 0].numpy()


def enter(folder, *arguments):
    out = ["--out", str(folder / "run"), "--plugin", str(PLUGIN), "--device", "cpu"]
    options = ["--defense", "class_means", "--dataset", "digits", *out]
    return CliRunner().invoke(app, ["import-adversarials", str(folder / "mine.npz"), *options, *arguments])


def imported(folder, norm):
    records = bench.load_ledger(folder / "run")
    mine = records["attack"].str.startswith("imported:mine_")
    return records[mine & (records["norm"] == norm)].set_index("sample")


def test_what_holds_enters_the_ledger_and_what_does_not_says_why(made):
    folder, adversarials, distances = made
    adversarials[1] = 2.0
    adversarials[2] = bench.load_dataset("digits").test.images[2]
    np.savez(folder / "mine.npz", adversarials=adversarials[:5])
    result = enter(folder)
    assert result.exit_code == 0, result.output
    records = imported(folder, "L2")
    assert records["status"].tolist() == ["found", "violation", "not_found", "found", "found", "not_found"]
    assert records.loc[1, "reason"] == "out_of_range"
    assert np.isinf(records.loc[[2, 5], "l2"]).all()
    np.testing.assert_allclose(records.loc[[0, 3, 4], "l2"], distances[[0, 3, 4]], rtol=1e-5)
    assert len(imported(folder, "L0")) == 6
    kept = load_adversarials(folder / "run", records["cell"].iloc[0])
    np.testing.assert_array_equal(kept[0], adversarials[0])
    assert "imported:mine" in (folder / "run" / "report" / "summary_L2.csv").read_text()


def test_what_is_judged_is_the_image_as_it_is_and_stretching_is_named(made):
    """On the way to the adversarials, 0.95 of the distance from the boundary: within a stretch of 1.1 it is crossed."""
    folder, adversarials, _ = made
    means = bench.load_defense("class_means", "digits", plugins=[PLUGIN], device="cpu")
    digits = bench.load_dataset("digits")
    x, y = digits.test.images[:6], digits.test.labels[:6]
    low, high = torch.zeros(6), torch.ones(6)
    for _ in range(30):
        middle = (low + high) / 2
        hit = means.logits(x + middle[:, None, None, None] * (torch.from_numpy(adversarials) - x)).argmax(1) != y
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    short = x + 0.95 * low[:, None, None, None] * (torch.from_numpy(adversarials) - x)
    np.savez(folder / "mine.npz", adversarials=short.numpy())
    result = enter(folder)
    assert result.exit_code == 0, result.output
    assert imported(folder, "L2")["status"].tolist() == ["not_found"] * 6
    assert "6 found (stretched)" in enter(folder, "--stretch").output
    both = bench.load_ledger(folder / "run")
    stretched = both[both["attack"].str.endswith("_stretched") & both["norm"].eq("L2")]
    assert stretched["reason"].tolist() == ["stretched"] * 6


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda x: 255 * x, "values from 0 to 255, allowed are 0 to 1; divide by 255?"),
        (lambda x: (x - 0.5) / 0.5, "values from -1 to 1, allowed are 0 to 1; undo the normalization?"),
        (lambda x: x * np.nan, "some values are not finite"),
    ],
)
def test_violations_are_printed_with_their_reason_and_the_range_seen(made, change, hint):
    folder, adversarials, _ = made
    np.savez(folder / "mine.npz", adversarials=change(adversarials.astype(np.float32)).astype(np.float32))
    output = enter(folder).output
    assert hint in output
    assert "6 violation (out_of_range)" in output or "6 violation (non_finite)" in output


def test_imports_to_a_randomized_defense_have_keys_of_their_own_and_share_alpha(made):
    folder, adversarials, _ = made
    name = "randomized_smoothing:class_means"
    (folder / "small.toml").write_text(MATRIX.replace('"class_means"', f'"{name}"'))
    bench.run(folder / "small.toml", plugins=[PLUGIN], out=folder / "run", device="cpu")
    for kept in (slice(0, 6), slice(0, 3), slice(0, 6)):
        np.savez(folder / "mine.npz", adversarials=adversarials[kept])
        assert enter(folder, "--defense", name).exit_code == 0
    cells = [cell for cell in load_manifest(folder / "run").cells if cell.imported is not None]
    first, second = ([cell.judging for cell in cells if cell.samples == tuple(range(n))] for n in (6, 3))
    assert len(first) == len(second) == 2, "one for each norm; the same file counts once"
    assert first[0].seed == first[1].seed != second[0].seed == second[1].seed
    share = 6 / np.pi**2
    assert first[0].alpha == pytest.approx([0.001 * share] * 6)
    assert second[0].alpha == pytest.approx([0.001 * share / 4] * 6)


def test_they_stay_when_the_run_goes_on_and_go_when_the_defense_has_changed(made):
    folder, adversarials, _ = made
    np.savez(folder / "mine.npz", adversarials=adversarials[[3, 0]], samples=np.array([3, 0]))
    assert enter(folder).exit_code == 0
    assert imported(folder, "L2")["status"].eq("found").tolist() == [True, False, False, True, False, False]
    again = bench.run(folder / "small.toml", plugins=[PLUGIN], out=folder / "run", device="cpu", norms=["L2"])
    assert again["attack"].str.startswith("imported:mine_").any()
    fewer = bench.run(folder / "small.toml", plugins=[PLUGIN], out=folder / "run", device="cpu", samples=5)
    assert not fewer["attack"].str.startswith("imported:mine_").any()
    all_again = bench.run(folder / "small.toml", plugins=[PLUGIN], out=folder / "run", device="cpu")
    assert all_again["attack"].str.startswith("imported:mine_").sum() == 12


def test_another_file_is_another_attack_and_the_same_counts_once(made):
    folder, adversarials, _ = made
    for part in (adversarials[:1], adversarials[:2], adversarials[:2]):
        np.savez(folder / "mine.npz", adversarials=part)
        assert enter(folder).exit_code == 0
    assert imported(folder, "L2")["broken"].sum() == 3
    cells = [cell for cell in load_manifest(folder / "run").cells if cell.imported is not None]
    assert [cell.norm for cell in cells] == ["L2", "L0"] * 2


def test_they_are_judged_with_the_runs_parameters(made):
    """Smoothing so loud that no class is left; the default would hold most images."""
    folder, adversarials, _ = made
    smoothed = '{ name = "randomized_smoothing:class_means", variant = "loud", parameters = { sigma = 5.0 } }'
    (folder / "small.toml").write_text(MATRIX.replace('"class_means"', smoothed))
    bench.run(folder / "small.toml", plugins=[PLUGIN], out=folder / "run", device="cpu", norms=["L2"])
    np.savez(folder / "mine.npz", adversarials=adversarials)
    result = enter(folder, "--defense", "randomized_smoothing:class_means:loud")
    assert result.exit_code == 0, result.output
    assert imported(folder, "L2")["status"].eq("clean_error").sum() >= 3


def test_a_run_made_with_other_weights_is_not_mixed_with_these(made):
    folder, adversarials, _ = made
    np.savez(folder / "mine.npz", adversarials=adversarials)
    manifest = load_manifest(folder / "run")
    others = tuple(each.model_copy(update={"weights": "others"}) for each in manifest.defenses)
    write_manifest(folder / "run", manifest.model_copy(update={"defenses": others}))
    result = enter(folder)
    assert result.exit_code != 0
    assert "made with other weights of class_means" in str(result.exception)


IMAGE = np.zeros((2, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no array 'adversarials', but none at all"),
        ({"images": IMAGE}, "has no array 'adversarials', but images"),
        ({"adversarials": np.zeros((2, 3, 8, 8), np.float32)}, r"digits needs floats \(N, 1, 8, 8\)"),
        ({"adversarials": IMAGE.astype(np.uint8)}, "adversarials are uint8"),
        ({"adversarials": IMAGE, "samples": np.array([1])}, "one integer for each adversarial"),
        ({"adversarials": IMAGE, "samples": np.array([0.5, 1])}, "one integer for each adversarial"),
        ({"adversarials": IMAGE, "samples": np.array([3, 3])}, "samples holds an index twice"),
        ({"adversarials": IMAGE, "samples": np.array([0, 10**6])}, "samples go from 0 to 1000000; the test set has"),
    ],
)
def test_a_file_that_does_not_fit_is_the_users_mistake(tmp_path, arrays, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_candidates(tmp_path / "mine.npz", bench.load_dataset("digits"), 6)


def test_a_file_that_is_none_is_the_users_mistake(tmp_path):
    digits = bench.load_dataset("digits")
    with pytest.raises(UserError, match="no such file"):
        read_candidates(tmp_path / "mine.npz", digits, 6)
    np.save(tmp_path / "mine.npy", IMAGE)
    (tmp_path / "empty.npz").touch()
    (tmp_path / "mine.npz").write_text("nonsense")
    for name in ("mine.npy", "empty.npz", "mine.npz", "."):
        with pytest.raises(UserError, match="not an npz file of plain arrays"):
            read_candidates(tmp_path / name, digits, 6)
