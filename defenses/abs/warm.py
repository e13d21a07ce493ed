"""Warm answers: inside an attack, a search goes on from what the last query of the same sample found.

An iterate of an attack lies near the one before it, and so do its optimal latents. The answers are approximate: they
steer attacks, and no verdict rests on them. A sample's first query is searched in full, and again one at intervals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
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

EVALUATIONS = 5
"""Evaluations of a search that goes on, for each class. The last one takes no step."""
CONTENDERS = 4
"""Number of classes whose search goes on, those of least energy, besides the classes that the attack names."""
FULL_EVERY = 50
"""Number of queries of a sample from one full search to the next."""
STARTS_EVERY = 5
"""The same, for starting points."""

Found = dict[str, Tensor]
"""What a query finds out about its rows, and what is kept of samples, by name; the first dimension counts them."""


class Warm(ABC):
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
        device = next(model.parameters()).device
        self.evaluations = torch.zeros(samples, dtype=torch.float64, device=device)
        self._model = model
        self._age = torch.full((samples,), self.every, device=device)
        self._kept: Found = {}
        self._unsettled: list[tuple[Tensor, Tensor, Found]] = []

    def at(self, samples: Tensor, wanted: Tensor) -> Warmed:
        """See `bench.contracts.protocols.WarmAnswers`."""
        return Warmed(self._model, partial(self._infer, samples, wanted))

    def settle(self) -> None:
        """See `bench.contracts.protocols.WarmAnswers`."""
        for samples, full, found in self._unsettled:
            places = torch.arange(len(samples), device=samples.device)
            last = torch.full_like(self._age, -1).scatter_reduce_(0, samples, places, "amax")
            asked = (last >= 0).nonzero()[:, 0]
            rows = last[asked]
            self._age[asked] = torch.where(full[rows], 1, self._age[asked] + 1)
            for name, values in found.items():
                kept = self._kept.setdefault(name, values.new_zeros(len(self._age), *values.shape[1:]))
                kept[asked] = values[rows]
        self._unsettled.clear()

    def forget(self, samples: Tensor) -> None:
        """See `bench.contracts.protocols.WarmAnswers`."""
        self._age[samples] = self.every

    @abstractmethod
    def _infer(self, samples: Tensor, wanted: Tensor, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N, K) and decoded rows (N, K, D) of images (N, C, H, W) of ``samples`` (N,).

        The classes ``wanted`` (N, M) are not given up.
        """

    def _remember(self, samples: Tensor, full: Tensor, found: Found, evaluations: Tensor) -> None:
        self._unsettled.append((samples, full, found))
        self.evaluations.index_add_(0, samples, evaluations.double().expand(len(samples)))


class WarmEnds(Warm):
    """Goes on from where the last search ended, with few evaluations of the classes of least energy.

    The other classes keep their last energies and reconstructions.
    """

    every = FULL_EVERY

    def _infer(self, samples: Tensor, wanted: Tensor, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        model, search = self._model, self._model.inference().search
        full = self._age[samples] >= self.every
        rows = full.nonzero()[:, 0]
        searched = _by_row(model.descended(seen[rows], model.starts(seen[rows]))) if len(rows) else {}
        if len(rows) == len(seen):
            found, evaluations = searched, torch.tensor(len(searched["values"][0]) * search.iterations)
        else:
            known = {name: kept[samples] for name, kept in self._kept.items()}
            for name, values in searched.items():
                known[name][rows] = values
            contending = self._contending(known["values"], wanted) & ~full[:, None]
            ends = Ends(known["values"].T, known["decoded"], known["p"].transpose(0, 1))
            found = _by_row(model.inference().resumed(seen, model.objective, ends, contending.T, EVALUATIONS))
            whole = found["values"].shape[1] * search.iterations
            evaluations = torch.where(full, whole, EVALUATIONS * contending.sum(1))
        self._remember(samples, full, found, evaluations)
        return found["values"], found["decoded"]

    def _contending(self, energies: Tensor, wanted: Tensor) -> Tensor:
        """Returns the classes (N, K) whose search goes on, given their last energies."""
        scaled = self._model.class_scales() * energies
        lowest = scaled.topk(min(CONTENDERS, scaled.shape[1]), largest=False).indices
        return torch.zeros_like(scaled, dtype=torch.bool).scatter_(1, torch.cat([lowest, wanted], 1), True)


class WarmStarts(Warm):
    """Starts where the last full search found its starting points, and takes all of the model's own steps.

    For models whose answer is the end of a descent that is cut short: going on from there would be another model.
    """

    every = STARTS_EVERY

    def _infer(self, samples: Tensor, wanted: Tensor, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        model = self._model
        full = self._age[samples] >= self.every
        rows = full.nonzero()[:, 0]
        p = model.starts(seen[rows], *(draws[rows] for draws in noise)).transpose(0, 1) if len(rows) else None
        if p is None or len(rows) < len(seen):
            known = self._kept["p"][samples]
            p = known if p is None else known.index_copy(0, rows, p)
        ends = model.descended(seen, p.transpose(0, 1), *noise)
        self._remember(samples, full, {"p": p}, torch.tensor(p.shape[1] * model.inference().search.iterations))
        return ends.values.T, ends.decoded


class Warmed:
    """A classifier that answers from what is remembered of the rows' samples.

    Args:
        model: the classifier.
        infer: maps images as the model sees them, and draws, to energies (N, K) and decoded rows (N, K, D).
    """

    card: DefenseCard

    def __init__(self, model: LatentClassifier, infer: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.card, self._model, self._infer = model.card, model, infer

    def logits(self, x: Tensor, *rng: RowStreams) -> Tensor:
        """See `bench.contracts.protocols.Defense`."""
        return self._model.logits_of(self._inferred(x, *rng)[0])

    def input_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """See `bench.contracts.protocols.HasInputGradient`."""
        energies, reconstructions = self._inferred(x, *rng)
        return self._model.linearized(self._model.seen(x), energies, reconstructions)

    def decide(self, x: Tensor) -> Tensor:
        """See `bench.contracts.protocols.HasDecision`."""
        return self.logits(x).argmax(1)

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """See `bench.contracts.protocols.HasReconstruction`."""
        reconstructions = self._inferred(x)[1]
        return reconstructions[torch.arange(len(y), device=y.device), y]

    def to(self, device: torch.device | str) -> Warmed:
        """Stays where the classifier is."""
        return self

    @torch.no_grad()
    def _inferred(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, Tensor]:
        seen = self._model.seen(x)
        energies, decoded = self._infer(seen, *self._model.noise(*rng))
        return energies, images(decoded, seen.shape[-1])


def _by_row(ends: Ends) -> Found:
    return {"values": ends.values.T, "decoded": ends.decoded, "p": ends.p.transpose(0, 1)}
