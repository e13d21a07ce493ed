"""Finds why cells and studies would run: the differences from their entries in the run's manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.contracts.source import Closure, changed_modules, engine_code
from bench.contracts.work import Cell, Study, Work
from bench.ledger.manifest import Manifest
from bench.planning.plan import Planned
from bench.studies.catalog import code_of

_CODE = {"engine", "attack", "defense", "study"}
"""Keys of a state that hold digests of code."""
_NAMES = {
    "weights": "weights",
    "train": "training images",
    "test": "test images",
    "classes": "number of classes",
    "defense parameters": "parameters",
    "arithmetic": "arithmetic of the inference",
    "calibration": "calibration",
}
"""Names of other keys of a state, as users see them."""


def reasons(planned: Planned, before: Manifest | None) -> dict[str, str]:
    """Returns the reason why each unfinished cell and study would run, by id.

    Args:
        planned: the plan.
        before: the existing manifest, or None.
    """
    entries = before.works if before is not None else ()
    modules = before.modules if before is not None else {}
    known = {entry.place[:3]: entry for entry in entries}
    ids = {entry.id for entry in entries}
    found = {}
    for work in planned.pending:
        entry = known.get((work.defense, work.subject, work.norm))
        if work.id in planned.stale:
            found[work.id] = planned.stale[work.id]
        elif work.id in ids:
            found[work.id] = "not run yet, or failed"
        elif entry is None:
            found[work.id] = "new"
        else:
            found[work.id] = _difference(work, planned, entry.identity or {}, modules)
    return found


def _difference(work: Work, planned: Planned, before: Mapping[str, Any], modules: Mapping[str, str]) -> str:
    if not before:
        return "its identity was not recorded"
    old, new = before.get("state", {}), work.state
    changed = [key for key in new if old.get(key) != new[key]]
    code = {name for key in changed if key in _CODE for name in _changed(_code(key, work, planned), modules)}
    found = [f"code changed: {', '.join(sorted(code))}"] if code else []
    for key in changed:
        if key == "libraries":
            found.append(f"libraries: {old.get(key, 'unknown')} -> {new[key]}")
        elif key not in _CODE:
            found.append(_NAMES.get(key, key))
    now = json.loads(json.dumps(work.identity))
    found += [key for key in now if key != "state" and before.get(key) != now[key]]
    return "; ".join(dict.fromkeys(found))


def _code(key: str, work: Work, planned: Planned) -> Closure:
    """Returns the modules whose digest a state holds under a key."""
    if key == "defense":
        return planned.defenses[work.defense].code
    if isinstance(work, Study):
        return code_of(work.kind)
    assert isinstance(work, Cell)
    return engine_code() if key == "engine" else planned.registry.get("attacks", work.function).code


def _changed(code: Closure, modules: Mapping[str, str]) -> list[str]:
    """Returns the names of the changed modules. If there are none, returns one module that is no longer imported."""
    now = code.modules
    differing = changed_modules({name: modules[name] for name in now if name in modules}, now)
    return differing or [f"{name} (gone)" for name in modules.keys() - now.keys()][:1]
