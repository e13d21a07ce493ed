"""Dataset cards: what is known about each dataset before it is read, and the decorator that declares a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contracts.cards import attach

if TYPE_CHECKING:  # light: a card needs no torch
    from bench.datasets.split import Part, Split

    Read = Callable[[Part, Path | None], Split]


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """A dataset card: what is known about a dataset before it is loaded.

    Attributes:
        name: the dataset's name in commands and matrices.
        classes: number of classes.
        shape: channels, height and width of an image.
        train: number of training images in the complete set.
        test: number of test images in the complete set.
        source: where the dataset comes from.
        citation: where the dataset was published.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: int
    test: int
    source: str
    citation: str


def dataset(
    name: str, *, classes: int, shape: tuple[int, int, int], train: int, test: int, source: str, citation: str
) -> Callable[[Read], Read]:
    """Declares ``read(part, data_dir)`` as a dataset. The arguments are those of `DatasetCard`.

    ``read`` returns the `bench.datasets.split.Split` of a part, ``train`` or ``test``. ``data_dir`` is the folder with
    the data; with None, ``read`` downloads the data into the cache, if it can.
    """
    return attach(
        DatasetCard(name=name, classes=classes, shape=shape, train=train, test=test, source=source, citation=citation)
    )
