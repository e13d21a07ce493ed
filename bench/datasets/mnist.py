"""MNIST, and the datasets that come in its format."""

from __future__ import annotations

from pathlib import Path

from bench.datasets.archives import Archive
from bench.datasets.cards import dataset
from bench.datasets.readers import read_archive
from bench.datasets.split import Part, Split

SOURCE = "IDX files, or torchvision's download"
MNIST = Archive(
    folders=("mnist", "MNIST/raw"),
    torchvision_name="MNIST",
    checksums={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)
FASHION_MNIST = Archive(
    folders=("fashion-mnist", "FashionMNIST/raw"),
    torchvision_name="FashionMNIST",
    checksums={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
)


@dataset(
    "mnist",
    classes=10,
    shape=(1, 28, 28),
    train=60000,
    test=10000,
    source=SOURCE,
    citation="LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document recognition",
)
def mnist(part: Part, data_dir: Path | None) -> Split:
    """Handwritten digits."""
    return read_archive("mnist", MNIST, part, data_dir)


@dataset(
    "fashion_mnist",
    classes=10,
    shape=(1, 28, 28),
    train=60000,
    test=10000,
    source=SOURCE,
    citation="Xiao, Rasul & Vollgraf 2017, Fashion-MNIST",
)
def fashion_mnist(part: Part, data_dir: Path | None) -> Split:
    """Pictures of clothes."""
    return read_archive("fashion_mnist", FASHION_MNIST, part, data_dir)
