"""Commands on runs: run, plan, status, report and compare."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import (
    ONLY_NORMS,
    DataDir,
    Device,
    MatrixName,
    Names,
    Norms,
    Out,
    Plugins,
    Runner,
    Samples,
    Seed,
    Settings,
    choices_of,
    print_table,
    split_names,
)
from bench.ledger.schema import Status

if TYPE_CHECKING:  # light: only the commands that need torch import it
    from bench.contracts.work import Work
    from bench.planning.plan import Planned


def run(
    matrix: MatrixName = "digits",
    samples: Samples = None,
    defenses: Names = None,
    attacks: Names = None,
    norms: Norms = None,
    plugin: Plugins = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one per core).")] = None,
    runner: Runner = "auto",
    seed: Seed = None,
    settings: Settings = None,
    out: Out = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on masking evidence, and name it.")] = False,
) -> None:
    """Run a matrix: train untrained defenses, run the missing cells, write the report."""
    import torch

    from bench.execution.execute import choose_device, default_out, execute, process_count
    from bench.execution.runners import check_runner
    from bench.planning.files import chosen_matrix, matrices
    from bench.planning.plan import Site, prepare

    check_runner(runner, "--runner")
    torch_device = choose_device(device)
    choices = choices_of(samples, seed, defenses, attacks, norms, settings)
    built, registry = chosen_matrix(matrix, choices, plugin or ())
    folder = out or default_out(built)
    processes = process_count(workers, runner, torch_device)
    planned = prepare(built, registry, Site(folder, data_dir, torch_device), processes)
    if not planned.pending:
        typer.echo(f"Nothing to do: all {len(planned.works)} cells of {built.name} are in {folder / 'ledger'}.")
    outcome = execute(planned, processes, runner)
    if outcome.ran:
        typer.echo(f"{outcome.ran} cells run, {outcome.kept} were there already.")
    for title in outcome.failed:
        typer.echo(f"failed: {title}", err=True)
    index = folder / "report" / "index.html"
    if not index.exists() or index.stat().st_mtime_ns < _newest(folder):
        from reports import write_report

        index = write_report(folder, folder / "report", process_count(workers, runner, torch.device("cpu")))
    typer.echo(f"Report: {index}")
    further = [name for name in matrices() if name.startswith(f"{matrix}-")]
    if further:
        typer.echo(f"More matrices: {', '.join(further)}")
    doubted = strict and _name_doubts(folder)
    refuted = bool(planned.studies) and _name_refuted(folder)
    if outcome.failed or doubted or refuted:
        raise typer.Exit(1)


def plan(
    matrix: MatrixName = "digits",
    samples: Samples = None,
    defenses: Names = None,
    attacks: Names = None,
    norms: Norms = None,
    plugin: Plugins = None,
    data_dir: DataDir = None,
    seed: Seed = None,
    settings: Settings = None,
    out: Out = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also ask whether the defenses still answer as when their cells ran.")
    ] = False,
) -> None:
    """Show the cells of a matrix: which have results, which would run and why, and which are not applicable and why.

    Also show the maximum cost of the remaining cells.
    """
    import torch

    from bench.execution.execute import default_out
    from bench.ledger.manifest_file import manifest_there
    from bench.planning.changes import reasons
    from bench.planning.files import chosen_matrix
    from bench.planning.plan import Site, prepare

    choices = choices_of(samples, seed, defenses, attacks, norms, settings)
    built, registry = chosen_matrix(matrix, choices, plugin or ())
    folder = out or default_out(built)
    site = Site(folder, data_dir, torch.device("cpu"))
    planned = prepare(built, registry, site, trainers=0, check=check)
    _show(planned, reasons(planned, manifest_there(folder)))


def _show(planned: Planned, why: Mapping[str, str]) -> None:
    """Prints a plan. ``why`` says by id why cells and studies would run."""
    from bench.planning.plan import cost
    from bench.training.loading import changed_since_training

    def state(work: Work) -> tuple[str, str]:
        if work.defense in planned.untrained:
            return "untrained", ""
        return ("missing", why[work.id]) if work.id in why else ("there", "")

    def most(works: Iterable[Work]) -> float:
        shards = (shard for work in works for shard in planned.shards[work.id] if shard.id not in planned.done)
        return sum(cost(shard, planned.defenses[shard.work.defense]) for shard in shards)

    rows = [
        (
            cell.attack,
            cell.norm if cell.epsilon is None else f"{cell.norm} {cell.epsilon:g}",
            cell.defense,
            f"{cell.budget:,}" + (f" ({cell.inner_budget:,} inner steps)" if cell.inner_budget else ""),
            f"{most([cell]):,.0f}",
            *state(cell),
        )
        for cell in planned.cells
    ]
    print_table(["attack", "threat", "defense", "budget per sample", "passes at most", "state", "why"], rows)
    if planned.studies:
        typer.echo("Studies:")
        made = [(study.kind, study.norm or "", study.defense, *state(study)) for study in planned.studies]
        print_table(["study", "norm", "defense", "state", "why"], made)
    places = [(place.attack, place.norm, place.defense, place.reason) for place in planned.not_applicable]
    if places:
        typer.echo("Not applicable:")
        print_table(["attack", "norm", "defense", "why"], places)
    for name, loaded in planned.defenses.items():
        changed = changed_since_training(loaded, planned.dataset, planned.matrix.seed)
        if changed:
            typer.echo(f"{name}: its weights were trained by other code and are kept (changed: {', '.join(changed)})")
    left = len(planned.pending)
    typer.echo(
        f"{len(planned.cells)} cells of {planned.matrix.samples} samples and {len(planned.studies)} studies: "
        f"{len(planned.works) - left} there, {left} to run, about {most(planned.works):,.0f} passes at most (inner "
        f"optimization steps included); {len(planned.untrained)} defenses to train."
    )


def status(runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")]) -> None:
    """Show the progress of runs."""
    from bench.ledger.manifest_file import load_manifest
    from bench.ledger.reader import reader

    rows = []
    for folder in runs:
        manifest = load_manifest(folder)
        files, planned = reader(folder, manifest), manifest.works
        parts = [part for work in planned for part in files.parts(work)]
        there = [part for part in parts if (files.folder / part.file).exists()]
        statuses = [(part.entry.id, set(files.read(part).table["status"].to_pylist())) for part in there]
        failed, violated = (
            str(len({id for id, found in statuses if what in found})) for what in (Status.FAILED, Status.VIOLATION)
        )
        done = f"{sum(files.is_there(work) for work in planned)}/{len(planned)}"
        rows.append((str(folder), manifest.matrix, done, f"{len(there)}/{len(parts)}", failed, violated))
    print_table(["run", "matrix", "cells and studies there", "files", "with failures", "with violations"], rows)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    formats: Annotated[
        str | None, typer.Option("--format", help="Only these of csv,md,tex,figures,html, separated by commas.")
    ] = None,
    norms: Annotated[str | None, typer.Option("--norm", help=ONLY_NORMS)] = None,
    attacks: Annotated[str | None, typer.Option(help="Only these attacks, by name or with variant.")] = None,
    baseline: Annotated[str | None, typer.Option(help="A defense that the others are laid beside.")] = None,
    published: Annotated[
        str | None,
        typer.Option(help="Papers whose numbers stand beside the run's, separated by commas, or none."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of one report on all the runs (default: one in each run's folder).")
    ] = None,
) -> None:
    """Write the report of each run, or one report on all runs, from the ledgers alone."""
    from reports import FORMATS, PAPERS, combined, load_run, selected, write_run_report

    papers = [] if published == "none" else split_names(published) or tuple(PAPERS)
    loaded = [load_run(folder) for folder in runs]
    targets = [folder / "report" for folder in runs]
    if out is not None:
        loaded, targets = [combined(loaded)], [out]
    for found, target in zip(loaded, targets, strict=True):
        chosen = selected(found, split_names(norms), split_names(attacks))
        written = write_run_report(
            chosen,
            target,
            formats=split_names(formats) or FORMATS,
            baseline=baseline,
            papers=papers,
            processes=len(os.sched_getaffinity(0)),
        )
        typer.echo(f"Report: {written}")


def compare(
    before: Annotated[Path, typer.Argument(help="Folder of a run.")],
    after: Annotated[Path, typer.Argument(help="Folder of another run on the same images.")],
) -> None:
    """Show which cells moved between two runs. Exit with 1 if a cell moved by more than chance."""
    from reports import compare as compare_runs
    from reports import load_run

    found = compare_runs(load_run(before), load_run(after))
    if len(found.cells):
        rows = [
            (
                cell["defense"],
                cell["attack"] or "all attacks",
                cell["norm"],
                f"{cell['median_before']:.3g} -> {cell['median_after']:.3g}",
                f"{cell['accuracy_before']:.1%} -> {cell['accuracy_after']:.1%}",
                f"{cell['nearer']}/{cell['farther']} of {cell['samples']}",
                f"{cell['adjusted']:.2g}",
            )
            for cell in found.cells.to_dict("records")
        ]
        headings = ["defense", "attack", "norm", "median", "accuracy", "nearer/farther", "adjusted p"]
        print_table(headings, rows)
    for line in found.missing:
        typer.echo(line)
    verdict = "some by more than chance" if found.significant else "none by more than chance"
    typer.echo(f"{len(found.cells)} of {found.compared} cells moved, {verdict}.")
    if found.significant:
        raise typer.Exit(1)


def _name_doubts(run: Path) -> bool:
    """Prints the masking evidence of a run. Returns True if there is any."""
    from reports import evidence, load_run

    lines = [
        f"doubtful: {defense} · {attack or 'all attacks'} · {norm}: {doubt.sign} ({doubt.detail})"
        for defense, norm, attack, doubt in evidence(load_run(run))
    ]
    for line in lines:
        typer.echo(line, err=True)
    return bool(lines)


def _name_refuted(run: Path) -> bool:
    """Prints the certificates of a run that adversarial examples refute. Returns True if there are any."""
    from reports import load_run, refuted_certificates

    lines = refuted_certificates(load_run(run))
    for line in lines:
        typer.echo(f"wrong certificate: {line}", err=True)
    return bool(lines)


def _newest(run: Path) -> int:
    """Returns the time of the ledger's last change, in nanoseconds since the epoch."""
    return max(file.stat().st_mtime_ns for file in (run / "ledger").iterdir())
