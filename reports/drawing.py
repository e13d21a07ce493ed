"""Draws the figures of a report: most of the time that it takes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from reports.figures import to_svg, write_figure


def draw(
    figures: Mapping[str, Figure], folder: Path | None, shown: Collection[str], processes: int
) -> dict[str, bytes]:
    """Writes figures by name into ``folder``, where one is given, and returns those that are ``shown`` as SVG files.

    In up to ``processes`` processes besides this one, if more than one; the files are the same.
    """
    names = [name for name in figures if folder is not None or name in shown]
    stems = [None if folder is None else folder / name for name in names]
    tasks = ([figures[name] for name in names], stems, [name in shown for name in names])
    if min(processes, len(names)) < 2:
        return _by_name(names, map(_draw, *tasks))
    with ProcessPoolExecutor(
        min(processes, len(names)),
        multiprocessing.get_context("spawn"),
        # An interruption is this process's to answer.
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
