"""The command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.errors import UserError, unknown
from bench.guard import UNGUARDED
from bench.provenance import check_packages

app = typer.Typer(
    help="A robustness benchmark for image classifiers: attacks propose, the engine judges.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# Typer carries its own copy of click in some versions and the real one in others: this is UsageError in both.
_USAGE_ERRORS: Any = typer.BadParameter.__bases__

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="ASSAY_DATA", help="Folder with the data sets' files.")
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file with defenses or attacks; repeatable.")
]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:N.")]
Names = Annotated[str | None, typer.Option(help="Only these, separated by commas; may name others than the matrix.")]
Samples = Annotated[int | None, typer.Option(help="Use the first so many test images.")]
Seed = Annotated[int | None, typer.Option(help="Seed of training and attacks.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value of the matrix (thresholds.L2=2) or an attack (boundary.steps=99)."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<matrix>).")]
MatrixName = Annotated[str, typer.Argument(help="An embedded matrix (see: assay list matrices) or a .toml file.")]


@app.command()
def run(
    matrix: MatrixName = "digits",
    samples: Samples = None,
    defenses: Names = None,
    attacks: Names = None,
    norms: Annotated[str | None, typer.Option(help="Only these of L0,L2,Linf.")] = None,
    plugin: Plugins = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one per core).")] = None,
    runner: Annotated[str, typer.Option(help="auto, serial or process.")] = "auto",
    seed: Seed = None,
    settings: Settings = None,
    out: Out = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on masking evidence, and name it.")] = False,
) -> None:
    """Run a matrix: train what is untrained, run the cells that are missing, write the report."""
    import torch

    from bench.running import choose_device, default_out, execute, prepare, process_count

    chosen_runner, torch_device = _choice("--runner", runner), choose_device(device)
    built, registry = _matrix(matrix, plugin, settings, samples, seed, defenses, attacks, norms)
    folder = out or default_out(built)
    processes = process_count(workers, chosen_runner, torch_device)
    planned = prepare(built, registry, folder, data_dir, torch_device, processes)
    total = len(planned.cells) + len(planned.studies)
    if total == len(planned.done):
        typer.echo(f"Nothing to do: all {total} cells of {built.name} are in {folder / 'ledger'}.")
    outcome = execute(planned, folder, data_dir, torch_device, processes, chosen_runner)
    if outcome.ran:
        typer.echo(f"{outcome.ran} cells run, {outcome.kept} were there already.")
    for title in outcome.failed:
        typer.echo(f"failed: {title}", err=True)
    index = folder / "report" / "index.html"
    if not index.exists() or index.stat().st_mtime_ns < _newest(folder):
        from reports import write_report

        index = write_report(folder, folder / "report", process_count(workers, chosen_runner, torch.device("cpu")))
    typer.echo(f"Report: {index}")
    doubted = strict and _name_doubts(folder)
    refuted = bool(planned.studies) and _name_refuted(folder)
    if outcome.failed or doubted or refuted:
        raise typer.Exit(1)


@app.command()
def plan(
    matrix: MatrixName = "digits",
    samples: Samples = None,
    defenses: Names = None,
    attacks: Names = None,
    norms: Annotated[str | None, typer.Option(help="Only these of L0,L2,Linf.")] = None,
    plugin: Plugins = None,
    data_dir: DataDir = None,
    seed: Seed = None,
    settings: Settings = None,
    out: Out = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also ask whether the defenses still answer as when their cells ran.")
    ] = False,
) -> None:
    """Show a matrix's cells: which are there, which would run and why, which are not applicable and why, what the rest
    may cost."""
    import torch

    from bench.changes import reasons
    from bench.ledger import ledger_dir, load_manifest
    from bench.loading import changed_since_training
    from bench.runners import Work
    from bench.running import cost, default_out, prepare

    built, registry = _matrix(matrix, plugin, settings, samples, seed, defenses, attacks, norms)
    folder = out or default_out(built)
    planned = prepare(built, registry, folder, data_dir, torch.device("cpu"), trainers=0, check=check)
    why = reasons(planned, load_manifest(folder) if (ledger_dir(folder) / "manifest.json").exists() else {})

    def state(work: Work) -> tuple[str, str]:
        if work.defense in planned.untrained:
            return "untrained", ""
        return ("there", "") if work.id in planned.done else ("missing", why[work.id])

    rows = [
        (
            cell.attack,
            cell.norm if cell.epsilon is None else f"{cell.norm} {cell.epsilon:g}",
            cell.defense,
            f"{cell.budget:,}",
            f"{cost(cell, planned.defenses[cell.defense]):,.0f}",
            *state(cell),
        )
        for cell in planned.cells
    ]
    _print_table(["attack", "threat", "defense", "budget per sample", "passes at most", "state", "why"], rows)
    if planned.studies:
        typer.echo("Studies:")
        made = [(study.kind, study.norm or "", study.defense, *state(study)) for study in planned.studies]
        _print_table(["study", "norm", "defense", "state", "why"], made)
    places = [(place.attack, place.norm, place.defense, place.reason) for place in planned.not_applicable]
    if places:
        typer.echo("Not applicable:")
        _print_table(["attack", "norm", "defense", "why"], places)
    for name, loaded in planned.defenses.items():
        changed = changed_since_training(loaded, planned.dataset, built.seed)
        if changed:
            typer.echo(f"{name}: its weights were trained by other code and are kept (changed: {', '.join(changed)})")
    works: list[Work] = [*planned.cells, *planned.studies]
    left = [work for work in works if work.id not in planned.done]
    passes = sum(cost(work, planned.defenses[work.defense]) for work in left)
    typer.echo(
        f"{len(planned.cells)} cells of {built.samples} samples and {len(planned.studies)} studies: "
        f"{len(planned.done)} there, {len(left)} to run, about {passes:,.0f} passes at most (inner optimisation steps "
        f"included); {len(planned.untrained)} defenses to train."
    )


@app.command()
def status(runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")]) -> None:
    """Say how far runs are."""
    from bench.ledger import load_manifest, reader, works

    rows = []
    for folder in runs:
        manifest = load_manifest(folder)
        files, planned = reader(folder, manifest), works(manifest)
        statuses = [set(files.read(work).table["status"].to_pylist()) for work in planned if files.is_there(work)]
        failed, violated = (sum(what in each for each in statuses) for what in ("failed", "violation"))
        rows.append((str(folder), manifest["matrix"], f"{len(statuses)}/{len(planned)}", str(failed), str(violated)))
    _print_table(["run", "matrix", "cells and studies there", "with failures", "with violations"], rows)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    formats: Annotated[
        str | None, typer.Option("--format", help="Only these of csv,md,tex,figures,html, separated by commas.")
    ] = None,
    norms: Annotated[str | None, typer.Option("--norm", help="Only these of L0,L2,Linf.")] = None,
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
    """Write the report of each run, or of all together, from the ledgers alone."""
    from reports import FORMATS, PAPERS, combined, load_run, selected, write_run_report

    papers = [] if published == "none" else _split(published) or tuple(PAPERS)
    loaded = [load_run(folder) for folder in runs]
    targets = [folder / "report" for folder in runs]
    if out is not None:
        loaded, targets = [combined(loaded)], [out]
    for found, target in zip(loaded, targets, strict=True):
        chosen = selected(found, _split(norms), _split(attacks))
        written = write_run_report(
            chosen,
            target,
            formats=_split(formats) or FORMATS,
            baseline=baseline,
            papers=papers,
            processes=len(os.sched_getaffinity(0)),
        )
        typer.echo(f"Report: {written}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Folder of a run.")],
    after: Annotated[Path, typer.Argument(help="Folder of another run on the same images.")],
) -> None:
    """Say which cells moved from one run to another; exit with 1 if one moved by more than chance."""
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
        _print_table(headings, rows)
    for line in found.missing:
        typer.echo(line)
    verdict = "some by more than chance" if found.significant else "none by more than chance"
    typer.echo(f"{len(found.cells)} of {found.compared} cells moved, {verdict}.")
    if found.significant:
        raise typer.Exit(1)


@app.command()
def verify(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or files that assay bundle wrote.")],
    plugin: Plugins = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run the plugins' code that a bundle holds.")] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Judge every stored adversarial again, and say what of files, records and report does not hold."""
    from bench.bundles import opened
    from bench.running import choose_device
    from bench.verification import Laboratory
    from bench.verification import verify as verify_run
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


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    weights: Annotated[bool, typer.Option("--weights", help="Pack the defenses' checkpoints, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write (default: <run>.zip).")] = None,
    data_dir: DataDir = None,
) -> None:
    """Pack a run into one file that anyone else can read and verify."""
    from bench.bundles import write_bundle

    checkpoints = None
    if weights:
        from bench.verification import checkpoints_of

        checkpoints = checkpoints_of(run, data_dir)
    written = write_bundle(run, out or Path(f"{run.resolve()}.zip"), checkpoints)
    typer.echo(f"Bundle: {written}")


@app.command(name="import-adversarials")
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
    """Judge adversarials from outside, as they are, and enter them into a run's ledger; the report is written anew."""
    from bench.importing import import_adversarials as enter
    from bench.importing import range_seen
    from bench.running import choose_device
    from reports import write_report

    folder = out or Path("runs") / dataset
    candidates, results = enter(
        file,
        folder,
        defense,
        dataset,
        data_dir=data_dir,
        device=choose_device(device),
        plugins=plugin or [],
        stretch=stretch,
    )
    for norm, result in results.items():
        reasons = result.records["reason"].map(lambda reason: reason and f" ({reason})")
        counts = (result.records["status"] + reasons).value_counts()
        typer.echo(f"{norm}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    if any(result.records["status"].eq("violation").any() for result in results.values()):
        typer.echo(f"{file}: {range_seen(candidates)}", err=True)
    typer.echo(f"Report: {write_report(folder, folder / 'report')}")


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="defenses, attacks, datasets or matrices.")],
    plugin: Plugins = None,
) -> None:
    """List what can be selected, with cards and, for broken plugins, their errors."""
    from bench.api import list_attacks, list_defenses
    from bench.datasets import DATASETS
    from bench.matrix import matrices, read_matrix

    if what in ("defenses", "attacks"):
        frame = list_defenses(plugin or []) if what == "defenses" else list_attacks(plugin or [])
        columns = [column for column in frame.columns if column != "error" or frame["error"].any()]
        _print_table(columns, frame[columns].astype(str).itertuples(index=False, name=None))
    elif what == "datasets":
        cards = DATASETS.values()
        shapes = [(c.name, str(c.classes), "x".join(map(str, c.shape)), f"{c.train}/{c.test}", c.source) for c in cards]
        _print_table(["name", "classes", "shape", "train/test", "source"], shapes)
    elif what == "matrices":
        embedded = [(name, read_matrix(name)[1]) for name in matrices()]
        rows = [
            (n, d["dataset"], str(d["samples"]), str(len(d["defenses"])), str(len(d["attacks"]))) for n, d in embedded
        ]
        _print_table(["name", "dataset", "samples", "defenses", "attacks"], rows)
    else:
        raise unknown("list", what, ["defenses", "attacks", "datasets", "matrices"])


@app.command()
def train(
    defense: Annotated[str, typer.Argument(help="A defense's name.")],
    dataset: Annotated[str, typer.Option(help="The dataset to train it on.")],
    plugin: Plugins = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    into: Annotated[Path | None, typer.Option(help="Make it anew and put it into this zoo, in half precision.")] = None,
) -> None:
    """Train a defense, unless its checkpoint is there, and say where it is and how accurate.

    An interrupted training goes on from where it was. With --into the checkpoint that comes with Assay does not count:
    the defense is trained here, or taken from the cache of what was. Of a defense around another one, that one is
    trained; with --into the zoo also gets a card with the accuracy of the two.
    """
    from bench.checkpoints import clean_accuracy, ensure_trained, write_to_zoo, write_wrapped_card
    from bench.datasets import load_dataset
    from bench.loading import make_defense, training_code
    from bench.protocols import Trainable
    from bench.registry import Registry
    from bench.running import choose_device

    data = load_dataset(dataset, data_dir)
    torch_device = choose_device(device)
    named = make_defense(defense, data, Registry(plugin or []))
    loaded = named.learner
    learner = loaded.defense
    if not isinstance(learner, Trainable):
        learner.to(torch_device)
        accuracy = clean_accuracy(learner, data.test, torch_device)
        typer.echo(f"{loaded.card.name} on {dataset}: clean accuracy {accuracy:.2%}, nothing to train")
        return
    recipe, code = loaded.plugin.recipe, training_code(loaded)
    checkpoint = ensure_trained(learner, data, seed, torch_device, recipe, code, in_zoo=into is None)
    if into is not None:
        checkpoint = write_to_zoo(learner, data, checkpoint, torch_device, into)
    accuracy, path = checkpoint.card["clean_accuracy"], checkpoint.path
    typer.echo(f"{loaded.card.name} on {dataset}: clean accuracy {accuracy:.2%}, checkpoint {path}")
    if into is not None and named is not loaded:
        wrapped = write_wrapped_card(named.defense, learner, data, checkpoint, torch_device, into)
        typer.echo(f"{defense} on {dataset}: clean accuracy {wrapped.card['clean_accuracy']:.2%}, card {wrapped.path}")


@app.command()
def check(
    plugin: Annotated[str, typer.Argument(help="A defense's or attack's name, or a Python file with some.")],
    plugins: Plugins = None,
    dataset: Annotated[str | None, typer.Option(help="For defenses (default: the card's first).")] = None,
    data_dir: DataDir = None,
) -> None:
    """Run the conformance suite on one plugin, or on all of a file."""
    from bench.conformance import Check, check_attack, check_defense
    from bench.datasets import load_dataset
    from bench.loading import load_trained
    from bench.registry import Registry

    files = [Path(plugin)] if plugin.endswith(".py") else []
    registry = Registry([*files, *(plugins or [])])
    targets = _targets(registry, plugin, files)
    failures = 0
    for group, name in targets:
        found = registry.get(group, name)
        typer.echo(f"{group.removesuffix('s')} {name} ({found.source})")
        if group == "attacks":
            checks = check_attack(found)
        else:
            import torch

            data = load_dataset(dataset or found.defense_card.datasets[0], data_dir)
            try:
                checks = check_defense(load_trained(name, data, registry, 0, torch.device("cpu")), data)
            except UserError as error:
                checks = [Check("can be built", False, str(error))]
        for result in checks:
            mark = "ok  " if result.passed else "FAIL"
            detail = f" ({result.detail})" if result.detail and not result.passed else ""
            typer.echo(f"  {mark} {result.name}{detail}")
            failures += not result.passed
    if failures:
        raise typer.Exit(1)


@app.command()
def new(
    what: Annotated[str, typer.Argument(help="defense")],
    name: Annotated[str, typer.Argument(help="Its name, in lower_snake_case.")],
) -> None:
    """Write a ten-line plugin, ready to run, to NAME.py."""
    from bench.cards import DefenseCard

    if what != "defense":
        raise unknown("kind of plugin", what, ["defense"])
    DefenseCard(name=name, datasets=("digits",))
    path = Path(f"{name.replace(':', '_')}.py")
    if path.exists():
        raise UserError(f"{path} exists; choose another name or remove it")
    path.write_text(TEMPLATE.format(name=name, function=name.replace(":", "_")))
    typer.echo(f"Wrote {path}. Check it:  assay check {path}")
    typer.echo(f"Run it:    assay run digits --samples 20 --plugin {path} --defenses cnn,{name} --out runs/{path.stem}")


TEMPLATE = """import torch
from bench import defense


@defense("{name}", datasets=["digits"], citation="you, today")
def {function}(dataset) -> torch.nn.Module:
    images, labels = dataset.train.images.flatten(1), dataset.train.labels
    net = torch.nn.Linear(images.shape[1], dataset.classes)
    net.weight.data = torch.stack([images[labels == c].mean(0) for c in range(dataset.classes)])
    net.bias.data = -net.weight.data.square().sum(1) / 2
    return torch.nn.Sequential(torch.nn.Flatten(), net)
"""
"""What ``assay new defense`` writes: a classifier by class means."""


def main() -> None:
    """Runs the command; what the user did wrong is one line on standard error and exit status 2."""
    try:
        check_packages()
        exit_code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UserError as error:
        _refuse(str(error))
    except SystemExit as error:
        # Typer returns its own exit codes; UNGUARDED is for the process that started this one.
        if error.code == UNGUARDED:
            raise
        _refuse(f"a plugin ended the program: SystemExit: {error.code}")
    except _USAGE_ERRORS as error:
        _refuse(error.format_message())
    except OSError as error:
        _refuse(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("assay: interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    else:
        sys.exit(exit_code if isinstance(exit_code, int) else 0)


def _refuse(message: str) -> None:
    typer.echo(f"assay: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _matrix(
    matrix: str,
    plugin: list[Path] | None,
    settings: list[str] | None,
    samples: int | None,
    seed: int | None,
    defenses: str | None,
    attacks: str | None,
    norms: str | None,
) -> tuple[Any, Any]:
    """The validated matrix and the registry of a command."""
    from bench.matrix import build_matrix, read_matrix, with_settings
    from bench.registry import Registry

    where, data = read_matrix(matrix)
    registry = Registry(plugin or [])
    built = build_matrix(
        where,
        with_settings(where, data, settings or []),
        registry,
        samples=samples,
        seed=seed,
        defenses=_split(defenses),
        attacks=_split(attacks),
        norms=_split(norms),
    )
    return built, registry


def _targets(registry: Any, plugin: str, files: list[Path]) -> list[tuple[Any, str]]:
    """What ``assay check`` checks: group and name."""
    if files:
        groups = ("defenses", "attacks")
        mine = f"file {files[0]}"
        found = [(group, name) for group in groups for name, source, _ in registry.rows(group) if source == mine]
        return list(dict.fromkeys(found))
    for group in ("defenses", "attacks"):
        if plugin in registry.names(group):
            return [(group, plugin)]
    raise unknown("plugin", plugin, [*registry.names("defenses"), *registry.names("attacks")])


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _choice(option: str, value: str) -> Any:
    from bench.running import RUNNERS

    if value not in RUNNERS:
        raise unknown("runner", value, RUNNERS, option)
    return value


def _name_doubts(run: Path) -> bool:
    """Prints the masking evidence of a run; true if there is some."""
    from reports import evidence, load_run

    lines = [
        f"doubtful: {defense} · {attack or 'all attacks'} · {norm}: {doubt.sign} ({doubt.detail})"
        for defense, norm, attack, doubt in evidence(load_run(run))
    ]
    for line in lines:
        typer.echo(line, err=True)
    return bool(lines)


def _name_refuted(run: Path) -> bool:
    """Prints the certificates of a run that found adversarials refute; true if there are some."""
    from reports import load_run, refuted_certificates

    lines = refuted_certificates(load_run(run))
    for line in lines:
        typer.echo(f"wrong certificate: {line}", err=True)
    return bool(lines)


def _newest(run: Path) -> int:
    """When a run's ledger changed last, in nanoseconds."""
    return max(file.stat().st_mtime_ns for file in (run / "ledger").iterdir())


def _print_table(columns: list[str], rows: Any) -> None:
    """Prints aligned columns; in a narrow terminal the last one is cut, in a file nothing is."""
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
