"""The figures of a report, found by scanning this folder for what `figure` marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

import reports.figures
from reports.measures.numbers import NormFacts, Numbers
from reports.tables.registry import CARD, ExhibitCard, Function, exhibits


@dataclass(frozen=True)
class Plot:
    """A figure of a report.

    Attributes:
        name: stem of the figure's files.
        caption: what the figure shows, in a sentence or two.
        alternative: text for readers who cannot see the figure.
        figure: the figure.
    """

    name: str
    caption: str
    alternative: str
    figure: Figure


def figure(name: str, *, order: int, heading: str = "") -> Callable[[Function], Function]:
    """Marks a function that makes a figure of each norm, several, or None.

    The function takes the run's `Numbers` and a norm's `NormFacts`. It returns a `Plot`, a list of them, or None.

    With a ``heading``, the figure stands among the tables (see `reports.tables.registry.ExhibitCard`). Otherwise it
    stands under "More figures".
    """

    def mark(function: Function) -> Function:
        setattr(function, CARD, ExhibitCard(name, "norm", order, heading, function))
        return function

    return mark


def plots_of_norm(numbers: Numbers, norm: NormFacts) -> Iterator[tuple[ExhibitCard, list[Plot]]]:
    """Yields the cards of the figures, in order, each with its figures of a norm."""
    for card in exhibits(reports.figures):
        made = card.make(numbers, norm)
        yield card, made if isinstance(made, list) else [made] if made is not None else []
