"""Draws the figures of a report, the slowest part of writing it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from reports.figures.style import to_svg, write_figure


def draw(
    figures: Mapping[str, Figure], folder: Path | None, shown: Collection[str], processes: int
) -> dict[str, bytes]:
    """Writes figures to ``folder``, if one is given, and returns the figures in ``shown`` as SVG files.

    ``figures`` and the result are keyed by name. Drawing uses up to ``processes`` worker processes if ``processes``
    exceeds one. The files do not depend on their number.
    """
    names = [name for name in figures if folder is not None or name in shown]
    stems = [None if folder is None else folder / name for name in names]
    tasks = ([figures[name] for name in names], stems, [name in shown for name in names])
    if min(processes, len(names)) < 2:
        return _by_name(names, map(_draw, *tasks))
    with ProcessPoolExecutor(
        min(processes, len(names)),
        multiprocessing.get_context("spawn"),
        # Only this process should handle an interrupt.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        return _by_name(names, pool.map(_draw, *tasks))


def _draw(figure: Figure, stem: Path | None, shown: bool) -> bytes:
    if stem is not None:
        write_figure(figure, stem)
    return to_svg(figure) if shown else b""


def _by_name(names: list[str], drawn: Iterable[bytes]) -> dict[str, bytes]:
    return {name: svg for name, svg in zip(names, drawn, strict=True) if svg}
