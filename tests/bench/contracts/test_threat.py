"""Which perturbations a threat model allows, and what snapping to a threshold leaves of one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.contracts.norms import NORMS
from bench.contracts.threat import ThreatModel, snap_to_threshold

images = arrays(np.float32, (3, 2, 3, 4), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)
fast = settings(max_examples=50, deadline=None)


def test_a_threat_model_is_of_a_registered_norm():
    assert ThreatModel("L2").norm is NORMS["L2"]
    with pytest.raises(ValueError, match=r"norm 'L3' is not known here\. Allowed: L0, L2, Linf"):
        ThreatModel("L3")


def test_a_threat_model_without_epsilon_allows_every_finite_distance():
    distances = torch.tensor([0.0, 5.0, torch.inf])
    assert ThreatModel("L2").allows(distances).tolist() == [True, True, False]
    assert ThreatModel("L2", 5.0).allows(distances).tolist() == [True, True, False]
    assert ThreatModel("L2", 4.0).allows(distances).tolist() == [True, False, False]


@fast
@given(images, images)
def test_snapping_keeps_the_binarized_image_and_is_nearest_among_those_that_do(candidate, x):
    snapped = snap_to_threshold(candidate, x, 0.5)
    assert torch.equal(snapped >= 0.5, candidate >= 0.5)
    for norm in NORMS.values():
        assert (norm.distance(snapped, x) <= norm.distance(candidate, x)).all()
