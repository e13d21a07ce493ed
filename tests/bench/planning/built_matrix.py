"""A small matrix, built as the command line builds it."""

from bench.planning.files import Choices, build_matrix
from bench.plugins.registry import Registry

VALID = {
    "name": "test",
    "dataset": "digits",
    "samples": 10,
    "thresholds": {"L2": 1.5, "Linf": 0.3, "L0": 12},
    "defenses": ["cnn"],
    "attacks": ["boundary", {"name": "pgd", "variant": "bounded", "bounded": True}],
}


def build(settings=(), changes=(), **choices):
    data = {**VALID, **dict(changes)}
    return build_matrix("matrix test", data, Registry(), Choices(**choices, settings=settings))
