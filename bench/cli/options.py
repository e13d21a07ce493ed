"""Options that several commands share, and the conversion of their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.contracts.norms.known import norm_names
from bench.execution.runners import runner_names

if TYPE_CHECKING:  # light: only the commands that need torch import it
    from bench.planning.files import Choices

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="ASSAY_DATA", help="Folder with the data sets' files.")
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file with defenses or attacks; repeatable.")
]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:N.")]
Names = Annotated[str | None, typer.Option(help="Only these, separated by commas; may name others than the matrix.")]
ONLY_NORMS = f"Only these of {','.join(norm_names())}."
Norms = Annotated[str | None, typer.Option(help=ONLY_NORMS)]
Samples = Annotated[int | None, typer.Option(help="Use the first N test images.")]
Runner = Annotated[str, typer.Option(help=f"How cells are executed: {', '.join(runner_names())}.")]
Seed = Annotated[int | None, typer.Option(help="Seed of training and attacks.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value of the matrix (thresholds.L2=2) or an attack (boundary.steps=99)."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<matrix>).")]
MatrixName = Annotated[str, typer.Argument(help="An embedded matrix (see: assay list matrices) or a .toml file.")]


def choices_of(
    samples: int | None,
    seed: int | None,
    defenses: str | None,
    attacks: str | None,
    norms: str | None,
    settings: list[str] | None,
) -> Choices:
    """Returns what a command's options change in a matrix."""
    from bench.planning.files import Choices

    names = (split_names(defenses), split_names(attacks), split_names(norms))
    return Choices(samples, seed, *names, settings=settings or ())


def split_names(names: str | None) -> list[str] | None:
    """Returns comma-separated names as a list, or None for None."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def print_table(columns: list[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints aligned columns. A narrow terminal truncates the last column. Output to a file is not truncated."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns, start=1):
        table.add_column(column, no_wrap=True, ratio=1 if number == len(columns) else None)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=1000)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())
