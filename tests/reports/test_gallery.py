import base64
import io

import matplotlib.image
import numpy as np
import pytest
from synthetic_runs import INF, NAN, RunMaker

from reports.gallery import gallery, gallery_figure, png_uri, quantile_gallery


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
    maker.cell("cnn", "b", "L2", [0, 1.234, INF, INF, *rest])
    maker.cell("abs", "a", "L2")
    clean = np.linspace(0, 1, 48, dtype=np.float32).reshape(12, 1, 2, 2)
    return maker.make(clean, {"cnn-a-L2": clean * 0, "cnn-b-L2": clean * 0 + 1}.__getitem__)


def test_it_shows_the_runs_first_sample_of_each_of_its_first_labels(run):
    assert [clean.lines for clean, _ in gallery(run, "L2").rows] == [(f"label {label}",) for label in range(6)]


def test_clean_images_are_the_runs(run):
    clean, _ = gallery(run, "L2").rows[1]
    np.testing.assert_allclose(pixels(clean.source)[..., 0], run.clean[1, 0], atol=0.5 / 255 + 1e-6)


def test_an_adversarial_is_the_nearest_attacks(run):
    picture = gallery(run, "L2").rows[1][1][0]
    assert picture.lines == ("seen as 2", "L2 1.23")
    assert picture.alternative == "image 1, cnn: seen as 2 at distance L2 1.23, by b"
    assert (pixels(picture.source)[..., :3] == 1).all()


@pytest.mark.parametrize(
    ("sample", "lines"),
    [(0, ("seen as 1", "clean error")), (2, ("none found",)), (3, ("unknown:", "attacks failed"))],
)
def test_a_sample_without_an_adversarial_says_why(run, sample, lines):
    picture = gallery(run, "L2").rows[sample][1][0]
    assert picture.lines == lines
    assert bool(picture.source) == (sample == 0)


def test_a_defense_that_has_not_run_has_an_empty_column(run):
    gallery_ = gallery(run, "L2")
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
    shown = quantile_gallery(maker.make(), "L2")
    assert [pictures[0].lines[1] for _, pictures in shown.rows] == ["L2 1", "L2 2", "L2 3", "L2 4", "L2 5"]
    assert [heading.lines[0] for heading, _ in shown.rows] == ["nearest", "25%", "median", "75%", "farthest"]
    assert {pictures[1].lines for _, pictures in shown.rows} == {("no results",)}


def test_a_gallery_for_print_has_a_picture_for_each_place(run):
    (axes,) = gallery_figure(gallery(run, "L2")).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["clean", "cnn", "abs"]
    assert "seen as 2\nL2 1.23" in texts
    found = {tuple(image.get_extent()): image.get_array() for image in axes.images}
    np.testing.assert_array_equal(found[1, 1.9, 2.2, 1.3][..., 0], np.full((2, 2), 255))
    assert len(found) == 6 + 4  # the clean images, and cnn's adversarials but for one unbroken and one unknown
