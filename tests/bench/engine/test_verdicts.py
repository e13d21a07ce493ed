"""Sequential tests keep their error at every look, and decide as early as their draws allow."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from bench.engine.judge import CHOICE, CHOICE_ALPHA, VERDICT
from bench.engine.verdicts import SequentialTest, decide, each_draw


def exact(test, alpha, p):
    """Probabilities of acceptance and of giving up, and the mean number of draws, by the recursion over draws."""
    accepted_at, given_up_at = test.ends(alpha)
    alive, accepted, given_up, draws = np.eye(1, test.max_draws + 2)[0], 0.0, 0.0, 0.0
    for n in range(1, test.max_draws + 1):
        draws += alive.sum()
        alive = alive * (1 - p) + np.append(0, alive[:-1]) * p
        successes = np.arange(len(alive)).clip(max=n)
        won, lost = accepted_at[n - successes] <= n, given_up_at[successes] <= n
        accepted, given_up = accepted + alive[won].sum(), given_up + alive[lost].sum()
        alive = np.where(won | lost, 0, alive)
    return accepted, given_up, draws


def share(i):
    """Of alpha, for the i-th candidate that is put to the test."""
    return 0.001 * 0.9 * 6 / (np.pi * i) ** 2


@pytest.mark.parametrize("p", [0.0, 0.3, 0.45, 0.4999])
@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6])
def test_a_probability_below_the_null_is_accepted_with_probability_alpha_at_most(p, alpha):
    assert exact(VERDICT, alpha, p)[0] <= alpha


@pytest.mark.parametrize("p", [0.65, 0.7, 0.9, 1.0])
def test_a_probability_that_reaches_the_alternative_is_given_up_with_probability_beta_at_most(p):
    assert exact(VERDICT, share(1), p)[1] <= VERDICT.beta


def test_the_first_candidate_has_the_power_that_the_documentation_names():
    assert exact(VERDICT, share(1), 0.65)[0] >= 0.95
    assert exact(VERDICT, share(1), 0.7)[0] >= 0.99
    assert exact(VERDICT, share(5), 0.65)[0] == pytest.approx(0.877, abs=0.001)
    assert exact(VERDICT, share(20), 0.65)[0] == pytest.approx(0.736, abs=0.001)
    assert exact(VERDICT, share(1), 0.55)[1] == pytest.approx(0.75, abs=0.01)
    assert [round(exact(VERDICT, share(1), p)[2]) for p in (1, 0.9, 0.8, 0.7, 0.3)] == [14, 23, 44, 104, 21]


def test_a_stretch_is_chosen_where_p_is_about_seven_tenths():
    chosen = [exact(CHOICE, CHOICE_ALPHA, p)[0] for p in (0.5, 0.9)]
    assert chosen[0] < 0.05
    assert chosen[1] > 0.95


def test_the_evidence_is_the_mixture_of_likelihood_ratios():
    test = SequentialTest(null=0.4, alternative=0.7, beta=0.1, max_draws=30)
    p = np.linspace(0.4, 1, 200_001)[1:-1]
    for n, k in [(5, 4), (12, 9), (30, 15)]:
        ratios = k * np.log(p / 0.4) + (n - k) * np.log((1 - p) / 0.6)
        log_evidence = logsumexp(ratios) - np.log(len(p))
        assert test.ends(np.exp(-log_evidence) * 1.001)[0][n - k] <= n
        assert test.ends(np.exp(-log_evidence) * 0.999)[0][n - k] > n


def test_decisions_are_those_of_looking_after_every_draw_and_no_draw_is_wasted():
    random = np.random.default_rng(0)
    probabilities = torch.tensor([0.0, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0]).repeat(20)
    tosses = torch.from_numpy(random.random((len(probabilities), VERDICT.max_draws))) < probabilities[:, None]
    asked = torch.zeros_like(tosses, dtype=torch.int64)

    def draw(rows, numbers):
        asked[rows, numbers] += 1
        return tosses[rows, numbers]

    alpha = torch.tensor([share(1 + i % 3) for i in range(len(probabilities))], dtype=torch.float64)
    found = decide(VERDICT, draw, alpha)
    for row in range(len(probabilities)):
        accepted_at, given_up_at = VERDICT.ends(float(alpha[row]))
        successes = np.append(0, tosses[row].numpy().cumsum())
        looks = np.arange(len(successes))
        accepted, given_up = accepted_at[looks - successes] <= looks, given_up_at[successes] <= looks
        ends = np.flatnonzero(accepted | given_up)
        end = ends[0] if len(ends) else VERDICT.max_draws
        assert found.draws[row] == end
        assert found.successes[row] == successes[end]
        assert found.accepted[row] == accepted[end]
        assert found.given_up[row] == given_up[end]
        assert asked[row].sum() == end
    assert asked.max() == 1
    assert found.undecided.any()


def test_no_rows_need_no_draw():
    found = decide(VERDICT, lambda rows, numbers: pytest.fail("drawn"), torch.zeros(0, dtype=torch.float64))
    assert len(found.draws) == 0


def test_each_draw_names_rows_and_counts_from_zero():
    rows, numbers = each_draw(torch.tensor([2, 0, 3]))
    assert rows.tolist() == [0, 0, 2, 2, 2]
    assert numbers.tolist() == [0, 1, 0, 1, 2]
