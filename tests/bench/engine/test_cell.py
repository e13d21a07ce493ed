"""Attacks propose, the engine judges: what an attack claims is never recorded unchecked."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bench.contracts.cards import DefenseCard, attack
from bench.contracts.norms import NORMS
from bench.contracts.protocols import ModuleDefense
from bench.contracts.work import Cell, Judging
from bench.datasets.split import Split
from bench.engine.cell import Adversary, Substitute, Target, failed_result, run_cell

CPU = torch.device("cpu")
BRIGHT, DARK = torch.full((1, 2, 2), 0.75), torch.full((1, 2, 2), 0.25)


class Brightness(nn.Module):
    """Class 0 (bright) where the mean exceeds one half, class 1 (dark) elsewhere."""

    def forward(self, x, rng=None):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, 1 - mean], 1)


class Coin(Brightness):
    """Brightness that sees noise of standard deviation 0.2 on the mean."""

    def forward(self, x, rng=None):
        return super().forward(x + 0.2 * rng.normal((1, 1, 1)))


def dataset():
    images = torch.stack([BRIGHT, DARK, BRIGHT, DARK, DARK])
    labels = torch.tensor([0, 1, 0, 1, 0])  # the last is a clean mistake
    split = Split(images, labels)
    return SimpleNamespace(name="five", classes=2, shape=(1, 2, 2), train=split, test=split)


def make_defense(module=None, **card):
    return ModuleDefense(
        DefenseCard(name="brightness", datasets=("five",), batch_size=3, **card), module or Brightness()
    )


def make_cell(**changes):
    cell = Cell(
        dataset="five",
        defense="brightness",
        attack="probe",
        function="probe",
        norm="L2",
        epsilon=None,
        access="decision",
        parameters={},
        budget=100,
        seed=0,
        samples=5,
        chunk=5,
        batch_size=3,
        timeout=None,
        state={},
    )
    return replace(cell, **changes)


def run(attack, defense=None, **changes):
    return run_cell(make_cell(**changes), Target(defense or make_defense()), Adversary(attack), dataset(), CPU)


def flip(oracle, x, y):
    """The exact optimum, a hair beyond: every pixel at one half."""
    return torch.where((y == 0).reshape(-1, 1, 1, 1), torch.tensor(0.499), torch.tensor(0.501)).expand_as(x)


def test_a_good_candidate_is_recorded_with_distances_in_all_norms():
    result = run(flip)
    records = result.records
    assert records["status"].tolist() == ["found"] * 4 + ["clean_error"]
    assert records["broken"].all()
    assert records["l2"][:4].tolist() == pytest.approx([2 * 0.251] * 4, rel=1e-6)
    assert records["linf"][:4].tolist() == pytest.approx([0.251] * 4, rel=1e-6)
    assert records["l0"][:4].tolist() == [4.0] * 4
    assert records["adversarial_prediction"][:4].tolist() == [1, 0, 1, 0]
    assert (records["success_rate"] == 1).all()
    assert (records[["draws_choosing", "draws_deciding", "draws_estimating"]] == 0).all(axis=None)
    assert np.allclose(result.adversarials[0], 0.499)


def test_a_clean_mistake_is_adversarial_at_distance_zero_and_is_not_attacked():
    seen = []

    def attack(oracle, x, y):
        seen.extend(y.tolist())
        return flip(oracle, x, y)

    last = run(attack).records.iloc[4]
    assert (last["status"], last["broken"], last["l0"], last["l2"], last["linf"]) == ("clean_error", True, 0, 0, 0)
    assert seen == [0, 1, 0, 1]


def test_attacks_on_the_same_defense_share_the_verdict_on_its_clean_images():
    class Counting(Brightness):
        calls = 0

        def forward(self, x, rng=None):
            Counting.calls += 1
            return super().forward(x, rng)

    def idle(oracle, x, y):
        return x

    target = Target(make_defense(Counting()))
    first = run_cell(make_cell(), target, Adversary(idle), dataset(), CPU)
    before = Counting.calls
    second = run_cell(make_cell(), target, Adversary(idle), dataset(), CPU)
    other_seed = run_cell(make_cell(seed=1), target, Adversary(idle), dataset(), CPU)
    assert before == 2  # five images in batches of three; unperturbed candidates need no pass
    assert Counting.calls == 2 + 2
    for again in (second, other_seed):
        assert again.records["clean_prediction"].tolist() == first.records["clean_prediction"].tolist()


LIARS = {
    "unperturbed": (lambda oracle, x, y: x, "violation", "unperturbed"),
    "non_finite": (lambda oracle, x, y: torch.full_like(x, torch.nan), "violation", "non_finite"),
    "out_of_range": (lambda oracle, x, y: x + 2 * y.reshape(-1, 1, 1, 1) - 1, "violation", "out_of_range"),
    "raises": (lambda oracle, x, y: 1 / 0, "failed", "exception: ZeroDivisionError: division by zero"),
    "wrong_shape": (lambda oracle, x, y: x[:, :, :1], "failed", "exception: ValueError: candidates have shape"),
    "wrong_type": (lambda oracle, x, y: None, "failed", "exception: TypeError"),
    "exhausted": (lambda oracle, x, y: torch.empty(2**50), "failed", "out of memory: lower chunk in the matrix"),
    "forbidden": (lambda oracle, x, y: oracle.scores(x, oracle.ids), "failed", "exception: AccessDenied"),
}


@pytest.mark.parametrize(("attack", "status", "reason"), LIARS.values(), ids=LIARS.keys())
def test_an_attack_that_lies_is_caught_with_its_reason_and_never_counts_as_robust(attack, status, reason):
    records = run(attack).records[:4]
    assert records["status"].tolist() == [status] * 4
    assert records["reason"].str.startswith(reason).all()
    assert not records["broken"].any()
    assert records[["l0", "l2", "linf"]].isna().all(axis=None)


def test_a_candidate_outside_the_ball_is_caught():
    records = run(flip, norm="Linf", epsilon=0.2).records[:4]
    assert records["status"].tolist() == ["violation"] * 4
    assert records["reason"].tolist() == ["out_of_ball"] * 4
    inside = run(flip, norm="Linf", epsilon=0.2511).records[:4]
    assert inside["status"].tolist() == ["found"] * 4
    assert inside["epsilon"].tolist() == [0.2511] * 4


def test_an_honest_failure_is_not_found_at_infinity():
    records = run(lambda oracle, x, y: (x + 0.01).clamp(0, 1)).records
    bright = records[records["label"] == 0].iloc[:2]
    assert bright["status"].tolist() == ["not_found"] * 2
    assert np.isinf(bright[["l0", "l2", "linf"]]).all(axis=None)


def test_only_the_samples_an_attack_lies_about_are_blamed():
    def attack(oracle, x, y):
        candidates = flip(oracle, x, y).clone()
        candidates[0] = torch.nan
        return candidates

    assert run(attack).records["status"].tolist() == ["violation", "found", "found", "found", "clean_error"]


def test_the_nearest_of_several_candidates_that_holds_counts():
    def attack(oracle, x, y):
        near = flip(oracle, x, y)
        return torch.stack([x + 2 * (near - x), near, (x + near) / 2])

    assert run(attack).records["linf"][:4].tolist() == pytest.approx([0.251] * 4, rel=1e-6)


def test_a_candidate_on_the_wrong_side_by_a_hair_is_stretched_until_it_holds():
    def attack(oracle, x, y):
        return x + 0.9985 * (0.5 - x)

    records = run(attack).records[:4]
    assert records["status"].tolist() == ["found"] * 4
    assert (records["linf"] / 0.25 <= 0.9985 * 1.005 * 1.000001).all()


def test_an_adversarial_among_the_queries_counts_though_the_attack_does_not_return_it():
    def attack(oracle, x, y):
        oracle.decision(flip(oracle, x, y), oracle.ids)
        return x

    assert run(attack).records["status"][:4].tolist() == ["found"] * 4


def test_at_an_exhausted_budget_the_best_so_far_is_kept():
    def attack(oracle, x, y):
        step = 0.0
        while True:
            step += 0.1
            oracle.decision((x + step * (0.5 - x) / 0.25).clamp(0, 1), oracle.ids)

    records = run(attack, budget=7).records
    assert records["status"][:4].tolist() == ["budget"] * 4
    assert records["broken"].all()
    assert records["forwards"][:4].tolist() == [7] * 4
    assert not run(attack, budget=2).records["broken"][:4].any()


def test_a_timeout_fails_the_cell():
    def attack(oracle, x, y):
        while True:
            oracle.decision(x, oracle.ids)

    records = run(attack, budget=10**9, timeout=0.05).records[:4]
    assert records["status"].tolist() == ["failed"] * 4
    assert records["reason"].tolist() == ["timeout: more than 0.05 s"] * 4


def test_a_binarized_defense_gets_post_processed_candidates():
    class Bits(Brightness):
        def forward(self, x, rng=None):
            return super().forward((x >= 0.5).float() * 0.8 + 0.1 * (x.sum() * 0))

    def attack(oracle, x, y):
        return 1 - x

    records = run(attack, make_defense(Bits(), binarization_threshold=0.5)).records[:4]
    assert records["broken"].all()
    assert records["linf"].tolist() == pytest.approx([0.25] * 4, abs=1e-6)
    images = run(attack, make_defense(Bits(), binarization_threshold=0.5)).adversarials[:4]
    assert set(np.unique(images)) == {np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(0))}


def to(value):
    """An attack that makes bright images this dark, and dark ones as bright."""
    value = torch.tensor(value)
    return lambda oracle, x, y: torch.where((y == 0).reshape(-1, 1, 1, 1), value, 1 - value).expand_as(x)


def test_a_randomized_defense_is_broken_by_an_image_that_most_draws_misclassify():
    coin = make_defense(Coin(), randomized=True)
    beyond = run(to(0.3), coin).records.query("label == 0 and status != 'clean_error'")
    assert beyond["broken"].all()
    assert beyond["linf"].tolist() == pytest.approx([0.45] * 2)
    assert (beyond["success_rate"] > 0.6).all()
    assert (beyond["success_low"] < beyond["success_rate"]).all()
    assert (beyond["draws_estimating"] == 20).all()


def test_a_minimal_image_near_one_half_is_moved_outward_until_draws_can_decide():
    """P is the normal distribution's at (0.5 - mean) / 0.2: 0.7 at 0.395 and 0.65 at 0.423."""
    coin = make_defense(Coin(), randomized=True)
    records = run(to(0.49), coin, judging=Judging(estimation_draws=400)).records.iloc[:4]
    assert records["broken"].all()
    assert ((records["linf"] > 0.25 + 0.05) & (records["linf"] < 0.25 + 0.2)).all()
    assert (records["success_rate"] > 0.6).all()


def test_a_bounded_image_below_the_alternative_is_given_up_or_undecided():
    coin = make_defense(Coin(), randomized=True)
    records = run(to(0.47), coin, norm="Linf", epsilon=0.29).records.iloc[:4]
    assert records["status"].isin(["not_found", "undecided"]).all()
    assert np.isinf(records["linf"]).all()
    assert records["success_rate"].isna().all()


def test_of_two_candidates_at_the_same_distance_either_may_hold():
    """One pixel changed each, in L0 the same distance: only the second is adversarial."""

    def two(oracle, x, y):
        up, down = x.clone(), x.clone()
        up[:, 0, 0, 0], down[:, 0, 0, 0] = 1.0, 0.0
        right, wrong = (
            torch.where((y == 0).reshape(-1, 1, 1, 1), up, down),
            torch.where((y == 0).reshape(-1, 1, 1, 1), down, up),
        )
        return torch.stack([right, wrong])

    class Corner(Brightness):
        def forward(self, x, rng=None):
            return super().forward(x[..., :1, :1])

    records = run(two, make_defense(Corner()), norm="L0").records.iloc[:4]
    assert records["broken"].all()
    assert (records["l0"] == 1).all()


def test_what_makes_a_number_doubtful_is_recorded():
    class Liar(ModuleDefense):
        """Its quick decisions are not those of its logits."""

        def decide(self, x):
            return 1 - self.logits(x).argmax(1)

    def deceived(oracle, x, y):
        oracle.remarks += ["strange", "strange", "very strange"]
        near = 0.9 * x + 0.1 * flip(oracle, x, y)
        oracle.decision(near[:2], oracle.ids[:2])
        return near

    records = run(deceived, Liar(make_defense().card, Brightness())).records.iloc[:4]
    assert not records["broken"].any()
    assert records["claimed"].tolist() == [True, True, False, False]
    assert records["found_after"].tolist() == [1, 1, np.inf, np.inf]
    assert records["useless_gradients"].isna().all()
    assert set(records["remarks"]) == {"strange; very strange"}


def test_broken_logits_fail_the_cell():
    class NotFinite(Brightness):
        def forward(self, x, rng=None):
            return super().forward(x) * torch.nan

    records = run(flip, make_defense(NotFinite())).records
    assert records["status"].tolist() == ["failed"] * 5
    assert records["reason"].tolist() == ["non_finite"] * 5


def test_one_image_without_finite_logits_fails_alone():
    class Overflows(Brightness):
        def forward(self, x, rng=None):
            return super().forward(x) / (x.mean((1, 2, 3), keepdim=True) < 0.8)[:, :, 0, 0]

    images = dataset()
    images.test = images.train = Split(torch.cat([images.test.images[:4], torch.ones(1, 1, 2, 2)]), images.test.labels)
    records = run_cell(make_cell(), Target(make_defense(Overflows())), Adversary(flip), images, CPU).records
    assert records["status"].tolist() == ["found"] * 4 + ["failed"]
    assert records["reason"].tolist() == [""] * 4 + ["non_finite"]
    assert records["l2"].isna().tolist() == [False] * 4 + [True]


def test_a_candidate_without_finite_logits_is_dropped_and_counted():
    class Overflows(Brightness):
        def forward(self, x, rng=None):
            return super().forward(x) / (x.mean((1, 2, 3), keepdim=True) != 0.499)[:, :, 0, 0]

    records = run(lambda oracle, x, y: torch.full_like(x, 0.499), make_defense(Overflows()), norm="Linf", epsilon=0.3)
    assert records.records["status"][:4].tolist() == ["not_found"] * 4
    assert records.records["non_finite"][:4].tolist() == [1] * 4


def test_a_cell_that_nobody_could_run_is_failed_in_every_sample():
    records = failed_result(make_cell(), dataset(), range(5), "worker lost").records
    assert records["status"].tolist() == ["failed"] * 5
    assert records[["l0", "l2", "linf"]].isna().all(axis=None)


def test_the_same_cell_gives_the_same_records_whatever_the_global_generator():
    def attack(oracle, x, y):
        return (x + 0.5 * torch.rand(x.shape)).clamp(0, 1)  # as library attacks do

    torch.manual_seed(1)
    first = run(attack).records.drop(columns="seconds")
    torch.manual_seed(2)
    assert run(attack).records.drop(columns="seconds").equals(first)


@pytest.mark.parametrize("norm", NORMS)
def test_identity_holds_what_can_change_the_result_and_nothing_else(norm):
    cell = make_cell(norm=norm)
    assert replace(cell, timeout=5.0, samples=4).id == cell.id
    changes = {"seed": 1, "chunk": 2, "budget": 99, "parameters": {"steps": 1}, "state": {"weights": "x"}}
    ids = {replace(cell, **{key: value}).id for key, value in changes.items()}
    assert len(ids | {cell.id}) == len(changes) + 1


def test_what_transfers_is_proposed_once_for_all_defenses_and_not_counted():
    proposed = []

    @attack("source", norms=["L2"], access="gradient", budget=100)
    def source(oracle, x, y):
        proposed.append(len(x))
        oracle.scores(x, oracle.ids)
        return flip(oracle, x, y)

    def transfer(oracle, x, y):
        candidates = oracle.transferred(source)
        assert torch.equal(oracle.decision(candidates, oracle.ids), 1 - y)
        return candidates

    substitute = Substitute(make_defense())
    for _ in range(2):
        cell = make_cell(access="transfer", substitute="brightness")
        records = run_cell(cell, Target(make_defense()), Adversary(transfer, substitute), dataset(), CPU).records
        assert records["status"].tolist() == ["found"] * 4 + ["clean_error"]
        assert records["forwards"].tolist() == [1] * 4 + [0]
    assert proposed == [5], "all samples of the chunk, also those that the defense errs on"
