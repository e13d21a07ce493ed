"""The oracle grants, counts, stops and remembers."""

import foolbox
import pytest
import torch
from torch import nn

from bench.contracts.cards import DefenseCard
from bench.contracts.chunk import Chunk
from bench.contracts.oracle import AccessDenied, BudgetExhausted, CellTimeout
from bench.contracts.protocols import as_defense
from bench.contracts.threat import ThreatModel
from bench.engine.confirmation import CONFIRMATION
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Resources, Terms

X = torch.full((3, 1, 2, 2), 0.5)
Y = torch.tensor([0, 0, 1])
MINIMAL = ThreatModel("L2")
NOTHING = Resources()
WEIGHT = torch.tensor([[1.0, 1, 1, 1], [0.0, 0, 0, 0]])  # class 0 where the pixels sum to more than the bias


class Linear(nn.Module):
    """Logits (sum of the pixels, 1.9): class 0 above a sum of 1.9, class 1 below; counts its calls."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, rng=None):
        self.rows.append(len(x))
        return x.flatten(1) @ WEIGHT.T + torch.tensor([0.0, 1.9])


class Noisy(Linear):
    def forward(self, x, rng=None):
        return super().forward(x + 0.1 * rng.normal(x.shape[1:]))


def make(
    access="gradient",
    threat=MINIMAL,
    budget=1000,
    module=None,
    randomized=False,
    binarization_threshold=None,
    batch_size=2,
    resources=NOTHING,
    deadline=None,
):
    module = module or (Noisy() if randomized else Linear())
    card = DefenseCard(
        name="linear", datasets=("none",), randomized=randomized, binarization_threshold=binarization_threshold
    )
    defense = as_defense(card, module)
    return asked(defense, Terms(access, threat, budget, batch_size, deadline=deadline), resources)


def asked(defense, terms, resources=NOTHING):
    chunk = Chunk(X, Y, range(3), 2)
    return DefenseOracle(defense, chunk, terms, chunk.streams(0, "attack"), chunk.streams(0, "noise"), resources)


def cross_entropy(logits, y):
    return nn.functional.cross_entropy(logits, y, reduction="none")


@pytest.mark.parametrize(
    ("access", "forbidden"),
    [
        ("decision", ["scores", "gradient", "jacobian", "reconstruct", "as_module", "detection_score"]),
        ("score", ["gradient", "jacobian", "reconstruct", "detection_gradient"]),
        ("gradient", ["reconstruct"]),
        ("unrolled", ["reconstruct"]),
        ("latent", ["gradient", "jacobian", "detection_gradient"]),
    ],
)
def test_access_that_the_card_does_not_declare_is_denied(access, forbidden):
    oracle = make(access)
    queries = {
        "scores": lambda: oracle.scores(X, oracle.ids),
        "gradient": lambda: oracle.gradient(X, Y, cross_entropy, oracle.ids),
        "detection_score": lambda: oracle.detection_score(X, oracle.ids),
        "detection_gradient": lambda: oracle.detection_gradient(X, oracle.ids),
        "jacobian": lambda: oracle.jacobian(X, Y[:, None], oracle.ids),
        "reconstruct": lambda: oracle.reconstruct(X, Y, oracle.ids),
        "as_module": oracle.as_module,
    }
    assert oracle.decision(X - 0.2, oracle.ids).tolist() == [1, 1, 1]
    for name in forbidden:
        with pytest.raises(AccessDenied, match=access):
            queries[name]()


@pytest.mark.parametrize("randomized", [False, True])
@pytest.mark.parametrize(("access", "expected"), [("gradient", 1), ("unrolled", 2)])
def test_gradients_go_through_the_defenses_own_optimization_where_the_card_says_so(access, expected, randomized):
    """Averaged over draws, where there are any: each draw's product is its number."""

    class Inner(Linear):
        draws = 0

        def logits(self, x, *rng):
            return self.forward(x)

        def input_gradient(self, x, *rng):
            return self.forward(x), lambda cotangent: torch.ones_like(x)

        def unrolled_gradient(self, x, *rng):
            self.draws += 1
            return self.forward(x), lambda cotangent, draw=self.draws: torch.full_like(x, 2.0 * draw)

    module = Inner()
    module.card = DefenseCard(name="inner", datasets=("none",), randomized=randomized)
    oracle = asked(module, Terms(access, MINIMAL, budget=90, batch_size=3))
    oracle.draws = 3
    gradient, _ = oracle.gradient(X, Y, cross_entropy, oracle.ids)
    mean_draw = 2 if randomized and access == "unrolled" else 1
    assert (gradient == expected * mean_draw).all()
    assert (oracle.backwards == (3 if randomized else 1)).all()


def test_a_defense_that_decides_by_itself_is_asked_for_decisions_and_nothing_else():
    class Decided(Linear):
        def logits(self, x):
            return self.forward(x)

        def decide(self, x):
            self.rows.append(-len(x))
            return 1 - self.forward(x).argmax(1)  # tells a lie, to tell the two apart

    module = Decided()
    module.card = DefenseCard(name="decided", datasets=("none",))
    oracle = asked(module, Terms("gradient", MINIMAL, budget=9, batch_size=3))
    assert oracle.decision(X - 0.1, oracle.ids).tolist() == [0, 0, 0]
    assert module.rows == [-3, 3]
    assert oracle.found.tolist() == [False, False, True]
    assert oracle.scores(X - 0.1, oracle.ids).argmax(1).tolist() == [1, 1, 1]
    assert oracle.found.tolist() == [True, True, True]
    assert oracle.forwards.tolist() == [2, 2, 2]


def test_queries_are_counted_per_sample_and_batched_as_the_card_says():
    module = Linear()
    oracle = make(module=module)
    oracle.decision(X[[0, 0, 0, 2]], torch.tensor([0, 0, 0, 2]))
    oracle.gradient(X[1:2], Y[1:2], cross_entropy, torch.tensor([1]))
    oracle.jacobian(X[2:], torch.tensor([[0, 1]]), torch.tensor([2]))
    assert oracle.forwards.tolist() == [3, 1, 2]
    assert oracle.backwards.tolist() == [0, 1, 2]
    assert module.rows == [2, 2, 1, 1]


def test_gradients_are_those_of_the_loss_and_come_with_their_logits():
    oracle = make()
    gradient, logits = oracle.gradient(X, Y, cross_entropy, oracle.ids)
    leaf = X.clone().requires_grad_(True)
    expected_logits = Linear()(leaf)
    expected = torch.autograd.grad(cross_entropy(expected_logits, Y).sum(), leaf)[0]
    assert torch.allclose(gradient, expected)
    assert torch.allclose(logits[:2], expected_logits[:2])
    jacobian, _ = oracle.jacobian(X, torch.tensor([[1, 0]] * 3), oracle.ids)
    assert torch.equal(jacobian.flatten(2), WEIGHT.flip(0).expand(3, 2, 4))


def test_a_sample_out_of_budget_is_no_longer_evaluated_and_counts_as_unbroken():
    module = Linear()
    oracle = make(budget=2, module=module)
    adversarial = torch.zeros_like(X)
    oracle.decision(X[[0, 0]], torch.tensor([0, 0]))
    answered = oracle.decision(adversarial, oracle.ids)
    assert answered.tolist() == [0, 1, 1]  # the first was refused: its true class
    assert oracle.refused.tolist() == [True, False, False]
    assert oracle.found.tolist() == [False, True, False]
    assert sum(module.rows) == 4


def test_a_loop_works_on_the_samples_that_have_budget_left():
    oracle = make(budget=2)
    oracle.decision(X[[0, 0, 2]], torch.tensor([0, 0, 2]))
    assert oracle.working(torch.tensor([2, 0])).tolist() == [2]
    assert oracle.refused.tolist() == [True, False, False]
    ids = torch.tensor([0, 2, 0, 1])
    assert oracle.working(torch.tensor([1, 2, 3]), ids).tolist() == [1, 3]


def test_images_and_answers_are_adversarial_where_they_reach_the_threat_models_goal():
    oracle = make()
    images, ids = torch.stack([X[0], torch.zeros_like(X[0]), X[0]]), torch.tensor([0, 0, 2])
    assert oracle.adversarial(images, ids).tolist() == [False, True, False]
    logits = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0]])
    assert oracle.reached(logits, ids).tolist() == [False, True, True]
    assert oracle.reached(logits.argmax(1), ids).tolist() == [False, True, True]


class Suspicious(Linear):
    """Suspects bright images."""

    def logits(self, x):
        return self(x)

    def detection_score(self, x):
        return x.square().sum((1, 2, 3))


def test_detection_scores_are_queries_that_are_counted_and_stopped():
    oracle = make(budget=3, module=Suspicious())
    assert oracle.detection_score(X, oracle.ids).tolist() == [1, 1, 1]
    gradient, scores = oracle.detection_gradient(X[:2], oracle.ids[:2])
    assert torch.equal(gradient, 2 * X[:2])
    assert scores.tolist() == [1, 1]
    assert oracle.forwards.tolist() == [2, 2, 1]
    assert oracle.backwards.tolist() == [1, 1, 0]
    gradient, scores = oracle.detection_gradient(X, oracle.ids)
    assert scores.isnan().tolist() == [True, True, False]
    assert (gradient[:2] == 0).all()
    assert torch.equal(gradient[2], 2 * X[2])
    assert oracle.refused.tolist() == [True, True, False]


def test_a_defense_without_a_detection_score_says_so():
    oracle = make("score")
    with pytest.raises(AccessDenied, match="no detection score"):
        oracle.detection_score(X, oracle.ids)


def test_when_all_are_out_of_budget_the_attack_ends():
    oracle = make(budget=1)
    oracle.decision(X, oracle.ids)
    with pytest.raises(BudgetExhausted):
        oracle.decision(X, oracle.ids)


def test_a_cell_past_its_deadline_ends():
    with pytest.raises(CellTimeout):
        make(deadline=0.0).decision(X, torch.arange(3))


def test_the_closest_adversarial_of_all_queries_is_remembered():
    oracle = make()
    ids = torch.tensor([0, 0, 0, 1])
    queries = torch.stack([X[0] - 0.3, X[0] - 0.1, X[0] - 0.2, X[0] + 0.1])
    oracle.decision(queries, ids)
    oracle.decision(torch.stack([X[0] - 0.4]), torch.tensor([0]))
    assert oracle.found.tolist() == [True, False, False]
    fallback = torch.full_like(X, 0.25)
    closest = oracle.closest(fallback)
    assert torch.equal(closest[0], X[0] - 0.1)
    assert torch.equal(closest[1:], fallback[1:])
    assert oracle.closest_distance[0] == pytest.approx(0.2, rel=1e-6)


def test_outside_the_ball_or_the_box_nothing_is_remembered():
    oracle = make(threat=ThreatModel("Linf", 0.2))
    oracle.decision(X - 0.3, oracle.ids)
    oracle.decision(torch.full_like(X, -1.0), oracle.ids)
    assert not oracle.found[:2].any()
    oracle.decision(X - 0.15, oracle.ids)
    assert oracle.found[:2].all()


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_the_clean_image_is_never_adversarial(threshold):
    """In another batch, rounding may misclassify it: that is neither remembered nor answered."""

    class Contrary(Linear):
        """Errs on every batch that is not of three rows."""

        def forward(self, x, rng=None):
            return super().forward(x) if len(x) == 3 else super().forward(x).flip(1)

    oracle = make(module=Contrary(), batch_size=3, binarization_threshold=threshold)
    assert oracle.decision(X[:1], oracle.ids[:1]).tolist() == [0]
    assert oracle.scores(X[:2], oracle.ids[:2]).argmax(1).tolist() == [0, 0]
    assert oracle.gradient(X[:2], Y[:2], cross_entropy, oracle.ids[:2])[1].argmax(1).tolist() == [0, 0]
    assert not oracle.found.any()
    oracle.decision(X[:1] + 0.1, oracle.ids[:1])
    assert oracle.found.tolist() == [threshold is None, False, False]  # binarized, it is the clean image


@pytest.mark.parametrize("randomized", [False, True])
@pytest.mark.parametrize("bad", [(0.0, torch.nan), (torch.nan, 1.0), (0.0, torch.inf), (-torch.inf, 0.0)])
def test_logits_that_are_not_finite_are_answered_with_the_true_class(bad, randomized):
    class Overflowing(Noisy if randomized else Linear):
        def forward(self, x, rng=None):
            return torch.where(x[:, 0, 0, :1] > 0.9, torch.tensor(bad), super().forward(x, rng))

    oracle = make(module=Overflowing(), randomized=randomized, budget=10**6)
    x, ids = torch.cat([torch.ones_like(X[:1]), X[:1]]), oracle.ids[:2]
    gradient, logits = oracle.gradient(x, Y[:2], cross_entropy, ids)
    for answer in (oracle.decision(x, ids), oracle.scores(x, ids).argmax(1), logits.argmax(1)):
        assert answer.tolist() == [0, 0]
    assert torch.isfinite(logits).all()
    assert gradient.flatten(1).any(1).tolist() == [False, True]
    assert not oracle.found.any()


def test_a_randomized_defense_is_averaged_over_draws_and_every_draw_counts():
    oracle = make(randomized=True, budget=10**6)
    oracle.draws = 1
    few = oracle.scores(X, oracle.ids)
    oracle.draws = 2000
    many = oracle.scores(X, oracle.ids)
    truth = Linear()(X)
    assert (many - truth)[:2].abs().max() < 0.03 < (few - truth)[:2].abs().max()
    assert ((oracle.forwards >= 2001) & (oracle.forwards - 2001 <= 2 * CONFIRMATION.max_draws)).all()
    oracle.draws = 5
    gradient, _ = oracle.gradient(X, Y, cross_entropy, oracle.ids)
    assert gradient.shape == X.shape
    assert oracle.backwards.tolist() == [5] * 3


def test_of_a_randomized_defense_only_what_further_draws_confirm_is_remembered():
    """At a sum of 2.06 a draw errs with probability .21, at 1.8 with .69; the boundary is at 1.9."""
    oracle = make(randomized=True, budget=10**6)
    oracle.draws = 1
    lucky, true = torch.full_like(X, 2.06 / 4), torch.full_like(X, 1.8 / 4)
    for _ in range(50):
        # What is refuted is not answered either: the attack goes on.
        assert (oracle.decision(lucky, oracle.ids)[:2] == 0).all()
        assert (oracle.scores(lucky, oracle.ids)[:2].argmax(1) == 0).all()
        assert (oracle.gradient(lucky, Y, cross_entropy, oracle.ids)[1][:2].argmax(1) == 0).all()
    assert not oracle.found[:2].any()
    assert (oracle.forwards[:2] > 150 + 4 * 5).all()  # four draws at least for each lucky one
    for _ in range(10):
        oracle.decision(true, oracle.ids)
    assert oracle.found[:2].all()
    assert torch.equal(oracle.closest(X)[:2], true[:2])


class ErrsAsItsFirstPixelSays(nn.Module):
    """Names class 1 with a probability that is the first pixel."""

    def forward(self, x, rng=None):
        wrong = (rng.uniform(()) < x[:, 0, 0, 0]).float()
        return torch.stack([1 - wrong, wrong], 1)


def test_behind_a_lucky_row_a_farther_one_of_the_same_query_is_remembered():
    oracle = make(module=ErrsAsItsFirstPixelSays(), randomized=True, budget=10**6)
    oracle.draws = 1
    far = torch.full_like(X, 1.0)
    lucky = far.clone()
    lucky[:, 0, 0, 0] = 0.3
    rows = torch.cat([lucky, far])
    ids = oracle.ids.repeat(2)
    answers = torch.stack([oracle.decision(rows, ids) for _ in range(3)])
    assert oracle.found[:2].all()
    assert torch.equal(oracle.closest(X)[:2], far[:2])
    assert (answers[:, 3:5] == 1).all()
    assert (answers[:, :2] == 0).all()


def test_in_a_ball_the_surest_of_the_likely_rows_is_handed_to_the_judge():
    module, ball = ErrsAsItsFirstPixelSays(), ThreatModel("Linf", 1.0)
    oracle = make(module=module, randomized=True, budget=10**6, threat=ball)
    oracle.draws = 1
    near, sure = (torch.full_like(X, 0.5) for _ in range(2))
    sure[:, 0, 0, 0] = 0.62
    near[:, 0, 0, 0] = 0.4
    for _ in range(30):
        oracle.decision(sure[:2], oracle.ids[:2])
        oracle.decision(near[:2], oracle.ids[:2])
    assert oracle.seen().shape == (2, *X.shape)
    kept = torch.where(oracle.found[:2], oracle.seen()[0, :2, 0, 0, 0], oracle.seen()[1, :2, 0, 0, 0])
    assert (kept == 0.62).all()


def test_a_library_reaches_it_as_a_module_with_exact_totals():
    oracle = make(budget=10**6)
    module = oracle.as_module()
    model = foolbox.PyTorchModel(module.eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2DeepFoolAttack(steps=10, candidates=2)
    _, images, success = attack(model, X[:2], Y[:2], epsilons=None)
    assert success.all()
    assert (Linear()(images).argmax(1) == 1).all()
    assert oracle.forwards.sum() > 0
    assert torch.equal(oracle.forwards, oracle.forwards[:1].expand(3))
    leaf = X.clone().requires_grad_(True)
    cross_entropy(module(leaf), Y).sum().backward()
    direct, _ = oracle.gradient(X, Y, cross_entropy, oracle.ids)
    assert torch.allclose(leaf.grad, direct)


def test_a_library_without_gradient_access_is_denied_gradients():
    leaf = X.clone().requires_grad_(True)
    output = make("score").as_module()(leaf).sum()
    with pytest.raises(AccessDenied):
        output.backward()


def test_the_budget_stops_a_librarys_chunk():
    module = make(budget=2).as_module()
    module(X)
    module(X)
    with pytest.raises(BudgetExhausted):
        module(X)


def test_derivatives_that_lead_nowhere_are_counted_where_the_loss_asked_for_one():
    class Flat(Linear):
        """The gradient vanishes where the first pixel is 0, and is not a number where it is 1."""

        def forward(self, x, rng=None):
            first = x[:, 0, 0, 0, None]
            logits = super().forward(x)
            flat = torch.where(first == 0, logits.detach(), logits)
            return torch.where(first == 1, logits + 0 * (1 - first).sqrt(), flat)

    oracle = make(module=Flat())
    assert oracle.useless_gradients.isnan().all()
    x = torch.full((4, 1, 2, 2), 0.5)
    x[1, 0, 0, 0], x[2, 0, 0, 0] = 0, 1
    oracle.gradient(x, torch.zeros(4, dtype=torch.int64), cross_entropy, torch.tensor([0, 0, 1, 2]))
    assert oracle.useless_gradients.tolist() == [0.5, 1.0, 0.0]


def test_a_loss_that_is_flat_in_the_logits_leads_nowhere_only_before_the_boundary():
    def hinge(logits, y):
        return (logits[:, 0] - logits[:, 1]).clamp_min(0)  # flat where class 1 leads

    def saturated(logits, y):
        return cross_entropy(1e6 * logits, y)

    oracle, dark = make(), torch.full_like(X, 0.4)
    for x, loss, share in ((dark, hinge, torch.nan), (X, hinge, 0), (X, saturated, 1 / 2)):
        oracle.gradient(x[:1], Y[:1], loss, torch.tensor([0]))
        assert oracle.useless_gradients[0].item() == pytest.approx(share, nan_ok=True)


def test_derivatives_of_a_librarys_rows_are_counted_in_equal_shares():
    class Quantized(Linear):
        def forward(self, x, rng=None):
            return super().forward(x.round())

    oracle = make(module=Quantized())
    leaf = X.clone().requires_grad_(True)
    oracle.as_module()(leaf).sum().backward()
    assert oracle.useless_gradients.tolist() == [1.0] * 3
    oracle.decision(torch.zeros_like(X), oracle.ids)
    assert oracle.found_after.isnan().tolist() == [True, True, False]  # when the library saw it, nobody knows
    assert oracle.found_after[2] == torch.inf


def test_it_remembers_after_how_many_passes_a_sample_was_first_broken():
    oracle = make()
    dark, darker = torch.full_like(X, 0.4), torch.full_like(X, 0.3)
    oracle.decision(X, oracle.ids)
    assert oracle.found_after.tolist() == [torch.inf] * 3  # the last is misclassified as it is, at no distance
    oracle.gradient(darker[:1], Y[:1], cross_entropy, torch.tensor([0]))
    oracle.decision(dark, oracle.ids)
    assert oracle.found_after.tolist() == [3, 2, torch.inf]
