"""The datasets: each is declared in a module of this package, with ``@dataset``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.datasets.cards import DatasetCard
from bench.plugins.catalog import Catalog

if TYPE_CHECKING:
    from bench.datasets.cards import Read

DATASETS: Catalog[DatasetCard, Read] = Catalog("dataset", "bench.datasets", DatasetCard)
