"""A manifest made up for tests: a defense, two attacks in two norms, two studies; no files."""

from bench.ledger.entries import AttackEntry, CellEntry, DatasetEntry, DefenseEntry, GapEntry, StudyEntry
from bench.ledger.manifest import Manifest


def cell(attack="pgd", norm="L2", **fields):
    known = {"id": f"{attack}-{norm}", "defense": "net", "epsilon": None, "files": (f"{attack}-{norm}.parquet",)}
    return CellEntry(**{**known, "attack": attack, "norm": norm, "parameters": {}, "budget": 9, **fields})


def study(norm="L2", kind="lower_bound", **fields):
    known = {"id": f"{kind}-{norm}", "defense": "net", "file": f"{kind}-{norm}.parquet"}
    return StudyEntry(**{**known, "kind": kind, "norm": norm, **fields})


def manifest(**fields):
    known = {
        "matrix": "m",
        "dataset": DatasetEntry(name="d", classes=10, shape=(1, 4, 4)),
        "samples": (0, 1),
        "images": "images.npz",
        "seed": 0,
        "thresholds": {"L2": 0.5, "Linf": 0.1},
        "resubmissions": 10,
        "defenses": (DefenseEntry(name="net", randomized=False),),
        "attacks": (
            AttackEntry(name="pgd", norms=("L2", "Linf"), kind="minimal", access="gradient", budget=9),
            AttackEntry(name="fgm", norms=("L2",), kind="minimal", access="gradient", budget=9),
        ),
        "cells": (cell(), cell(norm="Linf"), cell("fgm")),
        "studies": (study(), study(norm=None, kind="distal")),
        "not_applicable": (GapEntry(defense="net", attack="fgm", norm="Linf", reason="no"),),
    }
    return Manifest(**{**known, **fields})
