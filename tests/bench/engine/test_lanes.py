"""Warm answers: what is remembered of a sample, for which query, and what becomes of claims that rest on it."""

import pytest
import torch
from torch import Tensor, nn

from bench.contracts.cards import Access, DefenseCard
from bench.contracts.chunk import Chunk
from bench.contracts.protocols import HasWarmAnswers, as_defense
from bench.contracts.threat import ThreatModel
from bench.engine.oracle import DefenseOracle
from bench.engine.terms import Terms

ONES = torch.ones(2, dtype=torch.int64)
STEPS = 50


class Memory:
    """Answers with the first pixel that was remembered, and asks for exactness where it remembers nothing."""

    def __init__(self, samples: int) -> None:
        self.evaluations = torch.zeros(samples, dtype=torch.float64)
        self.remembered = torch.full((samples,), torch.nan)
        self.wanted: list[Tensor] = []
        self._last: list[tuple[Tensor, Tensor]] = []

    def at(self, samples, wanted):
        self.wanted.append(wanted)
        return Remembering(self, samples)

    def settle(self):
        for samples, pixels in self._last:
            for sample, pixel in zip(samples.tolist(), pixels.tolist(), strict=True):
                self.remembered[sample] = pixel
        self._last.clear()

    def forget(self, samples):
        self.remembered[samples] = torch.nan


class Remembering:
    """The logits of class 1 are those of the remembered pixel."""

    def __init__(self, memory, samples):
        self.card, self._memory, self._samples = CARD, memory, samples

    def logits(self, x):
        own, remembered = x[:, 0, 0, 0], self._memory.remembered[self._samples]
        self._memory._last.append((self._samples, own))
        self._memory.evaluations.index_add_(0, self._samples, torch.where(remembered.isnan(), STEPS, 5).double())
        return _logits(torch.where(remembered.isnan(), own, remembered))

    def input_gradient(self, x):
        return self.logits(x), lambda cotangent: torch.zeros_like(x)

    def reconstruct(self, x, y):
        return torch.full_like(x, 0.5) + 0 * self.logits(x).sum()


class Thresholded(nn.Module):
    """Class 1 where the first pixel is above one half; it remembers the pixel of the last query."""

    inner_steps = STEPS

    def __init__(self):
        super().__init__()
        self.memories: list[Memory] = []

    def logits(self, x):
        return _logits(x[:, 0, 0, 0])

    def reconstruct(self, x, y):
        return torch.zeros_like(x)

    def warm_answers(self, samples):
        self.memories.append(Memory(samples))
        return self.memories[-1]


CARD = DefenseCard(name="thresholded", datasets=("digits",), citation="-")


def _logits(pixel):
    return torch.stack([torch.zeros_like(pixel), pixel - 0.5], 1)


def _image(*pixels):
    return torch.tensor(pixels).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def _asked(access: Access = "gradient", batch_size=100, warm=True):
    """An oracle about two samples of class 0, and the memories of its defense."""
    defense = as_defense(CARD, Thresholded())
    assert isinstance(defense, HasWarmAnswers)
    chunk = Chunk(_image(0.0, 0.1), 0 * ONES, range(2), 2)
    terms = Terms(access, ThreatModel("Linf"), 1000, batch_size, warm=warm)
    return DefenseOracle(defense, chunk, terms, chunk.streams(0, "a"), chunk.streams(0, "b")), defense.memories


def test_an_answer_starts_from_the_last_query_of_the_same_sample():
    oracle, memories = _asked()
    assert oracle.scores(_image(0.2, 0.3), oracle.ids)[:, 1].tolist() == pytest.approx([-0.3, -0.2])
    assert oracle.scores(_image(0.9, 0.9), oracle.ids)[:, 1].tolist() == pytest.approx([-0.3, -0.2])
    assert oracle.scores(_image(0.0), ONES[:1])[:, 1].tolist() == pytest.approx([0.4])
    assert len(memories) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_rows_of_one_query_start_from_before_it_and_the_last_one_is_remembered(batch_size):
    oracle, _ = _asked(batch_size=batch_size)
    ids = torch.tensor([1, 0, 1])
    oracle.scores(_image(0.3, 0.2, 0.4), ids)
    assert oracle.scores(_image(0.0, 0.0, 0.0), ids)[:, 1].tolist() == pytest.approx([-0.1, -0.3, -0.1])


@pytest.mark.parametrize("ask", ["scores", "decision", "gradient", "jacobian", "reconstruct"])
def test_every_kind_of_query_is_answered_and_remembered(ask):
    oracle, memories = _asked("latent" if ask == "reconstruct" else "gradient")
    arguments = {
        "gradient": (0 * ONES, lambda logits, y: logits.sum(1)),
        "jacobian": (torch.tensor([[1], [0]]),),
        "reconstruct": (ONES,),
    }
    getattr(oracle, ask)(_image(0.2, 0.3), *arguments.get(ask, ()), oracle.ids)
    assert memories[0].remembered.tolist() == pytest.approx([0.2, 0.3])


def test_the_samples_own_class_and_what_the_attack_names_are_wanted():
    oracle, memories = _asked()
    oracle.jacobian(_image(0.2, 0.3), torch.tensor([[1], [1]]), oracle.ids)
    assert memories[0].wanted[-1].tolist() == [[0, 1], [0, 1]]
    oracle.scores(_image(0.2, 0.3), oracle.ids)
    assert memories[0].wanted[-1].tolist() == [[0], [0]]


def test_lanes_are_remembered_apart():
    oracle, memories = _asked()
    oracle.scores(_image(0.2, 0.3), oracle.ids)
    oracle.lane = 3
    assert oracle.scores(_image(0.4, 0.4), oracle.ids)[:, 1].tolist() == pytest.approx([-0.1, -0.1])
    oracle.lane = 0
    assert oracle.scores(_image(0.4, 0.4), oracle.ids)[:, 1].tolist() == pytest.approx([-0.3, -0.2])
    assert len(memories) == 2


def test_a_claim_that_rests_on_memory_is_checked_before_it_is_believed():
    oracle, memories = _asked()
    oracle.scores(_image(0.8, 0.3), oracle.ids)
    assert oracle.found.tolist() == [True, False]
    assert oracle.closest_distance[0] == pytest.approx(0.8)
    # From memory, 0.2 is adversarial, too. It is not.
    assert oracle.scores(_image(0.2, 0.2), oracle.ids).argmax(1).tolist() == [0, 0]
    assert oracle.closest_distance[0] == pytest.approx(0.8)
    assert memories[0].remembered.isnan().tolist() == [True, False]


def test_what_memory_does_not_see_is_not_found():
    oracle, _ = _asked()
    oracle.scores(_image(0.2, 0.3), oracle.ids)
    oracle.scores(_image(0.8, 0.8), oracle.ids)
    assert not oracle.found.any()
    oracle.scores(_image(0.8, 0.8), oracle.ids)
    assert oracle.found.all()


def test_inner_steps_are_counted_as_they_were_taken():
    oracle, _ = _asked()
    oracle.scores(_image(0.2, 0.3), oracle.ids)
    oracle.scores(_image(0.2, 0.3), oracle.ids)
    assert oracle.inner_steps.tolist() == [STEPS + 5, STEPS + 5]
    # The check of a claim is a pass of its own, with all its steps.
    oracle.scores(_image(0.7), ONES[:1] * 0)
    oracle.scores(_image(0.7), ONES[:1] * 0)
    assert oracle.forwards.tolist() == [5, 2]
    assert oracle.inner_steps.tolist() == [STEPS + 3 * 5 + STEPS, STEPS + 5]


def test_without_leave_nothing_is_remembered():
    oracle, memories = _asked(warm=False)
    oracle.scores(_image(0.2, 0.3), oracle.ids)
    oracle.lane = 1
    assert oracle.scores(_image(0.9, 0.9), oracle.ids)[:, 1].tolist() == pytest.approx([0.4, 0.4])
    assert oracle.lane == 0
    assert memories == []


def test_rows_of_a_library_pass_for_the_sample_whose_clean_image_is_nearest():
    oracle, memories = _asked()
    module = oracle.as_module()
    for pixels in ((0.01, 0.2, 0.02), (0.03, 0.5, 0.04)):
        module(_image(*pixels))
    assert memories[0].remembered.tolist() == pytest.approx([0.04, 0.5])
    # Three full answers, and three from memory; a sample's count is the mean.
    assert oracle.inner_steps.tolist() == [(3 * STEPS + 3 * 5) / 2] * 2


def test_the_classes_that_a_librarys_loss_weighs_stay_wanted():
    oracle, memories = _asked()
    module = oracle.as_module()
    leaf = _image(0.0).requires_grad_(True)
    module(leaf)[0, 1].backward()
    module(_image(0.0))
    assert memories[0].wanted[-1][0].tolist()[:2] == [0, 1]
