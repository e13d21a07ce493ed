"""CIFAR-10, and two of its classes."""

from __future__ import annotations

from pathlib import Path

from bench.datasets.archives import ColorArchive
from bench.datasets.cards import dataset
from bench.datasets.readers import read_color_archive
from bench.datasets.split import Part, Split


@dataset(
    "cifar10",
    classes=10,
    shape=(3, 32, 32),
    train=50000,
    test=10000,
    source="npz files (all or a part), or torchvision's download",
    citation="Krizhevsky 2009, Learning multiple layers of features from tiny images",
)
def cifar10(part: Part, data_dir: Path | None) -> Split:
    """Color images of animals and vehicles."""
    return read_color_archive("cifar10", ColorArchive("cifar10", "CIFAR10"), part, data_dir)


@dataset(
    "cifar2",
    classes=2,
    shape=(3, 32, 32),
    train=10000,
    test=2000,
    source="airplanes and automobiles of cifar10",
    citation="Krizhevsky 2009; the two classes of Schott et al. 2019, appendix A.1",
)
def cifar2(part: Part, data_dir: Path | None) -> Split:
    """Airplanes and automobiles."""
    return read_color_archive("cifar2", ColorArchive("cifar10", "CIFAR10", kept=(0, 1)), part, data_dir)
