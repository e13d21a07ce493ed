"""Color images from npz files or torchvision."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import assert_one_line, needs_data

from bench.contracts.errors import UserError
from bench.datasets import dataset as datasets
from bench.datasets.dataset import load_dataset

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
