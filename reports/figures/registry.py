"""The figures of a report, found by scanning this folder for what `figure` marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

import reports.figures
from reports.measures.facts import NormFacts
from reports.measures.numbers import Numbers
from reports.tables.scanning import CARD, Exhibit, exhibits


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


Drawn = Plot | list[Plot] | None
"""What the function behind a figure returns: None if the norm has no such figure."""
Function = Callable[[Numbers, NormFacts], Drawn]


@dataclass(frozen=True)
class FigureCard(Exhibit):
    """What is declared about a figure.

    With a heading, the figure stands among the tables of its norm. Otherwise it stands under "More figures".

    Attributes:
        draw: takes the run's numbers and the facts of a norm.
    """

    draw: Function


def figure(name: str, *, order: int, heading: str = "") -> Callable[[Function], Function]:
    """Marks a function that makes a figure of each norm, several, or None. `FigureCard` describes the arguments."""

    def mark(function: Function) -> Function:
        setattr(function, CARD, FigureCard(name, order, heading, function))
        return function

    return mark


def plots_of_norm(numbers: Numbers, norm: NormFacts) -> Iterator[tuple[FigureCard, list[Plot]]]:
    """Yields the cards of the figures, in order, each with its figures of a norm."""
    for card in exhibits(reports.figures, FigureCard):
        drawn = card.draw(numbers, norm)
        yield card, drawn if isinstance(drawn, list) else [drawn] if drawn is not None else []
