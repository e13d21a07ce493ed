"""Study cards: what is known about each kind of study before it runs, and the decorator that declares a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench.contracts.cards import attach

if TYPE_CHECKING:  # light: a card needs no torch
    import pyarrow as pa
    import torch

    from bench.contracts.norms import NormName
    from bench.contracts.protocols import Defense
    from bench.contracts.work import Study
    from bench.datasets.dataset import Dataset
    from bench.studies.study import Measured, OnSamples


class Measure(Protocol):
    """The function that measures a study."""

    def __call__(
        self, study: Study, defense: Defense, dataset: Dataset, device: torch.device, on_samples: OnSamples
    ) -> Measured:
        """Runs the study. ``on_samples`` receives the number of samples that are done."""


@dataclass(frozen=True, kw_only=True)
class StudyCard:
    """The declaration of a kind of study.

    Attributes:
        name: the kind's name in matrices and ledgers.
        schema: its columns in the ledger.
        norms_of: returns the norms in which a defense can be studied, empty if it cannot. A norm of None means that
            the norm does not matter.
        samples_of: returns the number of records of a study in a matrix of some number of test images.
        at_threshold: whether it runs at the matrix's threshold in its norm.
    """

    name: str
    schema: pa.Schema
    norms_of: Callable[[Defense], Sequence[NormName | None]]
    samples_of: Callable[[Dataset, int], int]
    at_threshold: bool


def study(
    name: str,
    *,
    schema: pa.Schema,
    norms_of: Callable[[Defense], Sequence[NormName | None]],
    samples_of: Callable[[Dataset, int], int],
    at_threshold: bool = False,
) -> Callable[[Measure], Measure]:
    """Declares `Measure`, the function that measures, as a kind of study. The arguments are those of `StudyCard`."""
    return attach(
        StudyCard(name=name, schema=schema, norms_of=norms_of, samples_of=samples_of, at_threshold=at_threshold)
    )
