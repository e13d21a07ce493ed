"""Faster answers inside an attack: a search goes on from what the last query of the same sample found.

An iterate of an attack lies near the one before it, and so do its optimal latents. The answers are approximate: they
steer attacks, and no verdict rests on them. Images that lie far from the remembered one are searched anew, and so is a
sample's first query and one at intervals. In either case, only the classes still in contention are searched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.cards import DefenseCard
from bench.contracts.protocols import VectorJacobian
from defenses.abs.decoders import images
from defenses.abs.energies import Ends

if TYPE_CHECKING:  # models make these
    from defenses.abs import AnalysisBySynthesis

EVALUATIONS = 3
"""Evaluations of a search that goes on, for each class. The last one takes no step."""
CONTENDERS = 4
"""Number of classes that are searched, those of least energy, besides the classes that the attack names."""
REACH = 1 / 28
"""L2 distance up to which an image lies near the remembered one, in units of the root of the number of its values."""
FULL_EVERY = 50
"""Number of queries of a sample from one new search to the next."""

Found = dict[str, Tensor]
"""What a query finds out about its rows, and what is kept of samples, by name; the first dimension counts them."""


class Memory:
    """What the queries about the samples of one attack found out (`bench.contracts.protocols.WarmAnswers`).

    A search goes on from where the last one ended, with few evaluations of the classes of least energy. The others keep
    their last energies and reconstructions, in a new search those of their best starting points.

    Args:
        model: the classifier.
        samples: number S of samples.

    Attributes:
        evaluations: number of evaluations (S,) float64 so far, summed over classes.
    """

    def __init__(self, model: AnalysisBySynthesis, samples: int) -> None:
        self.evaluations = torch.zeros(samples, dtype=torch.float64, device=model.device)
        self._model = model
        self._age = torch.full((samples,), FULL_EVERY, device=model.device)
        self._kept: Found = {}
        self._asked: list[tuple[Tensor, Tensor, Found]] = []

    def at(self, samples: Tensor, wanted: Tensor) -> Remembering:
        """See `bench.contracts.protocols.WarmAnswers`."""
        return Remembering(self._model, self, samples, wanted)

    def settle(self) -> None:
        """See `bench.contracts.protocols.WarmAnswers`."""
        if not self._asked:
            return
        samples = torch.cat([rows for rows, _, _ in self._asked])
        full = torch.cat([of for _, of, _ in self._asked])
        asked = torch.zeros_like(self._age, dtype=torch.bool)
        self._age += asked.index_fill(0, samples, True)
        self._age[asked.index_fill(0, samples[full], True)] = 1
        for rows, _, found in self._asked:
            self._keep(rows, found)
        self._asked.clear()

    def _keep(self, samples: Tensor, found: Found) -> None:
        """Keeps the last row of each sample."""
        places = torch.arange(len(samples), device=samples.device)
        last = torch.full_like(self._age, -1).scatter_reduce_(0, samples, places, "amax")
        asked = (last >= 0).nonzero()[:, 0]
        for name, values in found.items():
            if name not in self._kept:
                self._kept[name] = values.new_zeros(len(self._age), *values.shape[1:])
            self._kept[name][asked] = values[last[asked]]

    def forget(self, samples: Tensor) -> None:
        """See `bench.contracts.protocols.WarmAnswers`."""
        self._age[samples] = FULL_EVERY

    def infer(self, samples: Tensor, wanted: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and decoded rows (N, K, D) of images (N, C, H, W) of ``samples`` (N,).

        The classes ``wanted`` (N, M) are not given up.
        """
        model, inference = self._model, self._model.inference()
        full = self._old(samples) | self._far(samples, seen)
        parts: list[tuple[Tensor, Found]] = []
        taken = torch.zeros_like(samples)
        for anew in (True, False):
            rows = (full if anew else ~full).nonzero()[:, 0]
            if not len(rows):
                continue
            if anew:
                starts = inference.starts(seen[rows], model.objective)
                before, steps = inference.descended(seen[rows], model.objective, starts, 1), inference.search.iterations
            else:
                before, steps = self._ends(samples[rows]), EVALUATIONS
            contending = self._contending(before.values.T, wanted[rows])
            ends = inference.resumed(seen[rows], model.objective, before, contending.T, steps)
            taken[rows] = steps * contending.sum(1) + anew * contending.shape[1]
            parts.append((rows, _by_row(ends)))
        back = torch.cat([rows for rows, _ in parts]).argsort()
        found = {name: torch.cat([of[name] for _, of in parts])[back] for name in parts[0][1]}
        self._ask(samples, full, {**found, "seen": seen}, taken)
        return found["values"], found["decoded"]

    def _ends(self, samples: Tensor) -> Ends:
        """Where the last searches of ``samples`` (N,) ended."""
        values, decoded, p = (self._kept[name][samples] for name in ("values", "decoded", "p"))
        return Ends(values.T, decoded, p.transpose(0, 1))

    def decide(self, samples: Tensor, wanted: Tensor, x: Tensor) -> Tensor:
        """Classes (N,) of images (N, C, H, W).

        Images far from the remembered ones are decided exactly, and not remembered.
        """
        model = self._model
        far = ~self._old(samples) & self._far(samples, model.seen(x))
        classes, near = samples.new_empty(len(samples)), ~far
        if far.any():
            classes[far] = model.decide(x[far])
            self._ask(samples[far], torch.zeros_like(far[far]), {}, model.inner_steps)
        if near.any():
            energies, _ = self.infer(samples[near], wanted[near], model.seen(x[near]))
            classes[near] = model.logits_of(energies).argmax(1)
        return classes

    def reconstruct(self, samples: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions (N, C, H, W) of images (N, C, H, W) under the classes ``y`` (N,)."""
        seen = self._model.seen(x)
        decoded = self.infer(samples, y[:, None], seen)[1]
        return images(decoded[torch.arange(len(y), device=y.device), y], seen.shape[-1])

    def _far(self, samples: Tensor, seen: Tensor) -> Tensor:
        if "seen" not in self._kept:
            return torch.zeros_like(samples, dtype=torch.bool)
        moved = (seen - self._kept["seen"][samples]).flatten(1)
        distance = torch.linalg.vector_norm(moved, dim=1)
        far: Tensor = distance > REACH * moved.shape[1] ** 0.5
        return far

    def _contending(self, energies: Tensor, wanted: Tensor) -> Tensor:
        """Returns the classes (N, K) whose search goes on, given their last energies."""
        scaled = self._model.class_scales() * energies
        lowest = scaled.topk(min(CONTENDERS, scaled.shape[1]), largest=False).indices
        return torch.zeros_like(scaled, dtype=torch.bool).scatter_(1, torch.cat([lowest, wanted], 1), True)

    def _old(self, samples: Tensor) -> Tensor:
        """Whether the memory of samples (N,) is missing or too old."""
        return self._age[samples] >= FULL_EVERY

    def _ask(self, samples: Tensor, full: Tensor, found: Found, evaluations: Tensor | int) -> None:
        """Notes what was found out about rows, which were searched in ``full`` (N,) or not, until `settle`."""
        self._asked.append((samples, full, found))
        taken = torch.as_tensor(evaluations, device=samples.device).double().expand(len(samples))
        self.evaluations.index_add_(0, samples, taken)


class Remembering:
    """A classifier that answers about images of samples from what is remembered of them."""

    card: DefenseCard

    def __init__(self, model: AnalysisBySynthesis, memory: Memory, samples: Tensor, wanted: Tensor) -> None:
        self.card, self._model, self._memory = model.card, model, memory
        self._samples, self._wanted = samples, wanted

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """See `bench.contracts.protocols.Defense`."""
        return self._model.logits_of(self._memory.infer(self._samples, self._wanted, self._model.seen(x))[0])

    @torch.no_grad()
    def input_gradient(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        """See `bench.contracts.protocols.HasInputGradient`."""
        seen = self._model.seen(x)
        energies, decoded = self._memory.infer(self._samples, self._wanted, seen)
        return self._model.linearized(seen, energies, images(decoded, seen.shape[-1]))

    @torch.no_grad()
    def decide(self, x: Tensor) -> Tensor:
        """See `bench.contracts.protocols.HasDecision`."""
        return self._memory.decide(self._samples, self._wanted, x)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """See `bench.contracts.protocols.HasReconstruction`."""
        return self._memory.reconstruct(self._samples, x, y)

    def to(self, device: torch.device | str) -> Remembering:
        """Stays where the classifier is."""
        return self


def _by_row(ends: Ends) -> Found:
    return {"values": ends.values.T, "decoded": ends.decoded, "p": ends.p.transpose(0, 1)}
