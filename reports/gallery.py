"""Galleries of the smallest adversarials: pictures with what a classifier makes of them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from bench.norms import Norm
from reports.runs import Run
from reports.statistics import smallest_adversarials
from reports.tables import NORM_LABELS

SHOWN = 6
"""Images that a gallery shows."""


QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the distances, whose images a gallery shows."""
Image = NDArray[np.float32]
Record = dict[Any, Any]
"""One row of a ledger's frame."""


@dataclass(frozen=True)
class Picture:
    """An image of a gallery.

    Attributes:
        image: (C, H, W) float32 in [0, 1], with one or three channels, or None where there is none to show.
        alternative: what it shows, in words.
        lines: what stands under it.
    """

    image: Image | None
    alternative: str
    lines: tuple[str, ...]

    @property
    def source(self) -> str:
        """A ``data:`` URI with the image as PNG, one pixel per pixel; empty without one."""
        return "" if self.image is None else png_uri(self.image)


@dataclass(frozen=True)
class Gallery:
    """Pictures in a table.

    Attributes:
        name: stem of its files.
        heading: of the column of row headings.
        defenses: a column each.
        rows: what a row is about, perhaps with a picture, and a picture for each defense.
    """

    name: str
    heading: str
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
        clean = Picture(run.clean[run.samples.index(sample)], f"image {sample}, label {label}", (f"label {label}",))
        pictures = [
            _picture(found.get((sample, defense)), images, norm, f"image {sample}, {defense}")
            for defense in run.defenses
        ]
        rows.append((clean, pictures))
    return Gallery(f"smallest_{norm}", "clean", run.defenses, rows)


def quantile_gallery(run: Run, norm: Norm) -> Gallery:
    """For each defense the smallest adversarials of the images at some quantiles of its finite distances, clean errors
    left out (Schott et al. 2019, Figures 5 to 7)."""
    smallest = smallest_adversarials(run.records, norm)
    attacked = smallest[np.isfinite(smallest["distance"]) & (smallest["distance"] > 0)]
    ordered = {str(name): own.sort_values("distance").to_dict("records") for name, own in attacked.groupby("defense")}
    chosen = {name: [own[round(q * (len(own) - 1))] for q in QUANTILES] for name, own in ordered.items()}
    images = _adversarial_images(run, [record for records in chosen.values() for record in records])
    rows = []
    for i, q in enumerate(QUANTILES):
        title = {0.0: "nearest", 0.5: "median", 1.0: "farthest"}.get(q, f"{q:.0%}")
        found = [chosen[defense][i] if defense in chosen else None for defense in run.defenses]
        pictures = [
            _picture(record, images, norm, f"{title}, {defense}" + (f", image {record['sample']}" if record else ""))
            for record, defense in zip(found, run.defenses, strict=True)
        ]
        rows.append((Picture(None, title, (title,)), pictures))
    return Gallery(f"quantiles_{norm}", "distance", run.defenses, rows)


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
            pictures.append(Picture(images[record["cell"]][record["sample"]], alternative, lines))
        rows.append((Picture(None, f"class {target}", (f"class {target}",)), pictures))
    return Gallery("distal", "class", defenses, rows)


def gallery_figure(gallery: Gallery) -> Figure:
    """A gallery for print."""
    pictured = any(heading.image is not None for heading, _ in gallery.rows)
    columns = [*([gallery.heading] if pictured else []), *gallery.defenses]
    with mpl.rc_context({"font.size": 7, "pdf.fonttype": 42}):
        figure = Figure(figsize=(0.4 + 1.0 * len(columns), 0.3 + 1.3 * len(gallery.rows)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for column, name in enumerate(columns):
            axes.text(column + 0.45, -0.08, name.replace(":", ":\n"), ha="center", va="bottom")
        for row, (heading, pictures) in enumerate(gallery.rows):
            top = 1.3 * row
            if not pictured:
                axes.text(-0.08, top + 0.45, heading.lines[0], ha="right", va="center", rotation=90)
            for column, picture in enumerate([*([heading] if pictured else []), *pictures]):
                if picture.image is not None:
                    place = (column, column + 0.9, top + 0.9, top)
                    axes.imshow(_pixels(picture.image), interpolation="nearest", extent=place)
                axes.text(column + 0.45, top + 0.94, "\n".join(picture.lines), ha="center", va="top")
        axes.set(xlim=(-0.3, len(columns)), ylim=(1.3 * len(gallery.rows), -0.3))
    return figure


def png_uri(image: Image) -> str:
    """An image (C, H, W) in [0, 1], with one or three channels, as a ``data:`` URI."""
    buffer = io.BytesIO()
    imsave(buffer, _pixels(image), format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pixels(image: Image) -> NDArray[np.uint8]:
    channels = np.broadcast_to(image, (3, *image.shape[1:])) if image.shape[0] == 1 else image
    return np.ascontiguousarray(np.rint(channels.transpose(1, 2, 0) * 255).astype(np.uint8))


def _adversarial_images(run: Run, found: list[Record]) -> dict[tuple[str, int], Image]:
    """The images of records, by cell and sample; each cell's file is read once."""
    images: dict[tuple[str, int], Image] = {}
    for cell in dict.fromkeys(record["cell"] for record in found):
        adversarials = run.adversarials(cell)
        samples = [record["sample"] for record in found if record["cell"] == cell]
        images |= {(cell, sample): adversarials[run.samples.index(sample)] for sample in samples}
    return images


def _picture(record: Record | None, images: dict[tuple[str, int], Image], norm: Norm, name: str) -> Picture:
    if record is None:
        return Picture(None, f"{name}: no results", ("no results",))
    if np.isnan(record["distance"]):
        return Picture(None, f"{name}: unknown, attacks failed", ("unknown:", "attacks failed"))
    if np.isinf(record["distance"]):
        return Picture(None, f"{name}: no adversarial found", ("none found",))
    image = images[record["cell"], record["sample"]]
    predicted = f"seen as {record['adversarial_prediction']}"
    if record["status"] == "clean_error":
        return Picture(image, f"{name}: misclassified as it is, {predicted}", (predicted, "clean error"))
    distance = f"{NORM_LABELS[norm]} {record['distance']:{'.0f' if norm == 'L0' else '.3g'}}"
    alternative = f"{name}: {predicted} at distance {distance}, by {record['attack']}"
    return Picture(image, alternative, (predicted, distance))
