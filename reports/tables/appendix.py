"""Tables of what a run consists of, what it cost, and which evidence casts doubt on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bench.contracts.norms import NormName
from reports.evidence.masking import evidence
from reports.runs.labels import NORM_LABELS
from reports.runs.run import AttackRow, Run
from reports.tables.cells import blank_note, measured_on, records_of
from reports.tables.table import Cell, Quantity, Table, laid_out, sentences

_COSTS = {
    "forwards": "forward passes",
    "backwards": "backward passes",
    "inner_steps": "steps of an optimization inside the defense",
}


def attacks_table(run: Run) -> Table:
    """Builds the table of each attack's budget and parameters, one row per setting."""
    settings: dict[tuple[str, str, int], set[str]] = {}
    for cell in run.manifest.cells:
        key = (cell.attack, _parameters(cell.parameters), cell.budget)
        settings.setdefault(key, set()).add(cell.defense)
    rows: list[tuple[str, list[Cell]]] = []
    for attack in run.manifest.attacks:
        own = [(key, defenses) for key, defenses in settings.items() if key[0] == attack.name]
        for (name, parameters, budget), defenses in own:
            against = "" if len(own) == 1 else ", ".join(d for d in run.defenses if d in defenses)
            norms = ", ".join(NORM_LABELS[norm] for norm in attack.norms)
            texts = [norms, attack.kind, attack.access, f"{budget}", parameters, against, attack.citation]
            rows.append((name, [Cell(text=text) for text in texts]))
    columns = ["norms", "kind", "access", "budget", "parameters", "against", "citation"]
    filled = [i for i, _ in enumerate(columns) if any(cells[i].text for _, cells in rows)]
    frame = pd.DataFrame(
        [[cells[i] for i in filled] for _, cells in rows],
        index=pd.Index([name for name, _ in rows], name="attack"),
        columns=[columns[i] for i in filled],
        dtype=object,
    )
    return Table(
        name="attacks",
        title="Attacks and budgets",
        caption="Attacks with their parameters. The budget is in forward plus backward passes per image.",
        frame=frame,
        prose=tuple(column for column in ("parameters", "against", "citation") if column in frame.columns),
    )


def cost_table(run: Run) -> Table:
    """Builds the table of mean passes and inner optimization steps per attacked image, for each attack and defense."""
    rows = {
        f"{row.label}, {NORM_LABELS[norm]}": [_cost_cell(run, row, defense) for defense in run.defenses]
        for norm in run.norms
        for row in run.attack_rows(norm)
    }
    return Table(
        name="cost",
        title="Cost",
        caption=sentences(
            f"Mean {' / '.join(_COSTS.values())}, per attacked image (clean errors are not attacked), "
            f"on {measured_on(run)}.",
            blank_note(rows.values()),
        ),
        frame=laid_out("attack", run.defenses, rows),
        quantities=tuple(map(Quantity, _COSTS)),
    )


def defenses_table(run: Run) -> Table:
    """Builds the table of the defenses: whether each is randomized, its parameters and its citation."""
    columns: dict[str, dict[str, str]] = {"randomized": {}, "parameters": {}, "citation": {}}
    for entry in run.manifest.defenses:
        columns["randomized"][entry.name] = "yes" if entry.randomized else "no"
        columns["parameters"][entry.name] = _parameters(entry.parameters)
        columns["citation"][entry.name] = entry.citation
    filled = [column for column, texts in columns.items() if any(texts.values())]
    rows = {name: [Cell(text=columns[column][name]) for column in filled] for name in run.defenses}
    return Table(
        name="defenses",
        title="Defenses",
        caption="Defenses of this run. Randomized ones are judged over many draws.",
        frame=laid_out("defense", filled, rows),
        prose=tuple(column for column in ("parameters", "citation") if column in filled),
    )


def masking_table(run: Run) -> Table:
    """Builds the table of all doubts of the run, with one row per defense, norm and sign."""
    rows: dict[tuple[str, NormName, str], list[str]] = {}
    for defense, norm, attack, doubt in evidence(run):
        rows.setdefault((defense, norm, doubt.sign), []).append(f"{attack or 'all attacks'}: {doubt.detail}")
    return Table(
        name="masking",
        title="Masking evidence",
        caption=(
            "What makes a careful reader doubt that a defense is as robust as it looks, and where. "
            + ("A dagger marks these numbers in the other tables." if rows else "Nothing was found.")
        ),
        frame=pd.DataFrame(
            [
                [Cell(text=NORM_LABELS[norm]), Cell(text=sign), Cell(text=", ".join(details))]
                for (_, norm, sign), details in rows.items()
            ],
            index=pd.Index([defense for defense, _, _ in rows], name="defense"),
            columns=["norm", "sign", "evidence"],
            dtype=object,
        ),
        prose=("sign", "evidence"),
    )


def _cost_cell(run: Run, row: AttackRow, defense: str) -> Cell:
    records = records_of(run, row, defense)
    if isinstance(records, Cell):
        return records
    costs = run.facts[row.cells[defense]].costs
    if np.isnan(costs["forwards"]):
        return Cell(text="—", notes=("no image was attacked",))
    return Cell(tuple(costs[cost] for cost in _COSTS))


def _parameters(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())
