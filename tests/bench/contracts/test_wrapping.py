"""``bench.wrap``: logits of a net that returns probabilities, likelihoods or their logarithms."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

import bench
from bench.contracts.errors import UserError

likelihoods = arrays("float32", (4, 3), elements=st.floats(0, 2.0**100, width=32)).map(torch.from_numpy)


def logits(values, output="probabilities"):
    return bench.wrap(lambda x: values, output=output)(torch.zeros(len(values), 1, 2, 2))


@settings(max_examples=200, deadline=None)
@given(likelihoods)
def test_the_decision_is_the_same_and_logits_are_finite(values):
    """Also where two classes differ by one float, and where all are denormal or zero."""
    close = torch.nextafter(values[:, :1], torch.tensor(torch.inf))
    for rows in (values, torch.cat([values, close], 1), torch.cat([close, values], 1)):
        made = logits(rows)
        assert torch.isfinite(made).all()
        assert made.dtype == torch.float32
        assert torch.equal(made.argmax(1), rows.argmax(1))


def test_they_are_logarithms_up_to_a_constant_of_the_row():
    values = torch.tensor([[0.5, 0.25, 1e-30], [7.0, 7.0, 1e30]])
    made = logits(values)
    assert torch.allclose(made - made[:, :1], (values.log() - values.log()[:, :1]), atol=1e-5)
    assert torch.equal(made.amax(1), torch.zeros(2))


def test_a_softmax_gives_its_logits_back():
    inside = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for output, values in (("probabilities", inside.softmax(1)), ("log_probabilities", inside.log_softmax(1))):
        made = logits(values, output)
        assert torch.allclose(made - made[:, :1], inside - inside[:, :1], atol=1e-5)


@pytest.mark.parametrize("least", [1e-37, 1e-40, 0.0])
def test_gradients_are_finite_and_those_of_the_logarithm(least):
    """A number too small for its logarithm's derivative has none; it does not spoil the others."""
    values = torch.tensor([[0.3, 1e-20, least]], requires_grad=True)
    made = logits(values)
    gradient = torch.autograd.grad((made[:, 1] - made[:, 0]).sum(), values)[0]
    assert torch.allclose(gradient, torch.tensor([[-1 / 0.3, 1e20, 0]]))
    of_least = torch.autograd.grad(made_again := logits(values)[:, 2].sum(), values)[0]
    assert torch.isfinite(of_least).all()
    assert torch.isfinite(made_again)
    assert float(of_least[0, 2]) == pytest.approx(1 / least if least >= 1e-37 else 0)


def test_logarithms_of_zero_are_the_least_and_finite():
    made = logits(torch.tensor([[-5.0, -torch.inf, -1e6], [-torch.inf] * 3]), "log_probabilities")
    assert made.tolist() == [[0, 5 - 1e6 - 1, 5 - 1e6], [0, 0, 0]]


def test_a_module_stays_one_and_is_called_as_it_is():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1))
    wrapped = bench.wrap(net, output="probabilities")
    assert set(wrapped.state_dict()) == {f"net.{key}" for key in net.state_dict()}
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(wrapped(x).argmax(1), net(x).argmax(1))
    drawn = bench.wrap(lambda x, rng: net(x) * rng, output="probabilities")
    assert torch.equal(drawn(x, 2.0), bench.wrap(lambda x: net(x) * 2, output="probabilities")(x))


@pytest.mark.parametrize("output", ["probability", "logits"])
def test_an_unknown_output_is_refused(output):
    with pytest.raises(UserError, match=rf"bench.wrap: unknown output '{output}'.* Allowed: log_probabilities, prob"):
        bench.wrap(nn.Flatten(), output=output)


def test_importing_bench_stays_light():
    code = "import sys, bench; assert 'wrap' in bench.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
