"""RobustBench runs with the AutoAttack of the package index, on made-up images and without a network."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.contracts.errors import UserError
from bench.datasets.dataset import Dataset, load_dataset
from bench.plugins.registry import Registry
from bench.training.loading import make_defense
from defenses import robustbench_adapter
from defenses.robustbench_adapter import AutoAttack

N, CLASSES = 6, 10


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, CLASSES)).eval()


@pytest.fixture
def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """CIFAR-10-shaped noise with the model's own predictions as labels, but for the last two."""
    x = torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[-2:] = (y[-2:] + 1) % CLASSES
    return x, y


def test_clean_accuracy_is_the_share_of_right_predictions(model, batch):
    assert robustbench_adapter.clean_accuracy(model, *batch, batch_size=4) == pytest.approx(4 / 6)


def test_auto_attack_returns_images_in_the_ball_and_leaves_clean_mistakes_alone(model, batch):
    x, y = batch
    adversary = AutoAttack(model, norm="Linf", eps=0.1, attacks_to_run=["apgd-ce"], version="custom")
    images = adversary.run_standard_evaluation(x, y, bs=3)
    assert images.shape == x.shape
    assert ((images - x).abs().amax((1, 2, 3)) <= 0.1 + 1e-6).all()
    assert ((images >= 0) & (images <= 1)).all()
    assert (model(images).argmax(1) != y).all()
    assert torch.equal(images[-2:], x[-2:])


def test_auto_attack_returns_predictions_when_asked(model, batch):
    x, y = batch
    adversary = AutoAttack(model, norm="L2", eps=0.5, attacks_to_run=["apgd-ce"], version="custom")
    images, predictions = adversary.run_standard_evaluation(x, y, return_labels=True)
    assert torch.equal(predictions, model(images).argmax(1))


def test_auto_attack_is_reproducible_and_leaves_the_tracer_alone(model, batch):
    def trace(frame, event, argument):
        return None

    def attacked() -> Tensor:
        adversary = AutoAttack(model, eps=0.02, attacks_to_run=["apgd-ce"], version="custom")
        return adversary.run_standard_evaluation(*batch)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        first = attacked()
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert torch.equal(first, attacked())


def test_benchmark_reports_clean_and_robust_accuracy(monkeypatch, model, batch):
    monkeypatch.setattr(
        robustbench_adapter._robustbench().eval, "load_clean_dataset", lambda *_: (batch[0][-3:], batch[1][-3:])
    )
    clean, robust = robustbench_adapter.benchmark(model, epsilon=0.5, n_examples=3)
    assert clean == pytest.approx(1 / 3)
    assert robust == 0


def test_a_zoo_model_is_read_from_its_checkpoint(tmp_path):
    zoo = robustbench_adapter._robustbench().model_zoo.model_dicts
    name = "Wong2020Fast"
    by_threat = {key.value: models for key, models in {k.value: v for k, v in zoo.items()}["cifar10"].items()}
    reference = by_threat["Linf"][name]["model"]()
    path = tmp_path / "cifar10" / "Linf" / f"{name}.pt"
    path.parent.mkdir(parents=True)
    torch.save(reference.state_dict(), path)
    loaded = robustbench_adapter.load_model(name, model_dir=tmp_path)
    assert not loaded.training
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), reference.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Standrad"}, "unknown RobustBench model for cifar10 Linf 'Standrad'; did you mean 'Standard'?"),
        ({"name": "Standard", "dataset": "mnist"}, "unknown RobustBench dataset 'mnist'"),
        ({"name": "Standard", "threat_model": "L0"}, "unknown RobustBench threat model for cifar10 'L0'"),
    ],
)
def test_a_wrong_name_is_one_clear_line(arguments, message):
    with pytest.raises(UserError) as error:
        robustbench_adapter.load_model(**arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


ZOO_NAME = "robustbench:cifar10/Linf/Wong2020Fast"


def test_a_defense_name_finds_a_zoo_model_in_the_data_folder(tmp_path, monkeypatch):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES))

    monkeypatch.setattr(robustbench_adapter._robustbench(), "load_model", load)
    loaded = make_defense(ZOO_NAME, Dataset("cifar10", CLASSES, (3, 32, 32), tmp_path), Registry())
    assert asked == [("Wong2020Fast", tmp_path / "robustbench", "cifar10", "Linf")]
    assert loaded.card.name == ZOO_NAME
    assert loaded.defense.logits(torch.rand(2, 3, 32, 32)).shape == (2, CLASSES)


def test_a_zoo_model_runs_like_any_defense(tmp_path):
    """From its name, with its own architecture and a checkpoint in the data folder, to records."""
    torch.manual_seed(0)
    architecture = robustbench_adapter._robustbench().model_zoo.cifar10.linf["Wong2020Fast"]["model"]()
    checkpoint = tmp_path / "robustbench" / "cifar10" / "Linf" / "Wong2020Fast.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save(architecture.state_dict(), checkpoint)
    rng = np.random.default_rng(0)
    (tmp_path / "cifar10").mkdir()
    for part, n in (("train", 4), ("test", 12)):
        x, y = rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10
        np.savez(tmp_path / "cifar10" / f"{part}.npz", x=x, y=y)
    matrix = tmp_path / "zoo.toml"
    matrix.write_text(
        f'dataset = "cifar10"\nsamples = 12\ndefenses = ["{ZOO_NAME}"]\n'
        'attacks = [{ name = "fgsm", parameters = { num_scales = 3 } }]\n[thresholds]\nLinf = 0.03\n'
    )
    records = bench.run(str(matrix), out=tmp_path / "out", data_dir=tmp_path, workers=1)
    assert len(records) == 12
    assert not records["status"].isin(["failed", "violation"]).any(), records["reason"].unique()


def test_weights_that_cannot_be_had_are_one_clear_line(tmp_path, monkeypatch):
    def offline(*arguments):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(robustbench_adapter._robustbench(), "load_model", offline)
    with pytest.raises(UserError, match=r"no usable weights in .*Wong2020Fast.pt, .*\(OSError: no network\)$"):
        make_defense(ZOO_NAME, Dataset("cifar10", CLASSES, (3, 32, 32), tmp_path), Registry())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (ZOO_NAME, "is not for dataset 'digits'. It is for: cifar10"),
        ("robustbench:cifar10/Linf/Standrad", "did you mean 'Standard'"),
        ("robustbench:cifar10/Standard", "is not robustbench:<dataset>/<threat>/<name>"),
    ],
)
def test_a_wrong_defense_name_is_one_clear_line(name, message):
    with pytest.raises(UserError) as error:
        make_defense(name, load_dataset("digits"), Registry())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_else_imports_robustbench():
    packages = [Path(sys.modules["defenses"].__file__).parent.parent / name for name in ("bench", "attacks", "reports")]
    adapter = Path(robustbench_adapter.__file__)
    files = [file for package in [*packages, adapter.parent] for file in package.rglob("*.py")]
    assert {file for file in files if _imports(file) & {"robustbench", "autoattack"}} == {adapter}


def _imports(file: Path) -> set[str]:
    """Top-level packages that a source file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
