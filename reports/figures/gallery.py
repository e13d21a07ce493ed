"""Galleries of the smallest adversarial examples: images with what a classifier predicts for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from bench.contracts.norms import NormName
from bench.ledger.schema import Status
from reports.measures.facts import NormFacts
from reports.runs.labels import NORM_LABELS, UNITS
from reports.runs.run import Run

SHOWN = 6
"""Number of images that a gallery shows."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Quantiles of the distances. A gallery shows the images at them."""
Image = NDArray[np.float32]
Record = dict[Any, Any]
"""One row of a ledger's frame."""


@dataclass(frozen=True)
class Picture:
    """A picture: images of a gallery that stand side by side, with text.

    Attributes:
        images: the images, each (C, H, W) float32 in [0, 1], with one or three channels; empty if there is nothing
            to show.
        alternative: what the images show, in words.
        lines: lines of text below the images.
    """

    images: tuple[Image, ...]
    alternative: str
    lines: tuple[str, ...]

    @property
    def sources(self) -> list[str]:
        """The ``data:`` URI of each image as a PNG, one pixel per pixel."""
        return [png_uri(image) for image in self.images]


@dataclass(frozen=True)
class Gallery:
    """A gallery: a table of pictures.

    Attributes:
        name: stem of the gallery's files.
        heading: heading of the column of row headings.
        defenses: the columns.
        rows: what each row is about (perhaps with a picture), and a picture for each defense.
    """

    name: str
    heading: str
    defenses: Sequence[str]
    rows: list[tuple[Picture, list[Picture]]]


def gallery(run: Run, norm: NormFacts) -> Gallery:
    """Builds the gallery of the smallest known adversarial examples of a few samples.

    The samples are the run's first one of each of its first `SHOWN` labels. The choice depends on no result.
    """
    smallest = run.in_norms[norm.norm].smallest
    first = smallest.drop_duplicates("sample").set_index("sample")["label"].reindex(run.samples).dropna()
    chosen = first.drop_duplicates().head(SHOWN).astype(int)
    shown = smallest[smallest["sample"].isin(chosen.index)].to_dict("records")
    found = {(record["sample"], record["defense"]): record for record in shown}
    images = _adversarial_images(run, [record for record in shown if record["broken"]])
    rows = []
    for sample, label in zip(chosen.index, chosen, strict=True):
        clean = run.clean[run.samples.index(sample)]
        heading = Picture((clean,), f"image {sample}, label {label}", (f"label {label}",))
        pictures = [
            _picture(found.get((sample, defense)), images, norm.norm, f"image {sample}, {defense}")
            for defense in norm.defenses
        ]
        rows.append((heading, [_with_difference(picture, clean) for picture in pictures]))
    return Gallery(f"smallest_{norm.norm}", "clean", norm.defenses, rows)


def quantile_gallery(run: Run, norm: NormFacts) -> Gallery:
    """Builds the gallery of the smallest adversarial examples at some quantiles of each defense's finite distances.

    Clean errors are left out (Schott et al. 2019, Figures 5 to 7). Defenses on which only bounded attacks ran are left
    out if there are others.
    """
    smallest, defenses = run.in_norms[norm.norm].smallest, norm.with_distances
    attacked = smallest[np.isfinite(smallest["distance"]) & (smallest["distance"] > 0)]
    chosen = {}
    for name, own in attacked.groupby("defense"):
        places = [round(q * (len(own) - 1)) for q in QUANTILES]
        chosen[str(name)] = own.iloc[np.argsort(own["distance"].to_numpy(), kind="stable")[places]].to_dict("records")
    images = _adversarial_images(run, [record for records in chosen.values() for record in records])
    rows = []
    for i, q in enumerate(QUANTILES):
        title = {0.0: "nearest", 0.5: "median", 1.0: "farthest"}.get(q, f"{q:.0%}")
        found = [chosen[defense][i] if defense in chosen else None for defense in defenses]
        pictures = [
            _quantile_picture(run, record, images, norm.norm, f"{title}, {defense}")
            for record, defense in zip(found, defenses, strict=True)
        ]
        rows.append((Picture((), title, (title,)), pictures))
    return Gallery(f"quantiles_{norm.norm}", "distance", defenses, rows)


def distal_gallery(run: Run) -> Gallery | None:
    """Builds the gallery of each defense's first distal adversarial example of each class.

    Returns None if these were not studied.
    """
    distals = run.study_records("distal")
    if distals.empty:
        return None
    made = distals[distals["status"] != Status.FAILED].astype({"target": int, "sample": int})
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
            pictures.append(Picture((images[record["cell"]][record["sample"]],), alternative, lines))
        rows.append((Picture((), f"class {target}", (f"class {target}",)), pictures))
    return Gallery("distal", "class", defenses, rows)


def reconstruction_gallery(run: Run, norm: NormName) -> Gallery | None:
    """Builds the gallery of images, their adversarial examples in growing balls, and the defenses' reconstructions.

    The layout follows Maggipinto, Terzi & Susto 2020, Figure 5. Returns None if this was not studied.
    """
    studied = run.study_records("reconstruction")
    own = studied[(studied["norm"] == norm) & (studied["status"] != Status.FAILED)] if len(studied) else studied
    if own.empty:
        return None
    defenses = [defense for defense in run.defenses if (own["defense"] == defense).any()]
    found = {(record["defense"], record["image"], record["epsilon"]): record for record in own.to_dict("records")}
    images = {study: run.study_images(study) for study in own["cell"].unique()}
    rows = []
    for image, label, epsilon in (
        own[["image", "label", "epsilon"]].drop_duplicates().sort_values(["image", "epsilon"]).to_numpy()
    ):
        title = f"label {label:.0f}, ε = {epsilon:g}"
        pictures = []
        for defense in defenses:
            record = found.get((defense, image, epsilon))
            if record is None:
                pictures.append(Picture((), f"{title}, {defense}: no results", ("no results",)))
                continue
            first = 2 * int(record["sample"])
            lines = (f"seen as {record['prediction']:.0f}", f"error {record['error']:.2g}")
            alternative = f"image {image:.0f} at ε = {epsilon:g}, {defense}: {lines[0]}, and its reconstruction"
            pictures.append(Picture(tuple(images[record["cell"]][first : first + 2]), alternative, lines))
        rows.append((Picture((), title, (title,)), pictures))
    return Gallery(f"reconstructions_{norm}", "image", defenses, rows)


def gallery_figure(gallery: Gallery) -> Figure:
    """Draws a gallery for print."""
    pictured = any(heading.images for heading, _ in gallery.rows)
    wide = max([1, *(len(picture.images) for _, pictures in gallery.rows for picture in pictures)])
    columns = [*([(gallery.heading, 1)] if pictured else []), *((name, wide) for name in gallery.defenses)]
    lefts = np.cumsum([0, *(width + 0.1 for _, width in columns)])
    with mpl.rc_context({"font.size": 7, "pdf.fonttype": 42}):
        figure = Figure(figsize=(0.4 + 0.9 * lefts[-1], 0.3 + 1.3 * len(gallery.rows)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for left, (name, width) in zip(lefts, columns, strict=False):
            axes.text(left + width / 2, -0.08, name.replace(":", ":\n"), ha="center", va="bottom")
        for row, (heading, pictures) in enumerate(gallery.rows):
            top = 1.45 * row
            if not pictured:
                axes.text(-0.08, top + 0.5, heading.lines[0], ha="right", va="center", rotation=90)
            shown = [*([heading] if pictured else []), *pictures]
            for left, (_, width), picture in zip(lefts, columns, shown, strict=False):
                for i, image in enumerate(picture.images):
                    place = (left + i, left + i + 0.97, top + 1, top)
                    # "none" stores the pixels in a PDF as they are. Resampling would take seconds.
                    axes.imshow(_pixels(image), interpolation="none", extent=place)
                axes.text(left + width / 2, top + 1.04, "\n".join(picture.lines), ha="center", va="top")
        axes.set(xlim=(-0.3, lefts[-1]), ylim=(1.45 * len(gallery.rows), -0.3))
    return figure


def difference(clean: Image, adversarial: Image) -> Image:
    """Returns what was added to an image, on gray.

    The largest absolute change is shown as black or white.
    """
    change = adversarial - clean
    largest = float(np.abs(change).max())
    return np.asarray(0.5 + change / (2 * largest or 1), dtype=np.float32)


def png_uri(image: Image) -> str:
    """Returns an image (C, H, W) in [0, 1], with one or three channels, as the ``data:`` URI of a PNG."""
    buffer = io.BytesIO()
    imsave(buffer, _pixels(image), format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pixels(image: Image) -> NDArray[np.uint8]:
    channels = np.broadcast_to(image, (3, *image.shape[1:])) if image.shape[0] == 1 else image
    return np.ascontiguousarray(np.rint(channels.transpose(1, 2, 0) * 255).astype(np.uint8))


def _adversarial_images(run: Run, found: list[Record]) -> dict[tuple[str, int], Image]:
    """Returns the images of records, keyed by cell and sample. Each cell's file is read once."""
    images: dict[tuple[str, int], Image] = {}
    for cell in dict.fromkeys(record["cell"] for record in found):
        adversarials = run.adversarials(cell)
        samples = [record["sample"] for record in found if record["cell"] == cell]
        images |= {(cell, sample): adversarials[run.samples.index(sample)] for sample in samples}
    return images


def _picture(record: Record | None, images: dict[tuple[str, int], Image], norm: NormName, name: str) -> Picture:
    if record is None:
        return Picture((), f"{name}: no results", ("no results",))
    if np.isnan(record["distance"]):
        return Picture((), f"{name}: unknown, attacks failed", ("unknown:", "attacks failed"))
    if np.isinf(record["distance"]):
        return Picture((), f"{name}: no adversarial found", ("none found",))
    image = images[record["cell"], record["sample"]]
    predicted = f"seen as {record['adversarial_prediction']}"
    if record["status"] == Status.CLEAN_ERROR:
        return Picture((image,), f"{name}: misclassified as it is, {predicted}", (predicted, "clean error"))
    distance = f"{NORM_LABELS[norm]} {record['distance']:{'.0f' if UNITS[norm] == 'pixels' else '.3g'}}"
    alternative = f"{name}: {predicted} at distance {distance}, by {record['attack']}"
    return Picture((image,), alternative, (predicted, distance))


def _quantile_picture(
    run: Run, record: Record | None, images: dict[tuple[str, int], Image], norm: NormName, name: str
) -> Picture:
    """Returns a clean image, its adversarial example and their difference."""
    if record is None:
        return _picture(None, images, norm, name)
    clean = run.clean[run.samples.index(record["sample"])]
    picture = _with_difference(_picture(record, images, norm, f"{name}, image {record['sample']}"), clean)
    return replace(picture, images=(clean, *picture.images))


def _with_difference(picture: Picture, clean: Image) -> Picture:
    """Returns an adversarial example's picture with the difference to the clean image beside it.

    The picture of a clean error stays as it is.
    """
    changed = [image for image in picture.images if not np.array_equal(image, clean)]
    return replace(picture, images=(*picture.images, *(difference(clean, image) for image in changed)))
