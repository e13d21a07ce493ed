"""Street view house numbers."""

from __future__ import annotations

from pathlib import Path

from bench.datasets.archives import ColorArchive
from bench.datasets.cards import dataset
from bench.datasets.readers import read_color_archive
from bench.datasets.split import Part, Split


@dataset(
    "svhn",
    classes=10,
    shape=(3, 32, 32),
    train=73257,
    test=26032,
    source="npz files (all or a part), or torchvision's download",
    citation="Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning",
)
def svhn(part: Part, data_dir: Path | None) -> Split:
    """Color images of the digits of house numbers."""
    return read_color_archive("svhn", ColorArchive("svhn", "SVHN"), part, data_dir)
