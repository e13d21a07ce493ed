"""Datasets: fixed splits of real images, and files that are verified before they are believed."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.contracts.errors import UserError
from bench.datasets import dataset as datasets
from bench.datasets import mnist
from bench.datasets.archives import Archive
from bench.datasets.catalog import DATASETS
from bench.datasets.dataset import load_dataset
from bench.datasets.files import find_file, read_idx
from bench.datasets.split import Split

needs_data = pytest.mark.skipif("ASSAY_DATA" not in os.environ, reason="needs the data sets' files (ASSAY_DATA=FOLDER)")


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in IDX format."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


# digits


def test_digits_are_eight_by_eight_images_in_the_unit_interval():
    dataset = load_dataset("digits")
    for split, size in ((dataset.train, 1197), (dataset.test, 600)):
        assert split.images.shape == (size, 1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.shape == (size,)
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0
        assert split.images.max() == 1
        assert torch.equal(split.images * 16, (split.images * 16).round())


def test_digits_splits_cover_every_image_once():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    rows = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).numpy() * 16
    assert sorted(map(tuple, rows)) == sorted(map(tuple, load_digits().data.astype(np.float32)))


def test_digits_splits_are_stratified():
    dataset = load_dataset("digits")
    train, test = dataset.train.labels.bincount(), dataset.test.labels.bincount()
    share = (train + test) * 600 / 1797
    assert ((test - share).abs() < 1).all()


def test_digits_split_is_fixed():
    """A ledger of digits names samples by their place in this very split."""
    dataset = load_dataset("digits")
    assert dataset.test.hash == "aa25f5f9a8acdb84"


def test_hash_is_of_images_and_labels():
    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])
    reference = Split(images, labels).hash
    assert reference == hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]
    assert Split(images.flip(0), labels).hash != reference
    assert Split(images, labels.flip(0)).hash != reference


# IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("name", "shape"), [("t10k-images-idx3-ubyte", (5, 4, 3)), ("t10k-labels-idx1-ubyte", (5,))])
def test_idx_files_are_read_gzipped_or_not(tmp_path, name, shape, suffix):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = idx(array)
    path = tmp_path / (name + suffix)
    path.write_bytes(gzip.compress(content) if suffix else content)
    read = read_idx(path, hashlib.md5(content).hexdigest())
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


GOOD = idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3))
CORRUPT = {
    "another magic number": (GOOD[:2] + b"\x0d" + GOOD[3:], "magic number 00000d03, expected 00000803"),
    "labels for images": (idx(np.zeros(5, np.uint8)), "magic number 00000801, expected 00000803"),
    "empty": (b"", "not an IDX file"),
    "header cut off": (GOOD[:9], "truncated: 9 bytes"),
    "pixels cut off": (GOOD[:-1], "truncated: 75 bytes instead of the 76 that its header announces"),
    "bytes appended": (GOOD + b"\0", "too long: 77 bytes instead of the 76"),
    "one pixel changed": (GOOD[:-1] + b"\xff", "checksum mismatch: the content's MD5 is "),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("case", CORRUPT)
def test_a_corrupt_idx_file_is_named_with_what_is_wrong(tmp_path, case, suffix):
    content, message = CORRUPT[case]
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert_one_line(path, message, lambda: read_idx(path, hashlib.md5(GOOD).hexdigest()))


@pytest.mark.parametrize(
    "content",
    [GOOD, gzip.compress(GOOD)[:-20], gzip.compress(GOOD)[:12] + b"\xff" * 40, gzip.compress(GOOD)[:-6] + b"crc!!!"],
    ids=["not gzip", "gzip cut off", "gzip garbled", "gzip with another CRC"],
)
def test_a_corrupt_gzip_file_is_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    assert_one_line(path, "not a readable gzip file", lambda: read_idx(path))


def assert_one_line(path: Path, message: str, action) -> None:
    with pytest.raises(UserError) as error:
        action()
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Where files are looked for


@pytest.fixture
def tiny(monkeypatch):
    """Makes ``mnist`` an archive of a few made-up images; returns a function that writes it into a folder."""
    rng = np.random.default_rng(0)
    contents = {}
    for prefix, n in (("train", 6), ("t10k", 4)):
        contents[f"{prefix}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 28, 28), np.uint8))
        contents[f"{prefix}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, n, np.uint8))
    checksums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(mnist, "MNIST", Archive(mnist.MNIST.folders, "MNIST", checksums))
    monkeypatch.delenv("ASSAY_DATA", raising=False)

    def write(folder: Path, suffix: str) -> None:
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)

    datasets._load_split.cache_clear()
    yield write
    datasets._load_split.cache_clear()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
def test_both_layouts_of_a_data_folder_are_read(tmp_path, tiny, folder, suffix):
    tiny(tmp_path / folder, suffix)
    dataset = load_dataset("mnist", tmp_path)
    assert dataset.data_dir == tmp_path
    assert dataset.train.images.shape == (6, 1, 28, 28)
    assert dataset.test.images.shape == (4, 1, 28, 28)
    raw = read_idx(tmp_path / folder / f"t10k-images-idx3-ubyte{suffix}")
    np.testing.assert_array_equal((dataset.test.images[:, 0] * 255).round().numpy(), raw)
    assert dataset.test.images is load_dataset("mnist", str(tmp_path)).test.images


def test_the_environment_names_the_data_folder(tmp_path, tiny, monkeypatch):
    tiny(tmp_path / "mnist", ".gz")
    monkeypatch.setenv("ASSAY_DATA", str(tmp_path))
    assert len(load_dataset("mnist").test) == 4


def test_a_corrupt_file_of_a_data_folder_is_named(tmp_path, tiny):
    tiny(tmp_path / "mnist", ".gz")
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.full(4, 11, np.uint8))))
    assert_one_line(path, "checksum mismatch", lambda: load_dataset("mnist", tmp_path).test)


def test_a_folder_without_the_files_says_what_is_missing(tmp_path):
    with pytest.raises(UserError) as error:
        _ = load_dataset("fashion_mnist", tmp_path).test
    assert str(error.value) == (
        f"dataset 'fashion_mnist': no fashion-mnist/t10k-images-idx3-ubyte.gz under {tmp_path}; set --data-dir or "
        "ASSAY_DATA to the folder that has it, or leave both out to download it"
    )


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    missing = tmp_path / "nowhere"
    with pytest.raises(UserError, match=r"--data-dir: .*nowhere is not a folder"):
        load_dataset("mnist", missing)
    monkeypatch.setenv("ASSAY_DATA", str(missing))
    with pytest.raises(UserError, match=r"ASSAY_DATA: .*nowhere is not a folder"):
        load_dataset("mnist")


def test_an_unknown_dataset_is_refused_with_a_suggestion():
    with pytest.raises(UserError) as error:
        load_dataset("mnits")
    allowed = "cifar10, cifar2, digits, fashion_mnist, gtsrb_top10, mnist, svhn"
    assert str(error.value) == f"unknown dataset 'mnits'; did you mean 'mnist'? Allowed: {allowed}"


# Color images


X = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
Y = np.array([0, 9, 1, 3, 1, 0])


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """No data folder, an empty cache, and splits that are read anew."""
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    datasets._load_split.cache_clear()
    yield
    datasets._load_split.cache_clear()


def write_npz(folder: Path, part: str = "test", **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{part}.npz", **{"x": X, "y": Y, **arrays})
    return folder / f"{part}.npz"


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar10"), ("gtsrb_top10", "gtsrb-top10"), ("svhn", "svhn")])
def test_color_images_are_read_from_npz_files(tmp_path, no_data, name, folder):
    write_npz(tmp_path / folder)
    test = load_dataset(name, tmp_path).test
    assert test.images.shape == (6, 3, 32, 32)
    assert test.images.is_contiguous()
    np.testing.assert_array_equal((test.images * 255).round().permute(0, 2, 3, 1).numpy(), X)
    assert test.labels.tolist() == Y.tolist()
    assert test.labels.dtype == torch.int64


def test_two_classes_of_cifar10(tmp_path, no_data):
    write_npz(tmp_path / "cifar10")
    test = load_dataset("cifar2", tmp_path).test
    assert test.labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal((test.images * 255).round().permute(0, 2, 3, 1).numpy(), X[[0, 2, 4, 5]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X.astype(float)}, "x is float64 (6, 32, 32, 3), expected uint8 (N, 32, 32, 3)"),
        ({"x": X[:, :28]}, "x is uint8 (6, 28, 32, 3), expected uint8 (N, 32, 32, 3)"),
        ({"x": X[:0], "y": Y[:0]}, "x is uint8 (0, 32, 32, 3), expected uint8 (N, 32, 32, 3)"),
        ({"y": Y[:5]}, "y is int64 (5,), expected integers (6,)"),
        ({"y": Y / 2}, "y is float64 (6,), expected integers (6,)"),
    ],
)
def test_an_npz_file_with_something_else_is_named(tmp_path, no_data, arrays, message):
    path = write_npz(tmp_path / "cifar10", **arrays)
    assert_one_line(path, message, lambda: load_dataset("cifar10", tmp_path).test)


def test_a_corrupt_npz_file_is_named(tmp_path, no_data):
    path = write_npz(tmp_path / "cifar10")
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", x=X)
    garbled = whole[:5000] + bytes(200) + whole[5200:]
    np.save(tmp_path / "other.npy", X)
    others = [(tmp_path / name).read_bytes() for name in ("other.npz", "other.npy")]
    for content in (b"", whole[:-30], garbled, *others):
        path.write_bytes(content)
        assert_one_line(path, "not a readable npz file", lambda: load_dataset("cifar10", tmp_path).test)


def test_labels_that_are_no_classes_are_refused(tmp_path, no_data):
    write_npz(tmp_path / "cifar10", y=Y + 1)
    with pytest.raises(UserError, match=r"dataset 'cifar10', test: label 10; allowed: 0 to 9"):
        _ = load_dataset("cifar10", tmp_path).test


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 9), r"images are torch.float32 \(2, 1, 8, 9\), expected torch.float32 \(2, 1, 8, 8\)"),
        (torch.zeros(3, 1, 8, 8), r"images are torch.float32 \(3, 1, 8, 8\), expected torch.float32 \(2, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8).double(), r"images are torch.float64"),
        (torch.full((2, 1, 8, 8), 16.0), r"images have values outside \[0, 1\]"),
        (torch.full((2, 1, 8, 8), float("nan")), r"images have values outside \[0, 1\]"),
    ],
)
def test_images_that_do_not_keep_what_the_card_says_are_refused(tmp_path, monkeypatch, images, message):
    digits = DATASETS.get("digits")
    broken = replace(digits, function=lambda part, data_dir: Split(images, torch.tensor([0, 1])))
    monkeypatch.setattr(type(DATASETS), "get", lambda self, name: broken)
    with pytest.raises(UserError, match="dataset 'digits', test: " + message):
        _ = load_dataset("digits", tmp_path).test


def fake_torchvision(monkeypatch, calls):
    """torchvision's readers, which find what was downloaded before."""
    import torchvision

    def cifar(root, *, train, download):
        calls.append((Path(root), train, download))
        return SimpleNamespace(data=X, targets=Y.tolist())

    def svhn(root, *, split, download):
        calls.append((Path(root), split, download))
        return SimpleNamespace(data=X.transpose(0, 3, 1, 2), labels=Y)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar)
    monkeypatch.setattr(torchvision.datasets, "SVHN", svhn)


def test_without_npz_files_torchvision_reads_color_images(tmp_path, no_data, monkeypatch):
    calls = []
    fake_torchvision(monkeypatch, calls)
    for name, there, download, part in (
        ("cifar10", tmp_path, False, False),
        ("cifar10", None, True, False),
        ("svhn", None, True, "test"),
    ):
        test = load_dataset(name, there).test
        np.testing.assert_array_equal((test.images * 255).round().permute(0, 2, 3, 1).numpy(), X)
        assert test.labels.tolist() == Y.tolist()
        root = there or tmp_path / "cache" / "data" / name.upper()
        assert calls[-1] == (root, part, download)


def test_color_images_that_are_nowhere_say_where_they_should_be(tmp_path, no_data, monkeypatch):
    with pytest.raises(UserError, match=r"'svhn': no svhn/test.npz under .*, nor intact files of torchvision's; set"):
        _ = load_dataset("svhn", tmp_path).test
    for folder in (tmp_path, None):
        with pytest.raises(UserError, match=r"'gtsrb_top10': no gtsrb-top10/test.npz under .*; set --data-dir"):
            _ = load_dataset("gtsrb_top10", folder).test

    def refuse(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UserError, match=r"'cifar2': the download failed \(.*\); .* has cifar10/test.npz"):
        _ = load_dataset("cifar2").test


# Download


def test_without_a_data_folder_the_files_are_downloaded_once(tmp_path, tiny, monkeypatch):
    import torchvision

    downloads = []

    def download(root, download):
        downloads.append(root)
        tiny(Path(root) / "MNIST" / "raw", ".gz")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    dataset = load_dataset("mnist")
    assert dataset.data_dir is None
    assert len(dataset.train) == 6
    assert len(dataset.test) == 4
    assert len(downloads) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_a_download_without_a_network_says_how_to_get_the_data(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as error:
        _ = load_dataset("mnist").test
    message = str(error.value)
    assert message.startswith("dataset 'mnist': the download failed (")
    assert "--data-dir" in message
    assert "ASSAY_DATA" in message
    assert "\n" not in message
    assert list((tmp_path / "data").iterdir()) == []
    assert socket.getdefaulttimeout() is None


# The real files


@needs_data
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        (
            "mnist",
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ),
        ("fashion_mnist", [6000] * 10, [1000] * 10),
    ],
)
def test_the_real_files_have_the_published_class_counts(name, train, test):
    dataset = load_dataset(name)
    card = DATASETS.get(name).card
    assert dataset.train.images.shape == (card.train, *card.shape)
    assert dataset.test.images.shape == (card.test, *card.shape)
    assert dataset.train.labels.bincount().tolist() == train
    assert dataset.test.labels.bincount().tolist() == test
    assert (dataset.test.images.min(), dataset.test.images.max()) == (0, 1)


@needs_data
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        (
            "cifar10",
            [738, 714, 765, 760, 762, 725, 780, 750, 760, 746],
            [488, 505, 512, 498, 510, 489, 492, 499, 494, 513],
        ),
        ("cifar2", [738, 714], [488, 505]),
        (
            "gtsrb_top10",
            [1977, 1747, 1599, 1404, 1196, 1579, 1900, 1968, 1396, 1638],
            [629, 615, 526, 461, 401, 480, 593, 661, 453, 526],
        ),
    ],
)
def test_the_npz_files_have_the_class_counts_of_their_source(name, train, test):
    dataset = load_dataset(name)
    for split, counts in ((dataset.train, train), (dataset.test, test)):
        assert split.images.shape == (sum(counts), 3, 32, 32)
        assert split.labels.bincount().tolist() == counts


@needs_data
@pytest.mark.parametrize("archive", [mnist.MNIST, mnist.FASHION_MNIST], ids=["mnist", "fashion_mnist"])
def test_the_checksums_accept_the_files_that_torchvision_downloads(archive):
    """torchvision lists the MD5 of the gzipped files; ours are of what they hold."""
    import torchvision

    for file, md5 in getattr(torchvision.datasets, archive.torchvision_name).resources:
        path = find_file(archive, Path(os.environ["ASSAY_DATA"]), file.removesuffix(".gz"))
        if path.suffix == ".gz":
            assert hashlib.md5(path.read_bytes()).hexdigest() == md5
        read_idx(path, archive.checksums[file.removesuffix(".gz")])
