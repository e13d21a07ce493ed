"""Hook of mkdocs: writes the pages that repeat code or other files. No generated page is stored."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import bench
from bench.api import list_attacks, list_defenses
from bench.cli.app import COMMANDS, app
from bench.contracts.cards import AttackCard, DefenseCard
from bench.contracts.norms import NORMS
from bench.ledger.schema import CELL_SCHEMA, COLUMNS, Status
from bench.planning.files import matrices
from bench.planning.matrix import AttackEntry, DefenseEntry, Matrix
from bench.plugins.registry import FAMILIES, Registry
from bench.studies import refutation
from bench.studies.catalog import STUDIES

FOLDER = Path(__file__).parent
MEANINGS = {
    "cell": "id of the cell: hash of everything that can change its result",
    "dataset": "name of the dataset",
    "sample": "index in the test set",
    "sample_hash": "hash of the clean image, 16 hexadecimal digits",
    "label": "true class",
    "defense": "name of the defense, with its variant",
    "attack": "name of the attack, with its variant",
    "norm": "norm under attack",
    "epsilon": "radius of the ball; NaN for a minimal attack",
    "clean_prediction": "predicted class of the clean image; -1 if there is none",
    "adversarial_prediction": "predicted class of the nearest accepted image; -1 if there is none",
    "status": "outcome, see below",
    "broken": "whether the judge accepted an image as adversarial",
    "reason": "reason of a violation or a failure; `stretched` for an imported image that was moved outward",
    **{norm.column: f"{norm.name} distance. {norm.__doc__}" for norm in NORMS.values()},
    "success_rate": "share of further draws that misclassify the nearest broken image",
    "success_low": "lower end of its 95 % interval",
    "success_high": "upper end of its 95 % interval",
    "likely_rate": "rate at which choosing and deciding draws misclassify the likeliest image",
    "likely_errors": "number of further draws that misclassify the likeliest image",
    "likely_draws": "number of these further draws",
    "draws_choosing": "draws that chose how far candidates are moved",
    "draws_deciding": "draws that decided",
    "draws_estimating": "draws that estimated",
    "non_finite": "number of candidates dropped because their logits were not finite",
    "claimed": "whether the attack's own queries showed an adversarial example",
    "found_after": "passes up to the first adversarial example",
    "useless_gradients": "share of derivatives that were all zero or not finite",
    "remarks": "remarks on the defense",
    "forwards": "forward passes of the attack",
    "backwards": "backward passes of the attack",
    "inner_steps": "optimization steps inside the defense; an upper bound if it stops early",
    "seconds": "seconds per attacked sample, averaged over the chunk",
}
"""Meaning of each column of the cells' schema."""
STATUS_MEANINGS = {
    "clean_error": "The clean image is misclassified. Distances are 0.",
    "found": "The judge accepted an adversarial example.",
    "not_found": "The judge accepted no candidate.",
    "undecided": "No candidate was accepted, and the test of at least one ended undecided. It counts as not broken.",
    "budget": "The attack was refused queries because its budget was used up. The best image so far is judged.",
    "violation": "No candidate was accepted, and the attack's own candidates break the rules. Distances are NaN.",
    "failed": "The attack raised an exception, ran out of time, or lost its worker. Distances are NaN.",
}
"""Meaning of each status of the cells' records."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the files of the site."""
    registry = Registry()
    pages = {
        "reference/cli": command_line(),
        "reference/matrix": matrix(),
        "reference/ledger": ledger(),
        "reference/attacks": attacks(registry),
        "reference/defenses": defenses(registry),
        "howto/contribute": (FOLDER.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, f"{name}.md", content=content))
    _agree("public names on reference/api.md", _on_the_page_of_the_api(), bench.__all__)
    return files


def _on_the_page_of_the_api() -> list[str]:
    page = (FOLDER / "reference" / "api.md").read_text(encoding="utf-8")
    return re.findall(r"^::: bench\.(\w+)$", page, re.MULTILINE)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n\n"


def _cell(value: str) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """Returns a value as inline code, or nothing for an empty one."""
    return f"`{value}`" if str(value) else ""


def markdown(docstring: str | None) -> str:
    """Returns a docstring with double backticks as single ones."""
    return inspect.cleandoc(docstring or "").replace("``", "`")


# The command line.


def command_line() -> str:
    """Returns the page of all commands, from the options that Typer knows."""
    group: Any = typer.main.get_command(app)
    text = "# Command line\n\nEvery command has `--help`. A user's error is one line on standard error, "
    text += "with exit status 2.\n\n"
    for name in COMMANDS:
        text += _command(name, group.commands[name])
    return text


def _command(name: str, command: Any) -> str:
    hints = get_type_hints(COMMANDS[name])
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    usage = " ".join(_usage(each, hints[each.name]) for each in arguments)
    text = f"## assay {name}\n\n```text\nassay {name} [OPTIONS] {usage}\n```\n\n{markdown(command.help)}\n\n"
    if arguments:
        text += table(
            ["argument", "meaning", "default"], ([code(a.name), a.help or "", _default(a)] for a in arguments)
        )
    if options:
        rows = [[code(", ".join(o.opts)), _type(o, hints[o.name]), o.help or "", _default(o)] for o in options]
        text += table(["option", "value", "meaning", "default"], rows)
    return text


def _usage(argument: Any, hint: Any) -> str:
    name = argument.name.upper() + ("..." if get_origin(hint) is list else "")
    return name if argument.required else f"[{name}]"


def _type(option: Any, hint: Any) -> str:
    """Returns the kind of value of an option, from the annotation of the command's parameter."""
    kinds = [each for each in get_args(hint) or (hint,) if each is not type(None)]
    repeatable = get_origin(kinds[0]) is list
    kind = get_args(kinds[0])[0] if repeatable else kinds[0]
    word = {str: "text", int: "integer", bool: "flag", Path: "path"}[kind]
    variable = f", or `${option.envvar}`" if option.envvar else ""
    return f"{word}{', repeatable' if repeatable else ''}{variable}"


def _default(parameter: Any) -> str:
    default = parameter.default
    unset = default is None or default is False or default == () or type(default).__name__ == "Sentinel"
    return "" if unset or callable(default) else code(default)


# The matrix.


def matrix() -> str:
    """Returns the page of a matrix file's keys, from its pydantic models."""
    text = "# Matrix\n\nA matrix is a TOML file. `assay run FILE.toml` executes it. Unknown keys are refused.\n"
    text += "The [tutorial](../tutorials/matrix.md) writes one.\n\n"
    text += "## Embedded matrices\n\n`assay run NAME` executes one of these. Its file begins with this comment.\n\n"
    text += table(["matrix", "what it is"], ([code(name), _opening_comment(name)] for name in matrices()))
    text += "## Top-level keys\n\n" + _keys(Matrix)
    text += "`resubmissions` is at most `estimation_draws`.\n\n"
    text += "## Keys of a defense\n\nA defense is a name, or a table with these keys.\n\n" + _keys(DefenseEntry)
    text += "## Keys of an attack\n\nAn attack is a name, or a table with these keys.\n\n" + _keys(AttackEntry)
    return text


def _opening_comment(matrix: str) -> str:
    lines = (resources.files("bench") / "matrices" / f"{matrix}.toml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def _keys(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    meanings: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            meanings |= attributes(each.__doc__)
    required = schema.get("required", [])
    rows = []
    for name, field in model.model_fields.items():
        known = _kind(schema["properties"][name], schema.get("$defs", {}))
        default = "required" if name in required else "" if field.default is None else code(_toml(field.default))
        meaning = meanings.get(name, "name of the dataset" if name == "dataset" else "")
        rows.append([code(name), known, default, meaning or _described(name)])
    return table(["key", "value", "default", "meaning"], rows)


def _described(name: str) -> str:
    known = {"defenses": "the defenses, see below", "attacks": "the attacks, see below"}
    return known[name]


def attributes(docstring: str | None) -> dict[str, str]:
    """Returns the meanings in the section ``Attributes`` of a docstring, by name."""
    _, _, section = inspect.cleandoc(docstring or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", section, re.MULTILINE)
    return {name: markdown(meaning.replace("\n", " ")) for name, meaning in found}


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return "{}" if value == {} else _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _kind(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """Returns the allowed values of a JSON schema, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return "name or table" if name.endswith("Entry") else _kind(defs[name], defs)
    if "anyOf" in schema:
        return " or ".join(_kind(each, defs) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return ", ".join(code(_toml(each)) for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of: {_kind(schema['items'], defs)}"
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        keys = _kind(schema["propertyNames"], defs) if "propertyNames" in schema else "name"
        return f"table from {keys} to {_kind(schema['additionalProperties'], defs)}"
    signs = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "pattern": "matching"}
    bounds = [f"{word} `{schema[key]}`" for key, word in signs.items() if key in schema]
    words = {"string": "text", "object": "table", "boolean": "true or false"}
    return " ".join([words.get(schema.get("type", ""), schema.get("type", "any")), *bounds])


# The ledger.


def ledger() -> str:
    """Returns the page of the ledger's columns, from its pyarrow schemas."""
    _agree("columns", MEANINGS, CELL_SCHEMA.names)
    _agree("statuses", STATUS_MEANINGS, Status)
    text = "# Ledger schema\n\nA run's `ledger/` has one Parquet file per chunk of a cell, with one row per sample.\n"
    text += (
        "`bench.load_ledger(run)` returns all of them as one pandas frame. pandas reads each file without Assay.\n\n"
    )
    rows = ([code(f.name), code(f.type), code(_numpy(COLUMNS[f.name])), MEANINGS[f.name]] for f in CELL_SCHEMA)
    text += "## Columns of a cell\n\n" + table(["column", "Arrow type", "type in the frame", "meaning"], rows)
    text += _documented("bench.ledger.schema", "COLUMNS") + "\n\n"
    text += "## Statuses\n\n" + table(["status", "meaning"], ([code(s), STATUS_MEANINGS[s]] for s in Status))
    text += "## Columns of the studies\n\nA study has one file per defense, and per norm where the norm matters.\n\n"
    modules = {**{kind: STUDIES.module(kind) for kind in STUDIES.names()}, refutation.KIND: refutation.__name__}
    for kind, name in modules.items():
        schema: pa.Schema = importlib.import_module(name).SCHEMA
        text += f"### {kind}\n\n{_documented(name, 'SCHEMA')}\n\n"
        text += table(["column", "Arrow type"], ([code(field.name), code(field.type)] for field in schema))
    return text


def _numpy(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))


def _agree(what: str, described: Iterable[str], declared: Iterable[str]) -> None:
    if different := {*described} ^ {*declared}:
        raise SystemExit(f"docs/generate.py: {what} without a meaning, or with one too many: {sorted(different)}")


def _documented(module: str, name: str) -> str:
    """Returns the text below an assignment in a module's source."""
    body = ast.parse(Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")).body
    for node, following in pairwise(body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(following, ast.Expr):
            return markdown(ast.literal_eval(following.value))
    raise SystemExit(f"docs/generate.py: {module}.{name} has no docstring")


# The plugins.


def attacks(registry: Registry) -> str:
    """Returns the page of the built-in attacks, from their cards."""
    text = "# Attacks\n\nFrom the attacks' cards. `assay list attacks` prints the same for the plugins that are "
    text += "installed.\n\n"
    listed = list_attacks().to_dict("records")
    built_in = [row for row in listed if row["source"] == "built-in"]
    rows = ([_link(r), r["norms"], r["access"], r["kind"], _yes(r["randomized"]), f"{r['budget']:,}"] for r in built_in)
    header = ["attack", "norms", "access", "kind", "random", "budget"]
    text += table(header, rows)
    text += "The budget is the maximum number of forward plus backward passes per sample. A matrix may set another.\n\n"
    for row in built_in:
        plugin = registry.get("attacks", str(row["name"]))
        text += f"## {row['name']}\n\n{_first_paragraph(plugin.function)}\n\nCitation: {row['citation']}\n\n"
        text += _parameters(plugin.attack_card)
    return text


def defenses(registry: Registry) -> str:
    """Returns the page of the built-in defenses, from their cards."""
    text = "# Defenses\n\nFrom the defenses' cards. `assay list defenses` prints the same for the plugins that are "
    text += "installed.\n\n"
    listed = [row for row in list_defenses().to_dict("records") if row["source"] == "built-in"]
    rows = ([_link(r), r["datasets"], r["access"], _yes(r["randomized"]), r["trained"]] for r in listed)
    text += table(["defense", "datasets", "access", "randomized", "weights included, clean accuracy"], rows)
    text += "## Families of defenses\n\nThe name of a member follows the colon.\n\n"
    made = [FAMILIES.get(name) for name in FAMILIES.names()]
    rows = ([code(f"{each.card.name}:{each.card.member}"), _first_paragraph(each.function)] for each in made)
    text += table(["family", "members"], rows)
    for row in listed:
        plugin = registry.get("defenses", str(row["name"]))
        text += f"## {row['name']}\n\n{_first_paragraph(plugin.function)}\n\nCitation: {row['citation']}\n\n"
        text += _parameters(plugin.defense_card)
    return text


def _first_paragraph(of: object) -> str:
    return markdown(of.__doc__).partition("\n\n")[0]


def _parameters(card: AttackCard | DefenseCard) -> str:
    if not card.parameters:
        return ""
    only = card.only if isinstance(card, AttackCard) else {}
    rows = []
    for name, default in card.parameters.items():
        places = [place for place, names in only.items() if name in names]
        rows.append(
            [code(name), code(_toml(default)) if default is not None else "", ", ".join(places) or "everywhere"]
        )
    return table(["parameter", "default", "has an effect"], rows)


def _link(row: dict[Any, Any]) -> str:
    name = str(row["name"])
    return f"[`{name}`](#{re.sub(r'[^a-z0-9_ -]', '', name.lower())})"


def _yes(value: object) -> str:
    return "yes" if value else ""
