"""Sweeps: a bounded attack run with several values of one parameter.

They show robustness against draws, restarts or steps (Ju & Wagner 2020, Tables 6 to 8).
"""

from __future__ import annotations

import json
from dataclasses import replace

from bench.contracts.norms import NormName
from reports.evidence.masking import cell_doubts
from reports.evidence.randomized import bound_note
from reports.runs.labels import NORM_LABELS
from reports.runs.run import AttackRow, Run
from reports.statistics.distances import accuracy_at, accuracy_interval
from reports.tables.cells import accuracy_quantity, distances_of, measured_on, records_of, shortfall, signs_of
from reports.tables.table import Cell, Table, laid_out, sentences

SWEEP_LENGTH = 3
"""Minimum number of values of a parameter that make a sweep."""
Sweep = list[tuple[float, AttackRow]]
"""The values of a parameter in ascending order, each with its attack."""


def sweeps(run: Run, norm: NormName) -> list[tuple[str, Sweep]]:
    """Returns the sweeps of a norm, each with the name of its parameter.

    A sweep holds bounded attacks of one kind that differ only in that parameter, in ascending order of its value.
    """
    attacks = {attack.name: attack for attack in run.manifest.attacks}
    found: dict[tuple[str, str, str], Sweep] = {}
    rows = [row for row in run.attack_rows(norm) if row.epsilon is not None]
    for row in rows:
        own = attacks[row.attack].parameters
        for name, value in own.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                rest = json.dumps([{**own, name: None}, row.epsilon, attacks[row.attack].budget], sort_keys=True)
                found.setdefault((row.attack.partition(":")[0], name, rest), []).append((float(value), row))
    longest: dict[tuple[str, str], Sweep] = {}
    for (base, name, _), sweep in found.items():
        values = {value for value, _ in sweep}
        if len(values) >= max(SWEEP_LENGTH, len(longest.get((base, name), [])) + 1):
            longest[base, name] = sorted(sweep, key=lambda step: step[0])
    return [(name, sweep) for (_, name), sweep in longest.items() if swept(run, sweep)]


def swept(run: Run, sweep: Sweep) -> list[str]:
    """Returns the defenses that have cells for at least `SWEEP_LENGTH` of the sweep's attacks."""
    return [name for name in run.defenses if sum(name in row.cells for _, row in sweep) >= SWEEP_LENGTH]


def sweep_table(run: Run, norm: NormName, parameter: str, sweep: Sweep) -> Table:
    """Builds the table of accuracy for each value of the attack's parameter and each defense of the sweep."""
    base = sweep[0][1].attack.partition(":")[0]
    defenses = swept(run, sweep)
    rows = {f"{value:g}": [_cell(run, norm, row, defense) for defense in defenses] for value, row in sweep}
    return Table(
        name=f"sweep_{norm}_{base}_{parameter}",
        title=f"{NORM_LABELS[norm]}: {base} with more {parameter}",
        caption=sentences(
            f"Accuracy under {base} within ε = {sweep[0][1].epsilon:g} in {NORM_LABELS[norm]} for each value of its "
            f"parameter {parameter}, on {measured_on(run)}; in brackets Wilson's 95 % confidence intervals.",
            bound_note(run, [norm]),
        ),
        frame=laid_out(parameter, defenses, rows),
        quantities=(replace(accuracy_quantity(run), interval=True),),
    )


def _cell(run: Run, norm: NormName, row: AttackRow, defense: str) -> Cell:
    records = records_of(run, row, defense)
    if isinstance(records, Cell):
        return records
    assert row.epsilon is not None
    distances = distances_of(run, norm, row)[defense].dropna()
    if distances.empty:
        return Cell(text="unknown")
    values = (accuracy_at(distances, row.epsilon), *accuracy_interval(distances, row.epsilon))
    return Cell(values, notes=shortfall(records, norm), doubts=signs_of(*cell_doubts(run, row, defense)))
