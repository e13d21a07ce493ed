"""Commands on defenses and attacks: list, train, check, and create a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import DataDir, Device, Plugins, print_table
from bench.contracts.errors import UserError, unknown


def list_names(
    what: Annotated[str, typer.Argument(help="defenses, attacks, datasets or matrices.")],
    plugin: Plugins = None,
) -> None:
    """List defenses, attacks, datasets or matrices with their cards. Broken plugins are listed with their errors."""
    from bench.api import list_attacks, list_defenses
    from bench.datasets.catalog import DATASETS
    from bench.planning.files import matrices, read_matrix

    if what in ("defenses", "attacks"):
        frame = list_defenses(plugin or []) if what == "defenses" else list_attacks(plugin or [])
        columns = [column for column in frame.columns if column != "error" or frame["error"].any()]
        print_table(columns, frame[columns].astype(str).itertuples(index=False, name=None))
    elif what == "datasets":
        shapes = [
            (name, "", "", "", card)
            if isinstance(card, str)
            else (name, card.classes, "x".join(map(str, card.shape)), f"{card.train}/{card.test}", card.source)
            for name, card in DATASETS.rows()
        ]
        print_table(["name", "classes", "shape", "train/test", "source"], shapes)
    elif what == "matrices":
        embedded = [(name, read_matrix(name)[1]) for name in matrices()]
        rows = [
            (n, d["dataset"], str(d["samples"]), str(len(d["defenses"])), str(len(d["attacks"]))) for n, d in embedded
        ]
        print_table(["name", "dataset", "samples", "defenses", "attacks"], rows)
    else:
        raise unknown("list", what, ["defenses", "attacks", "datasets", "matrices"])


def train(
    defense: Annotated[str, typer.Argument(help="A defense's name.")],
    dataset: Annotated[str, typer.Option(help="The dataset to train it on.")],
    plugin: Plugins = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    into: Annotated[Path | None, typer.Option(help="Make it anew and put it into this zoo, in half precision.")] = None,
) -> None:
    """Train a defense, unless it has a checkpoint, and print the checkpoint's path and clean accuracy.

    An interrupted training continues where it stopped. With --into, the checkpoint included in Assay is ignored: the
    defense is trained here, or taken from the cache. If a defense wraps another one, the wrapped defense is trained.
    With --into, the zoo then also gets a card with the clean accuracy of the wrapping defense.
    """
    from bench.contracts.protocols import Trainable
    from bench.datasets.dataset import load_dataset
    from bench.execution.execute import choose_device
    from bench.plugins.registry import Registry
    from bench.training.checkpoints import clean_accuracy, ensure_trained, write_to_zoo, write_wrapped_card
    from bench.training.loading import make_defense, training_code

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


def calibrate(
    defense: Annotated[str, typer.Argument(help="A defense's name.")],
    dataset: Annotated[str, typer.Option(help="The dataset that it classifies.")],
    plugin: Plugins = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    into: Annotated[Path | None, typer.Option(help="Put the limits into the card in this zoo.")] = None,
) -> None:
    """Measure the limits at which a defense gives up early, such as those of hopeless classes, and store them.

    Defenses that are trained here have theirs from the training. Weights from elsewhere have none before.
    """
    from bench.contracts.protocols import HasCalibration
    from bench.datasets.dataset import load_dataset
    from bench.execution.execute import choose_device
    from bench.plugins.registry import Registry
    from bench.training.checkpoints import write_calibration
    from bench.training.loading import load_trained

    data = load_dataset(dataset, data_dir)
    loaded = load_trained(defense, data, Registry(plugin or []), seed, choose_device(device)).learner
    if not isinstance(loaded.defense, HasCalibration):
        raise UserError(f"defense {loaded.card.name!r} has no limits to measure")
    path, limits = write_calibration(loaded.defense, data, into)
    typer.echo(f"{loaded.card.name} on {dataset}: {path}")
    for kind, of in limits.items():
        typer.echo(f"  {kind}: {of}")


def check(
    plugin: Annotated[str, typer.Argument(help="A defense's or attack's name, or a Python file with some.")],
    plugins: Plugins = None,
    dataset: Annotated[str | None, typer.Option(help="For defenses (default: the card's first).")] = None,
    data_dir: DataDir = None,
) -> None:
    """Run the conformance suite on one plugin, or on all plugins of a file."""
    from bench.conformance.checks import Check, check_attack, check_defense
    from bench.datasets.dataset import load_dataset
    from bench.plugins.registry import Registry
    from bench.training.loading import load_trained

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


def new(
    what: Annotated[str, typer.Argument(help="defense")],
    name: Annotated[str, typer.Argument(help="Its name, in lower_snake_case.")],
) -> None:
    """Write a ten-line plugin that is ready to run to NAME.py."""
    from bench.contracts.cards import DefenseCard

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
"""The file that ``assay new defense`` writes: a classifier by class means."""


def _targets(registry: Any, plugin: str, files: list[Path]) -> list[tuple[Any, str]]:
    """Returns the group and name of each plugin that ``assay check`` checks."""
    if files:
        groups = ("defenses", "attacks")
        mine = f"file {files[0]}"
        found = [(group, name) for group in groups for name, source, _ in registry.rows(group) if source == mine]
        return list(dict.fromkeys(found))
    for group in ("defenses", "attacks"):
        if plugin in registry.names(group):
            return [(group, plugin)]
    raise unknown("plugin", plugin, [*registry.names("defenses"), *registry.names("attacks")])
