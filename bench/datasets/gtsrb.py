"""German traffic signs: the ten most frequent classes."""

from __future__ import annotations

from pathlib import Path

from bench.datasets.archives import ColorArchive
from bench.datasets.cards import dataset
from bench.datasets.readers import read_color_archive
from bench.datasets.split import Part, Split


@dataset(
    "gtsrb_top10",
    classes=10,
    shape=(3, 32, 32),
    train=16404,
    test=5345,
    source="npz files",
    citation="Stallkamp, Schlipsing, Salmen & Igel 2012, Man vs. computer; its ten most frequent classes, in place of "
    "Ju & Wagner's SuperTraffic-10",
)
def gtsrb_top10(part: Part, data_dir: Path | None) -> Split:
    """Color images of traffic signs."""
    return read_color_archive("gtsrb_top10", ColorArchive("gtsrb-top10"), part, data_dir)
