import pytest

from attacks.parts.annealing import cosine


def test_the_share_falls_along_a_half_cosine():
    assert [cosine(step, 4) for step in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
