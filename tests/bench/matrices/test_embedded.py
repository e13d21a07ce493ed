"""The embedded matrices on digits need no training, and the matrices of earlier ledgers still plan."""

from pathlib import Path

import pytest
import torch

from bench.datasets.dataset import load_dataset
from bench.planning.files import Choices, build_matrix, matrices, read_matrix
from bench.planning.plan import Site, prepare
from bench.plugins.registry import Registry
from bench.training.loading import make_defense, needs_training

BEFORE = sorted((Path(__file__).parent / "before").glob("*.toml"))
"""Matrices from before the default run became small. Their ledgers are compared over versions of the code."""


@pytest.mark.parametrize("name", [name for name in matrices() if name.startswith("digits")])
def test_nothing_trains_in_a_matrix_of_digits(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    registry, dataset = Registry(), load_dataset("digits")
    matrix = build_matrix(*read_matrix(name), registry)
    made = {label: make_defense(label, dataset, registry) for label in [*matrix.labels, matrix.substitute]}
    assert [label for label, loaded in made.items() if needs_training(loaded, dataset, matrix.seed)] == []


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
def test_a_matrix_from_before_plans_a_cell_for_each_of_its_places(path, request, tmp_path):
    registry = Registry()
    matrix = build_matrix(*read_matrix(str(path)), registry, Choices(samples=10))
    data_dir = None if matrix.dataset == "digits" else request.getfixturevalue("data_dir")
    planned = prepare(matrix, registry, Site(tmp_path, data_dir, torch.device("cpu")), trainers=0)
    places = {(place.attack, place.defense) for place in (*planned.cells, *planned.not_applicable)}
    assert places == {(entry.label, label) for entry in matrix.attacks for label in matrix.attacked_by(entry)}
    assert planned.broken == {}
