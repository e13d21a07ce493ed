"""A run of one cell and one study, written without an engine, and how it is refused."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from bench.contracts.errors import UserError
from bench.contracts.norms import NORMS
from bench.ledger.entries import CellEntry, DatasetEntry, DefenseEntry, StudyEntry
from bench.ledger.loading import load_adversarials, load_clean, load_ledger, load_studies, load_study_images
from bench.ledger.manifest import Manifest
from bench.ledger.manifest_file import load_manifest
from bench.ledger.reader import write_clean
from bench.ledger.schema import COLUMNS, DISTANCES, sample_hash

IMAGES = np.random.default_rng(0).random((4, 1, 4, 4), np.float32)
LABELS = np.array([0, 1, 2, 3])
ADVERSARIALS = np.stack([IMAGES[0], IMAGES[1] / 2, np.zeros_like(IMAGES[2]), np.zeros_like(IMAGES[3])])
NAN, INF = np.nan, np.inf


def distances(column):
    """Of a clean error, of image 1 at half its brightness, of one that is not broken, of a violation."""
    clean, moved = torch.from_numpy(IMAGES[1:2]), torch.from_numpy(IMAGES[1:2] / 2)
    (own,) = (norm.distance(moved, clean).item() for norm in NORMS.values() if norm.column == column)
    return [0.0, own, INF, NAN]


def records(cell="c1", **columns):
    """A clean error, a sample found, one not found, and a violation."""
    values = {name: 0 if kind is not object else "" for name, kind in COLUMNS.items()}
    frame = pd.DataFrame([{**values, "cell": cell} for _ in range(4)])
    frame = frame.assign(
        dataset="d",
        sample=range(4),
        sample_hash=[sample_hash(image) for image in IMAGES],
        label=LABELS,
        defense="net",
        attack="pgd",
        norm="L2",
        epsilon=NAN,
        clean_prediction=[9, 1, 2, 3],
        adversarial_prediction=[9, 8, -1, -1],
        status=["clean_error", "found", "not_found", "violation"],
        reason=["", "", "", "out_of_range"],
        broken=[True, True, False, False],
        success_rate=[1.0, 1.0, NAN, NAN],
        success_low=NAN,
        success_high=NAN,
        likely_rate=NAN,
        **{column: distances(column) for column in DISTANCES},
    )
    return frame.assign(**columns)[list(COLUMNS)]


def entry(cell="c1", file="one.parquet", epsilon=None):
    return CellEntry(
        id=cell, defense="net", attack="pgd", norm="L2", epsilon=epsilon, files=(file,), parameters={}, budget=9
    )


STUDY_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("cell", "dataset", "defense", "norm", "status", "reason")),
        ("sample", pa.int64()),
        ("lower_bound", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
STUDY = StudyEntry(id="s1", kind="lower_bound", defense="net", norm="L2", file="study.parquet")


def study(**columns):
    return pd.DataFrame({"sample": range(4)}).assign(
        **{
            "cell": "s1",
            "dataset": "d",
            "defense": "net",
            "norm": "L2",
            "status": "bound",
            "reason": "",
            "lower_bound": 0.1,
            "seconds": 1.0,
            **columns,
        }
    )


def manifest(folder, cells, studies=(), randomized=False):
    return Manifest(
        matrix="m",
        dataset=DatasetEntry(name="d", classes=10, shape=(1, 4, 4)),
        samples=(0, 1, 2, 3),
        images=write_clean(folder, IMAGES, LABELS),
        seed=0,
        thresholds={"L2": 0.5},
        defenses=(DefenseEntry(name="net", randomized=randomized),),
        attacks=(),
        cells=tuple(cells),
        studies=tuple(studies),
        not_applicable=(),
    )


def one(run):
    return run / "ledger" / "one.parquet"


def read_all(run):
    """Whatever a report reads."""
    load_ledger(run)
    load_studies(run, "lower_bound")
    load_clean(run)
    for cell in load_manifest(run).cells:
        load_adversarials(run, cell.id)
    for own in load_manifest(run).studies:
        load_study_images(run, own.id)


def refusal(run):
    """The one line with which a run is not read."""
    with pytest.raises(UserError) as caught:
        read_all(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)
