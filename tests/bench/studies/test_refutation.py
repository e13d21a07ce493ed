"""A certificate of a randomized defense that an adversarial contests is tested on draws of its own."""

import pytest

import bench
from bench.ledger.loading import load_studies

PLUGIN = '''
import torch
from bench import defense
from bench.conformance.checks import ClassMeans
from bench.contracts.protocols import LowerBound


class Noisy:
    """Class means under noise of sigma 0.1, with a certificate of `radius` for every image."""

    bound_norms = ("L2",)

    def __init__(self, dataset, radius):
        self.base, self.radius = ClassMeans(dataset), radius

    def logits(self, x, rng):
        return self.base.logits(x + 0.1 * rng.normal(x.shape[1:]))

    def lower_bound(self, x, y, norm, streams):
        return LowerBound(torch.full((len(x),), self.radius), certificate=True)


@defense("noisy", datasets=["digits"], randomized=True, batch_size=8)
def noisy(dataset, *, radius: float = 0.0):
    return Noisy(dataset, radius)
'''
MATRIX = """
dataset = "digits"
samples = 8
defenses = [{ name = "noisy", parameters = { radius = RADIUS } }]
attacks = [{ name = "gaussian_noise", parameters = { repetitions = 1, num_scales = 6 } }]
thresholds = { L2 = 1.0 }
"""


@pytest.fixture
def tested(tmp_path):
    """The records of the tests of a defense that certifies this radius."""

    def run(radius):
        (tmp_path / "noisy.py").write_text(PLUGIN)
        (tmp_path / "noisy.toml").write_text(MATRIX.replace("RADIUS", str(radius)))
        records = bench.run(
            tmp_path / "noisy.toml", plugins=[tmp_path / "noisy.py"], out=tmp_path / "run", device="cpu"
        )
        return records, load_studies(tmp_path / "run", "refutation")

    return run


def test_a_wrong_certificate_is_tested_on_400_draws_for_each_adversarial_within_it(tested):
    records, tests = tested(50.0)
    broken = records[records["broken"]]
    assert len(broken) >= 4
    assert tests["sample"].tolist() == broken["sample"].tolist()
    assert (tests["draws"] == 400).all()
    assert (tests["distance"].to_numpy() == broken["l2"].to_numpy()).all()
    assert (tests["errors"] > 200).all()


def test_a_certificate_that_no_adversarial_contests_is_not_tested(tested):
    _, tests = tested(0.01)
    assert tests.empty
