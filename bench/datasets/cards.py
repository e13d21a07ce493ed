"""Dataset cards: what is known about each dataset before it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A dataset of four gzipped IDX files.

    Attributes:
        folders: where the files lie below a data folder: this project's layout, then torchvision's.
        torchvision_name: the class in ``torchvision.datasets`` that downloads the files.
        checksums: MD5 of each file's decompressed content, by name without ``.gz``.
    """

    folders: tuple[str, ...]
    torchvision_name: str
    checksums: Mapping[str, str]


@dataclass(frozen=True)
class ColorArchive:
    """Color images of 32x32 pixels in ``train.npz`` and ``test.npz``, or in torchvision's own files.

    Each npz file holds the images ``x`` uint8 (N, 32, 32, 3) and the labels ``y`` (N,).

    Attributes:
        folder: where the npz files lie below a data folder.
        torchvision_name: the class in ``torchvision.datasets`` that reads and downloads the set; None if there is none.
        kept: the classes to keep, in ascending order, relabeled 0, 1, ...; None keeps all.
    """

    folder: str
    torchvision_name: str | None = None
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DatasetCard:
    """A dataset card: what is known about a dataset before it is loaded.

    Attributes:
        name: the dataset's name in commands and matrices.
        classes: number of classes.
        shape: channels, height and width of an image.
        train: number of training images in the complete set.
        test: number of test images in the complete set.
        source: where the dataset comes from.
        citation: where the dataset was published.
        archive: the dataset's files; None if the dataset comes with a library.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: int
    test: int
    source: str
    citation: str
    archive: Archive | ColorArchive | None = None


DATASETS: dict[str, DatasetCard] = {
    card.name: card
    for card in (
        DatasetCard(
            name="digits",
            classes=10,
            shape=(1, 8, 8),
            train=1197,
            test=600,
            source="scikit-learn (embedded)",
            citation="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI)",
        ),
        DatasetCard(
            name="mnist",
            classes=10,
            shape=(1, 28, 28),
            train=60000,
            test=10000,
            source="IDX files, or torchvision's download",
            citation="LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document recognition",
            archive=Archive(
                folders=("mnist", "MNIST/raw"),
                torchvision_name="MNIST",
                checksums={
                    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
                    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
                    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
                    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
                },
            ),
        ),
        DatasetCard(
            name="fashion_mnist",
            classes=10,
            shape=(1, 28, 28),
            train=60000,
            test=10000,
            source="IDX files, or torchvision's download",
            citation="Xiao, Rasul & Vollgraf 2017, Fashion-MNIST",
            archive=Archive(
                folders=("fashion-mnist", "FashionMNIST/raw"),
                torchvision_name="FashionMNIST",
                checksums={
                    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
                    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
                    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
                },
            ),
        ),
        DatasetCard(
            name="cifar10",
            classes=10,
            shape=(3, 32, 32),
            train=50000,
            test=10000,
            source="npz files (all or a part), or torchvision's download",
            citation="Krizhevsky 2009, Learning multiple layers of features from tiny images",
            archive=ColorArchive("cifar10", "CIFAR10"),
        ),
        DatasetCard(
            name="cifar2",
            classes=2,
            shape=(3, 32, 32),
            train=10000,
            test=2000,
            source="airplanes and automobiles of cifar10",
            citation="Krizhevsky 2009; the two classes of Schott et al. 2019, appendix A.1",
            archive=ColorArchive("cifar10", "CIFAR10", kept=(0, 1)),
        ),
        DatasetCard(
            name="gtsrb_top10",
            classes=10,
            shape=(3, 32, 32),
            train=16404,
            test=5345,
            source="npz files",
            citation="Stallkamp, Schlipsing, Salmen & Igel 2012, Man vs. computer; its ten most frequent classes, in "
            "place of Ju & Wagner's SuperTraffic-10",
            archive=ColorArchive("gtsrb-top10"),
        ),
        DatasetCard(
            name="svhn",
            classes=10,
            shape=(3, 32, 32),
            train=73257,
            test=26032,
            source="npz files (all or a part), or torchvision's download",
            citation="Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning",
            archive=ColorArchive("svhn", "SVHN"),
        ),
    )
}
