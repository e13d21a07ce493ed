"""The gaps at which ABS and Binary ABS give up classes: measured on the shipped weights, and tested on other images."""

import json

import pytest
import torch

from bench import load_dataset, load_defense
from bench.training.checkpoints import zoo
from defenses.abs.gaps import CHECKED, measured_gaps, probes

CARDS = sorted(zoo().glob("*/abs.json"))


@pytest.fixture(scope="module", params=["abs", "binary_abs"])
def model(request):
    return load_defense(request.param, dataset="digits")


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_the_zoo_has_gaps_for_both_kinds_of_inputs(card):
    calibration = json.loads(card.read_text())["calibration"]
    assert set(calibration) == {"plain", "binarized"}
    for gaps in calibration.values():
        assert gaps[0][0] == 0
        assert [step for step, _ in gaps] == sorted({step for step, _ in gaps})
        assert all(gap > 0 for _, gap in gaps)


def test_probes_are_images_of_all_kinds_where_lags_are_large(model):
    images = load_dataset("digits").test.images[:40]
    x = probes(images, lambda x: model.logits(x).argmax(1))
    assert torch.equal(x[:20], images[:20])
    assert x.amin() >= 0
    assert x.amax() <= 1
    # Of the segments, nearly all have a boundary; on both sides of it, decisions differ.
    assert 90 <= len(x) <= 100


def test_images_that_it_was_not_measured_on_are_decided_as_by_all_energies(model):
    images = load_dataset("digits").test.images
    x = probes(images, lambda x: model.logits(x).argmax(1))
    assert len(x) > 800
    assert (model.decide(x) == model.logits(x).argmax(1)).float().mean() >= 0.999


def test_the_measurement_is_repeatable_and_a_multiple_of_what_winners_lag(model):
    train = load_dataset("digits").train
    gaps = measured_gaps(train, model.seen, model.inference(), model.objective, model.gamma)
    assert gaps == measured_gaps(train, model.seen, model.inference(), model.objective, model.gamma)
    assert len(gaps) == len({int(share * model.setting.search.iterations) for share in CHECKED})
    stored = dict(next(iter(model.calibration.values())))
    assert dict(gaps) == pytest.approx(stored, rel=0.05)
    limits = [gap for _, gap in gaps]
    assert limits == sorted(limits, reverse=True)
