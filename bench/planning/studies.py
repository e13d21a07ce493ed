"""The studies of a matrix."""

from __future__ import annotations

from bench.contracts.work import Study
from bench.datasets.dataset import Dataset
from bench.planning.matrix import Matrix
from bench.studies.catalog import STUDIES, code_of, state_of
from bench.training.loading import LoadedDefense


def plan_studies(matrix: Matrix, dataset: Dataset, defenses: dict[str, LoadedDefense]) -> list[Study]:
    """Returns the studies of a matrix: its kinds for each defense and norm to which they apply."""
    cards = {kind: STUDIES.get(kind).card for kind in matrix.studies}
    return [
        Study(
            kind=kind,
            dataset=dataset.name,
            defense=name,
            norm=norm,
            epsilon=matrix.thresholds[norm] if norm is not None and cards[kind].at_threshold else None,
            seed=matrix.seed,
            samples=cards[kind].samples_of(dataset, matrix.samples_of(name)),
            batch_size=loaded.card.batch_size,
            timeout=matrix.cell_timeout,
            state=state_of(code_of(kind), loaded, dataset),
        )
        for name, loaded in defenses.items()
        for kind in matrix.studies
        if name in matrix.studied(kind)
        for norm in cards[kind].norms_of(loaded.defense)
        if norm is None or norm in matrix.thresholds
    ]
