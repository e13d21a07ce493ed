import base64
import io
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from reading import facts
from synthetic_runs import INF, NAN, RunMaker

from reports.figures.gallery import (
    difference,
    gallery,
    gallery_figure,
    png_uri,
    quantile_gallery,
    reconstruction_gallery,
)


def pixels(uri):
    encoded = uri.removeprefix("data:image/png;base64,")
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded)))


@pytest.fixture(scope="module")
def run():
    """Two attacks: sample 0 a clean error, 1 nearest by the second, 2 unbroken, 3 unknown."""
    maker = RunMaker(["cnn", "abs"], 12, shape=(1, 2, 2))
    for name in ("a", "b"):
        maker.attack(name, ["L2"])
    rest = [1.0] * 8
    maker.cell("cnn", "a", "L2", [0, 2.0, INF, NAN, *rest], reasons={3: "timeout"})
    maker.cell("cnn", "b", "L2", [0, 1.234, INF, NAN, *rest], reasons={3: "timeout"})
    maker.cell("abs", "a", "L2")
    clean = np.linspace(0, 1, 48, dtype=np.float32).reshape(12, 1, 2, 2)
    return maker.make(clean, {"cnn-a-L2": clean * 0, "cnn-b-L2": clean * 0 + 1}.__getitem__)


def test_it_shows_the_runs_first_sample_of_each_of_its_first_labels(run):
    assert [clean.lines for clean, _ in gallery(run, facts(run, "L2")).rows] == [
        (f"label {label}",) for label in range(6)
    ]


def test_clean_images_are_the_runs(run):
    clean, _ = gallery(run, facts(run, "L2")).rows[1]
    np.testing.assert_allclose(pixels(clean.sources[0])[..., 0], run.clean[1, 0], atol=0.5 / 255 + 1e-6)


def test_an_adversarial_is_the_nearest_attacks(run):
    picture = gallery(run, facts(run, "L2")).rows[1][1][0]
    assert picture.lines == ("seen as 2", "L2 1.23")
    assert picture.alternative == "image 1, cnn: seen as 2 at distance L2 1.23, by b"
    assert (pixels(picture.sources[0])[..., :3] == 1).all()


def test_beside_it_stands_what_was_added_stretched_around_grey(run):
    adversarial, added = gallery(run, facts(run, "L2")).rows[1][1][0].images
    np.testing.assert_array_equal(added, difference(run.clean[1], adversarial))
    np.testing.assert_allclose(difference(np.zeros((1, 1, 2)), np.array([[[0.1, -0.05]]])), [[[1.0, 0.25]]])
    np.testing.assert_allclose(difference(run.clean[1], run.clean[1]), 0.5)


def test_a_quantile_shows_the_clean_image_the_adversarial_and_the_difference(run):
    nearest = quantile_gallery(run, facts(run, "L2")).rows[0][1][0]
    clean, adversarial, added = nearest.images
    sample = int(nearest.alternative.split("image ")[1].split(":")[0])
    np.testing.assert_array_equal(clean, run.clean[sample])
    np.testing.assert_array_equal(added, difference(clean, adversarial))


@pytest.mark.parametrize(
    ("sample", "lines"),
    [(0, ("seen as 1", "clean error")), (2, ("none found",)), (3, ("unknown:", "attacks failed"))],
)
def test_a_sample_without_an_adversarial_says_why(run, sample, lines):
    picture = gallery(run, facts(run, "L2")).rows[sample][1][0]
    assert picture.lines == lines
    assert bool(picture.images) == (sample == 0)


def test_a_defense_that_has_not_run_has_an_empty_column(run):
    gallery_ = gallery(run, facts(run, "L2"))
    assert gallery_.defenses == ["cnn", "abs"]
    assert {pictures[1].lines for _, pictures in gallery_.rows} == {("no results",)}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_resolution(channels):
    image = np.random.default_rng(0).random((channels, 5, 7), dtype=np.float32)
    shown = pixels(png_uri(image))
    assert shown.shape[:2] == (5, 7)
    np.testing.assert_allclose(shown[..., :3], np.broadcast_to(image, (3, 5, 7)).transpose(1, 2, 0), atol=0.6 / 255)


def test_quantiles_go_from_each_defenses_nearest_to_its_farthest():
    maker = RunMaker(["cnn", "abs"], 7)
    maker.attack("a", ["L2"])
    maker.cell("cnn", "a", "L2", [0, 5.0, 1.0, 3.0, 2.0, 4.0, INF])
    maker.cell("abs", "a", "L2", [INF] * 7)
    shown = quantile_gallery(maker.make(), facts(maker.make(), "L2"))
    assert [pictures[0].lines[1] for _, pictures in shown.rows] == ["L2 1", "L2 2", "L2 3", "L2 4", "L2 5"]
    assert [heading.lines[0] for heading, _ in shown.rows] == ["nearest", "25%", "median", "75%", "farthest"]
    assert {pictures[1].lines for _, pictures in shown.rows} == {("no results",)}


def test_reconstructions_stand_beside_images_and_adversarials():
    maker = RunMaker(["cnn", "abs"], 2)
    maker.attack("a", ["L2"])
    maker.cell("abs", "a", "L2", [1.0, 2.0])
    maker.reconstruction("abs", "L2", [0, 0, 6])
    pictures = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) * np.ones((6, 1, 2, 2), np.float32) / 10
    run = replace(maker.make(), study_images=lambda study: pictures)
    shown = reconstruction_gallery(run, "L2")
    assert shown.defenses == ["abs"]
    assert [heading.lines[0] for heading, _ in shown.rows] == [
        "label 0, ε = 0",
        "label 0, ε = 0.75",
        "label 0, ε = 1.5",
    ]
    assert [float(image[0, 0, 0]) for _, row in shown.rows for image in row[0].images] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    )
    assert shown.rows[2][1][0].lines == ("seen as 6", "error 0.01")
    assert reconstruction_gallery(run, "Linf") is None


def test_a_gallery_for_print_has_a_picture_for_each_place(run):
    (axes,) = gallery_figure(gallery(run, facts(run, "L2"))).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["clean", "cnn", "abs"]
    assert "seen as 2\nL2 1.23" in texts
    found = {tuple(np.round(image.get_extent(), 2)): image.get_array() for image in axes.images}
    np.testing.assert_array_equal(found[1.1, 2.07, 2.45, 1.45][..., 0], np.full((2, 2), 255))
    # The clean images, and cnn's adversarials with what was added, but for one unbroken and one unknown.
    assert len(found) == 6 + 2 * 4
