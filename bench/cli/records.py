"""Commands on the records of a run: verify, bundle, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import DataDir, Device, Plugins
from bench.ledger.schema import Status


def verify(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or files that assay bundle wrote.")],
    plugin: Plugins = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run the plugins' code that a bundle holds.")] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Judge every stored adversarial example again, and print the faults in files, records and report."""
    from bench.execution.execute import choose_device
    from bench.ledger.bundles import opened
    from bench.verification.laboratory import Laboratory
    from bench.verification.verify import verify as verify_run
    from reports import not_following

    torch_device, faults = choose_device(device), 0
    for path in runs:
        with opened(path, trust) as (folder, sources):
            laboratory = Laboratory(data_dir, torch_device, [*(plugin or []), *sources])
            found = verify_run(folder, laboratory, not_following)
        for line in found.lines():
            typer.echo(line.replace(str(folder), str(path)))
        faults += len(found.faults)
    if faults:
        raise typer.Exit(1)


def bundle(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    weights: Annotated[bool, typer.Option("--weights", help="Pack the defenses' checkpoints, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write (default: <run>.zip).")] = None,
    data_dir: DataDir = None,
) -> None:
    """Pack a run into one file that anyone else can read and verify."""
    from bench.ledger.bundles import write_bundle

    checkpoints = None
    if weights:
        from bench.verification.laboratory import checkpoints_of

        checkpoints = checkpoints_of(run, data_dir)
    written = write_bundle(run, out or Path(f"{run.resolve()}.zip"), checkpoints)
    typer.echo(f"Bundle: {written}")


def import_adversarials(
    file: Annotated[Path, typer.Argument(help="An npz file: adversarials (N, C, H, W) in [0, 1], and samples (N,).")],
    defense: Annotated[str, typer.Option(help="The defense that they are meant for.")],
    dataset: Annotated[str, typer.Option(help="The dataset whose test images they are made from.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<dataset>).")] = None,
    stretch: Annotated[
        bool, typer.Option("--stretch", help="Also try them moved outward, as an attack's are; the reason says so.")
    ] = False,
    plugin: Plugins = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Judge candidates from a file without modifying them, enter them into a run's ledger, and rewrite its report."""
    from bench.execution.candidate_files import range_seen
    from bench.execution.execute import choose_device
    from bench.execution.importing import host_of
    from bench.execution.importing import import_adversarials as enter
    from reports import write_report

    folder = out or Path("runs") / dataset
    host = host_of(folder, defense, dataset, data_dir=data_dir, device=choose_device(device), plugins=plugin or [])
    candidates, results = enter(file, host, stretch=stretch)
    for norm, result in results.items():
        reasons = result.records["reason"].map(lambda reason: reason and f" ({reason})")
        counts = (result.records["status"] + reasons).value_counts()
        typer.echo(f"{norm}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    if any(result.records["status"].eq(Status.VIOLATION).any() for result in results.values()):
        typer.echo(f"{file}: {range_seen(candidates)}", err=True)
    typer.echo(f"Report: {write_report(folder, folder / 'report')}")
