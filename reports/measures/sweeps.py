"""Sweeps: a bounded attack run with several values of one parameter.

They show robustness against draws, restarts or steps (Ju & Wagner 2020, Tables 6 to 8).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bench.ledger.entries import AttackEntry
from reports.measures.facts import Sweep
from reports.runs.rows import AttackRow

SWEEP_LENGTH = 3
"""Minimum number of values of a parameter that make a sweep."""
Steps = list[tuple[float, AttackRow]]
"""The values of a parameter, each with its attack."""


def sweeps(rows: Sequence[AttackRow], attacks: Mapping[str, AttackEntry], defenses: Sequence[str]) -> list[Sweep]:
    """Returns the sweeps among the attacks of a norm.

    Args:
        rows: the attacks.
        attacks: the manifest's entry of each attack, by name.
        defenses: the run's defenses. A sweep has those that at least `SWEEP_LENGTH` of its attacks were planned for.
    """
    found: dict[tuple[str, str, str], Steps] = {}
    for row in rows:
        if row.epsilon is None:
            continue
        own = attacks[row.attack].parameters
        for name, value in own.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                rest = json.dumps([{**own, name: None}, row.epsilon, attacks[row.attack].budget], sort_keys=True)
                found.setdefault((row.attack.partition(":")[0], name, rest), []).append((float(value), row))
    longest: dict[tuple[str, str], Steps] = {}
    for (base, name, _), steps in found.items():
        values = {value for value, _ in steps}
        if len(values) >= max(SWEEP_LENGTH, len(longest.get((base, name), [])) + 1):
            longest[base, name] = sorted(steps, key=lambda step: step[0])
    made = (_sweep(base, name, steps, defenses) for (base, name), steps in longest.items())
    return [sweep for sweep in made if sweep.defenses]


def _sweep(attack: str, parameter: str, steps: Steps, defenses: Sequence[str]) -> Sweep:
    swept = [name for name in defenses if sum(name in row.cells for _, row in steps) >= SWEEP_LENGTH]
    epsilon = steps[0][1].epsilon
    assert epsilon is not None
    return Sweep(attack, parameter, epsilon, tuple((value, row.label) for value, row in steps), tuple(swept))
