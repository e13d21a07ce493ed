"""Reconstructions of images and of their adversarials, on a generative classifier whose answer is known."""

import numpy as np
import pytest
import torch
from planned_study import planned_study
from torch import nn

from bench.contracts.cards import DefenseCard
from bench.contracts.protocols import as_defense
from bench.datasets.dataset import load_dataset
from bench.studies.reconstruction import IMAGES, SHARES, measure, norms_of, samples_of


class Means(nn.Module):
    """Classifies by the nearest class mean, and reconstructs it."""

    def __init__(self, dataset):
        super().__init__()
        images, labels = dataset.train.images, dataset.train.labels
        self.register_buffer("means", torch.stack([images[labels == c].mean(0) for c in range(10)]))

    def logits(self, x):
        return -(x[:, None] - self.means).square().sum((2, 3, 4))

    def reconstruct(self, x, y):
        return self.means[y]


class Blurred(nn.Module):
    def logits(self, x):
        return x.flatten(1)[:, :10]

    def decoded(self, x):
        return x / 2


def made(model, **card):
    return as_defense(DefenseCard(name="model", datasets=("digits",), **card), model)


def studied(model, norm="Linf", epsilon=0.3):
    dataset = load_dataset("digits")
    samples = samples_of(dataset, 100)
    study = planned_study("reconstruction", norm=norm, epsilon=epsilon, samples=samples)
    return dataset, measure(study, made(model), dataset, torch.device("cpu"), lambda samples: None)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_each_image_is_reconstructed_under_the_class_it_is_seen_as(norm):
    dataset = load_dataset("digits")
    model = Means(dataset)
    _, found = studied(model, norm, 0.3 if norm == "Linf" else 1.5)
    assert len(found.records) == IMAGES * len(SHARES)
    assert found.images.shape == (2 * len(found.records), *dataset.shape)
    for record, seen, made_of_it in zip(
        found.records.to_dict("records"), found.images[::2], found.images[1::2], strict=True
    ):
        assert model.logits(torch.tensor(seen)[None]).argmax() == record["prediction"]
        np.testing.assert_array_equal(made_of_it, model.means[record["prediction"]].numpy())
        assert record["error"] == pytest.approx(np.square(seen - made_of_it).mean(), rel=1e-5)


def test_the_first_ball_holds_the_image_alone_and_the_others_what_fools_the_defense():
    dataset = load_dataset("digits")
    _, found = studied(Means(dataset))
    records = found.records
    np.testing.assert_array_equal(found.images[: 2 * IMAGES : 2], dataset.test.images[:IMAGES].numpy())
    wrong = (records["prediction"] != records["label"]).groupby(records["epsilon"]).mean()
    assert list(wrong.index) == pytest.approx([0, 0.15, 0.3])
    assert wrong.iloc[0] < wrong.iloc[-1] == 1
    for record, image in zip(records.to_dict("records"), found.images[::2], strict=True):
        change = np.abs(image - dataset.test.images[record["image"]].numpy()).max()
        assert change <= record["epsilon"] * (1 + 1e-6)


def test_records_say_what_was_spent():
    """A reconstruction each, and 40 steps in the balls that hold more than the image."""
    _, found = studied(Means(load_dataset("digits")))
    spent = found.records.groupby("epsilon")[["forwards", "backwards"]].agg(["min", "max"])
    assert spent["forwards"].to_numpy().tolist() == [[1, 1], [41, 41], [41, 41]]
    assert spent["backwards"].to_numpy().tolist() == [[0, 0], [40, 40], [40, 40]]


def test_an_autoencoder_without_classes_decodes():
    _, found = studied(Blurred())
    np.testing.assert_allclose(found.images[1::2], found.images[::2] / 2)


def test_only_deterministic_defenses_with_reconstructions_and_gradients_are_studied():
    means = Means(load_dataset("digits"))
    assert norms_of(made(means)) == ("L2", "Linf")
    assert norms_of(made(Blurred())) == ("L2", "Linf")
    assert norms_of(made(means, randomized=True)) == ()
    assert norms_of(made(means, access="score")) == ()
    assert norms_of(made(nn.Flatten())) == ()


def test_a_run_has_at_most_as_many_images_as_its_matrix():
    assert samples_of(load_dataset("digits"), 2) == 2 * len(SHARES)
