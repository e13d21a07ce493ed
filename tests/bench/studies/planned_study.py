"""A study as a plan holds it."""

from bench.contracts.work import Study

DEFAULTS = {
    "dataset": "digits",
    "defense": "model",
    "norm": None,
    "epsilon": None,
    "seed": 0,
    "samples": 20,
    "batch_size": 64,
    "timeout": None,
    "state": {},
}


def planned_study(kind, **fields):
    """A study of a kind on digits, with ``fields`` in place of the defaults."""
    return Study(kind=kind, **{**DEFAULTS, **fields})
