"""Faster answers inside an attack: a search goes on from what the last query of the same sample found.

An iterate of an attack lies near the one before it, and so do its optimal latents. The answers are approximate: they
steer attacks, and no verdict rests on them. Images that lie far from the remembered one are searched in full, and so is
a sample's first query and one at intervals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.cards import DefenseCard
from bench.contracts.protocols import VectorJacobian
from bench.contracts.streams import RowStreams
from defenses.abs.compiled import Ends
from defenses.abs.decoders import images

if TYPE_CHECKING:  # models make these
    from defenses.abs.model import LatentClassifier

EVALUATIONS = 3
"""Evaluations of a search that goes on, for each class. The last one takes no step."""
CONTENDERS = 4
"""Number of classes whose search goes on, those of least energy, besides the classes that the attack names."""
REACH = 1 / 28
"""L2 distance up to which an image lies near the remembered one, in units of the root of the number of its values."""
FULL_EVERY = 50
"""Number of queries of a sample from one full search to the next."""
STARTS_EVERY = 5
"""The same, for starting points."""

Found = dict[str, Tensor]
"""What a query finds out about its rows, and what is kept of samples, by name; the first dimension counts them."""


class Memory(ABC):
    """What the queries about the samples of one attack found out (`bench.contracts.protocols.WarmAnswers`).

    Args:
        model: the classifier.
        samples: number S of samples.

    Attributes:
        every: number of queries of a sample from one full search to the next.
        evaluations: number of evaluations (S,) float64 so far, summed over classes.
    """

    every: int

    def __init__(self, model: LatentClassifier, samples: int) -> None:
        self.evaluations = torch.zeros(samples, dtype=torch.float64, device=model.device)
        self._model = model
        self._age = torch.full((samples,), self.every, device=model.device)
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
        self._age[samples] = self.every

    @abstractmethod
    def infer(self, samples: Tensor, wanted: Tensor, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and decoded rows (N, K, D) of images (N, C, H, W) of ``samples`` (N,).

        The classes ``wanted`` (N, M) are not given up.
        """

    def decide(self, samples: Tensor, wanted: Tensor, x: Tensor) -> Tensor:
        """Classes (N,) of images (N, C, H, W)."""
        return self._model.logits_of(self.infer(samples, wanted, self._model.seen(x))[0]).argmax(1)

    @abstractmethod
    def reconstruct(self, samples: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions (N, C, H, W) of images (N, C, H, W) under the classes ``y`` (N,)."""

    def _old(self, samples: Tensor) -> Tensor:
        """Whether the memory of samples (N,) is missing or too old."""
        return self._age[samples] >= self.every

    def _ask(self, samples: Tensor, full: Tensor, found: Found, evaluations: Tensor | int) -> None:
        """Notes what was found out about rows, which were searched in ``full`` (N,) or not, until `settle`."""
        self._asked.append((samples, full, found))
        self._count(samples, evaluations)

    def _count(self, samples: Tensor, evaluations: Tensor | int) -> None:
        taken = torch.as_tensor(evaluations, device=samples.device).double().expand(len(samples))
        self.evaluations.index_add_(0, samples, taken)


class ContinuedMemory(Memory):
    """Goes on from where the last search ended, with few evaluations of the classes of least energy.

    The other classes keep their last energies and reconstructions.
    """

    every = FULL_EVERY

    def infer(self, samples: Tensor, wanted: Tensor, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory`."""
        model, iterations = self._model, self._model.inference().search.iterations
        full = self._old(samples) | self._far(samples, seen)
        rows = full.nonzero()[:, 0]
        searched = _by_row(model.descended(seen[rows], model.starts(seen[rows]))) if len(rows) else {}
        if len(rows) == len(seen):
            found, evaluations = searched, full * model.inner_steps
        else:
            known = {name: self._kept[name][samples] for name in ("values", "decoded", "p")}
            for name, values in searched.items():
                known[name][rows] = values
            contending = self._contending(known["values"], wanted) & ~full[:, None]
            ends = Ends(known["values"].T, known["decoded"], known["p"].transpose(0, 1))
            found = _by_row(model.inference().resumed(seen, model.objective, ends, contending.T, EVALUATIONS))
            whole = found["values"].shape[1] * iterations
            evaluations = torch.where(full, whole, EVALUATIONS * contending.sum(1))
        self._ask(samples, full, {**found, "seen": seen}, evaluations)
        return found["values"], found["decoded"]

    def decide(self, samples: Tensor, wanted: Tensor, x: Tensor) -> Tensor:
        """See `Memory`. Images far from the remembered ones are decided exactly, and not remembered."""
        model = self._model
        far = ~self._old(samples) & self._far(samples, model.seen(x))
        classes, near = samples.new_empty(len(samples)), ~far
        if far.any():
            classes[far] = model.exact_classes(x[far])
            self._ask(samples[far], torch.zeros_like(far[far]), {}, model.inner_steps)
        if near.any():
            classes[near] = super().decide(samples[near], wanted[near], x[near])
        return classes

    def reconstruct(self, samples: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `Memory`."""
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


class StartMemory(Memory):
    """Starts where the last full search found its starting points, and takes all of the model's own steps.

    For models whose answer is the end of a descent that is cut short: going on from there would be another model.
    """

    every = STARTS_EVERY

    def infer(self, samples: Tensor, wanted: Tensor, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory`."""
        model, full = self._model, self._old(samples)
        rows = full.nonzero()[:, 0]
        if len(rows):
            searched = model.starts(seen[rows], *(draws[rows] for draws in noise)).transpose(0, 1)
        if len(rows) == len(seen):
            p = searched
        else:
            p = self._kept["p"][samples]
            if len(rows):
                p[rows] = searched
        ends = model.descended(seen, p.transpose(0, 1), *noise)
        self._ask(samples, full, {"p": p}, model.inner_steps)
        return ends.values.T, ends.decoded

    def reconstruct(self, samples: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `Memory`. One class is searched in full, which costs less than to remember all."""
        self._count(samples, self._model.inference().search.longest)
        return self._model.reconstruct(x, y)


class Remembering:
    """A classifier that answers about images of samples from what is remembered of them."""

    card: DefenseCard

    def __init__(self, model: LatentClassifier, memory: Memory, samples: Tensor, wanted: Tensor) -> None:
        self.card, self._model, self._memory = model.card, model, memory
        self._samples, self._wanted = samples, wanted

    @torch.no_grad()
    def logits(self, x: Tensor, *rng: RowStreams) -> Tensor:
        """See `bench.contracts.protocols.Defense`."""
        return self._model.logits_of(self._infer(self._model.seen(x), *rng)[0])

    @torch.no_grad()
    def input_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """See `bench.contracts.protocols.HasInputGradient`."""
        seen = self._model.seen(x)
        energies, decoded = self._infer(seen, *rng)
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

    def _infer(self, seen: Tensor, *rng: RowStreams) -> tuple[Tensor, Tensor]:
        return self._memory.infer(self._samples, self._wanted, seen, *self._model.noise(*rng))


def _by_row(ends: Ends) -> Found:
    return {"values": ends.values.T, "decoded": ends.decoded, "p": ends.p.transpose(0, 1)}
