"""Galleries of the smallest adversarials: pictures with what a classifier makes of them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from bench.norms import Norm
from reports.runs import Run
from reports.statistics import smallest_adversarials
from reports.tables import NORM_LABELS

SHOWN = 6
"""Images that a gallery shows."""


Record = dict[Any, Any]
"""One row of a ledger's frame."""


@dataclass(frozen=True)
class Picture:
    """An image of a gallery.

    Attributes:
        source: a ``data:`` URI with the image as PNG, one pixel per pixel; empty where there is none to show.
        alternative: what it shows, in words.
        lines: what stands under it.
    """

    source: str
    alternative: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """A row per sample: its clean image, then its smallest adversarial for each defense."""

    defenses: list[str]
    rows: list[tuple[Picture, list[Picture]]]


def gallery(run: Run, norm: Norm) -> Gallery:
    """The smallest known adversarials of a few samples: the run's first of each of its first `SHOWN` labels.

    The choice depends on no result.
    """
    smallest = smallest_adversarials(run.records, norm)
    first = smallest.drop_duplicates("sample").set_index("sample")["label"].reindex(run.samples).dropna()
    chosen = first.drop_duplicates().head(SHOWN).astype(int)
    shown = smallest[smallest["sample"].isin(chosen.index)].to_dict("records")
    found = {(record["sample"], record["defense"]): record for record in shown}
    images = _adversarial_images(run, [record for record in shown if record["broken"]])
    rows = []
    for sample, label in zip(chosen.index, chosen, strict=True):
        clean = Picture(
            png_uri(run.clean[run.samples.index(sample)]), f"image {sample}, label {label}", (f"label {label}",)
        )
        pictures = [
            _picture(found.get((sample, defense)), images, norm, f"image {sample}, {defense}")
            for defense in run.defenses
        ]
        rows.append((clean, pictures))
    return Gallery(run.defenses, rows)


def distal_gallery(run: Run) -> Gallery | None:
    """The first distal adversarial of each class for each defense; None where they were not studied."""
    distals = run.study_records("distal")
    if distals.empty:
        return None
    made = distals[distals["status"] != "failed"].astype({"target": int, "sample": int})
    first = made.drop_duplicates(["defense", "target"])
    defenses = [defense for defense in run.defenses if (first["defense"] == defense).any()]
    images = {study: run.study_images(study) for study in first["cell"].unique()}
    rows = []
    for target in sorted(first["target"].unique()):
        pictures = []
        for defense in defenses:
            record = first[(first["defense"] == defense) & (first["target"] == target)].iloc[0]
            lines = (f"{record['confidence']:.0%} sure", f"{record['steps']:g} steps")
            alternative = f"noise that {defense} takes for {target}: {', '.join(lines)}"
            pictures.append(Picture(png_uri(images[record["cell"]][record["sample"]]), alternative, lines))
        rows.append((Picture("", f"class {target}", (f"class {target}",)), pictures))
    return Gallery(defenses, rows)


def png_uri(image: NDArray[np.float32]) -> str:
    """An image (C, H, W) in [0, 1], with one or three channels, as a ``data:`` URI."""
    channels = np.broadcast_to(image, (3, *image.shape[1:])) if image.shape[0] == 1 else image
    pixels = np.ascontiguousarray(np.rint(channels.transpose(1, 2, 0) * 255).astype(np.uint8))
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _adversarial_images(run: Run, found: list[Record]) -> dict[tuple[str, int], str]:
    """The images of records, by cell and sample; each cell's file is read once."""
    images: dict[tuple[str, int], str] = {}
    for cell in dict.fromkeys(record["cell"] for record in found):
        adversarials = run.adversarials(cell)
        samples = [record["sample"] for record in found if record["cell"] == cell]
        images |= {(cell, sample): png_uri(adversarials[run.samples.index(sample)]) for sample in samples}
    return images


def _picture(record: Record | None, images: dict[tuple[str, int], str], norm: Norm, name: str) -> Picture:
    if record is None:
        return Picture("", f"{name}: no results", ("no results",))
    if np.isnan(record["distance"]):
        return Picture("", f"{name}: unknown, attacks failed", ("unknown:", "attacks failed"))
    if np.isinf(record["distance"]):
        return Picture("", f"{name}: no adversarial found", ("none found",))
    source = images[record["cell"], record["sample"]]
    predicted = f"seen as {record['adversarial_prediction']}"
    if record["status"] == "clean_error":
        return Picture(source, f"{name}: misclassified as it is, {predicted}", (predicted, "clean error"))
    distance = f"{NORM_LABELS[norm]} {record['distance']:{'.0f' if norm == 'L0' else '.3g'}}"
    alternative = f"{name}: {predicted} at distance {distance}, by {record['attack']}"
    return Picture(source, alternative, (predicted, distance))
