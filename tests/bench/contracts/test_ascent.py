"""The projected ascent that attacks, studies, training and smoothing have in common, on functions with a known top."""

import pytest
import torch

from bench.contracts.ascent import ascend
from bench.contracts.norms import NORMS
from bench.contracts.threat import ThreatModel

IMAGE = (1, 2, 2)


def linear(slope):
    """The gradient of <slope, z>; every row climbs on."""
    return lambda z, rows: (rows, slope.expand(len(rows), *IMAGE))


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_a_linear_function_is_highest_at_the_end_of_its_gradient(norm):
    slope, center = torch.tensor([1.0, -2.0, 0.5, 0.0]).reshape(IMAGE), torch.full((3, *IMAGE), 0.5)
    top, rows = ascend(linear(slope), center, NORMS[norm], 0.2, start=center, lengths=[0.05] * 8)
    torch.testing.assert_close(top, center + 0.2 * NORMS[norm].steepest(slope[None]), rtol=0, atol=1e-5)
    assert rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_no_iterate_leaves_its_ball_or_the_pixel_box(norm):
    torch.manual_seed(0)
    center, radii = torch.rand(6, *IMAGE), torch.linspace(0.01, 0.5, 6)
    seen = []

    def gradient(z, rows):
        seen.append(z.clone())
        return rows, torch.randn(z.shape)

    last, _ = ascend(gradient, center, NORMS[norm], radii, start=center, lengths=[1.0, 2 * radii, 0.1])
    for z in (*seen, last):
        assert ((z >= 0) & (z <= 1)).all()
        for row, radius in zip(range(6), radii.tolist(), strict=True):
            assert ThreatModel(norm, radius).allows(NORMS[norm].distance(z[[row]], center[[row]])).all()


def test_rows_that_are_done_stay_and_are_not_asked_about_again():
    """Row r leaves at its r-th query."""
    center, asked = torch.full((3, *IMAGE), 0.5), []

    def gradient(z, rows):
        asked.append(rows.tolist())
        rows = rows[rows >= len(asked)]
        return rows, torch.ones(len(rows), *IMAGE)

    z, rows = ascend(gradient, center, NORMS["Linf"], 1, start=center, lengths=[0.1] * 9)
    assert asked == [[0, 1, 2], [1, 2], [2]]
    torch.testing.assert_close(z[:, 0, 0, 0], torch.tensor([0.5, 0.6, 0.7]))
    assert not len(rows)


def test_rows_do_not_depend_on_the_others():
    torch.manual_seed(0)
    slopes, center = torch.randn(5, *IMAGE), torch.rand(5, *IMAGE)
    options = {"norm": NORMS["L2"], "radius": 0.3, "lengths": [0.1, 0.05]}
    together, _ = ascend(lambda z, rows: (rows, slopes[rows] * z[rows]), center, start=center, **options)
    for row in range(5):
        own, slope = center[[row]], slopes[[row]]
        alone, _ = ascend(lambda z, rows, slope=slope: (rows, slope * z), own, start=own, **options)
        assert torch.equal(alone, together[[row]])


def test_what_it_starts_from_is_left_alone():
    center = torch.full((2, *IMAGE), 0.5)
    start = center.clone()
    ascend(linear(torch.ones(IMAGE)), center, NORMS["Linf"], 0.1, start=start, lengths=[0.1])
    assert torch.equal(start, center)
