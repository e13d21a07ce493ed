import pytest
import torch

from bench.contracts.threat import ThreatModel
from bench.engine.candidates import by_distance, differ, moved_outward, violation_of, without_invalid

NAN, INF = float("nan"), float("inf")


def images(*pixels):
    return torch.tensor(pixels).reshape(len(pixels), 1, 1, -1)


def test_the_nearest_is_tried_first_and_no_image_twice():
    x = images([0.5], [0.5])
    near, far = images([0.6], [0.1]), images([0.9], [0.4])
    ranked = by_distance(x, [far, near, near], ThreatModel("L2"))
    assert ranked[:, 0].flatten().tolist() == pytest.approx([0.6, 0.5, 0.9])
    assert ranked[:, 1].flatten().tolist() == pytest.approx([0.4, 0.1, 0.5])


def test_candidates_move_on_lines_through_the_clean_image_and_stay_in_the_box():
    x, candidate = images([0.5, 0.5]), images([0.6, 0.9])
    assert torch.equal(moved_outward(x, candidate, 1.0), candidate)
    assert moved_outward(x, candidate, 2.0).flatten().tolist() == pytest.approx([0.7, 1.0])
    rows = moved_outward(x.repeat(2, 1, 1, 1), candidate.repeat(2, 1, 1, 1), torch.tensor([1.0, 1.5]))
    assert rows[:, 0, 0, 0].tolist() == pytest.approx([0.6, 0.65])


def test_images_differ_in_any_pixel():
    assert differ(images([0.1, 0.2], [0.1, 0.2]), images([0.1, 0.2], [0.1, 0.3])).tolist() == [False, True]


@pytest.mark.parametrize("bad", [[NAN, 0.5], [INF, 0.5], [-0.1, 0.5], [1.1, 0.5], [0.9, 0.5]])
def test_an_invalid_candidate_is_replaced_by_the_clean_image(bad):
    x = images([0.5, 0.5], [0.5, 0.5])
    kept = without_invalid(x, images(bad, [0.6, 0.5]), ThreatModel("Linf", 0.2))
    assert torch.equal(kept[0], x[0])
    assert torch.equal(kept[1], images([0.6, 0.5])[0])


def test_a_pixel_of_minus_zero_becomes_zero():
    kept = without_invalid(images([0.5]), images([-0.0]), ThreatModel("Linf"))
    assert not torch.signbit(kept).any()


@pytest.mark.parametrize(
    ("candidate", "epsilon", "violation"),
    [
        ([NAN, 0.5], None, "non_finite"),
        ([1.1, 0.5], None, "out_of_range"),
        ([0.5, 0.5], None, "unperturbed"),
        ([0.5, 0.5], 0.0, ""),
        ([0.9, 0.5], 0.2, "out_of_ball"),
        ([0.6, 0.5], 0.2, ""),
        ([0.9, 0.5], None, ""),
    ],
)
def test_a_violation_is_named(candidate, epsilon, violation):
    assert violation_of(images(candidate), images([0.5, 0.5])[0], ThreatModel("Linf", epsilon)) == violation


def test_without_candidates_there_is_no_violation():
    assert violation_of(images([0.5])[:0], images([0.5])[0], ThreatModel("Linf")) == ""
