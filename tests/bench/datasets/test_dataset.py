"""Datasets are found, downloaded once, and refused where they break their card."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import assert_one_line, idx, needs_data

from bench.contracts.errors import UserError
from bench.datasets import dataset as datasets
from bench.datasets import mnist
from bench.datasets.archives import Archive
from bench.datasets.catalog import DATASETS
from bench.datasets.dataset import load_dataset
from bench.datasets.files import find_file, read_idx
from bench.datasets.split import Split


def test_hash_is_of_images_and_labels():
    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])
    reference = Split(images, labels).hash
    assert reference == hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]
    assert Split(images.flip(0), labels).hash != reference
    assert Split(images, labels.flip(0)).hash != reference


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
@pytest.mark.parametrize("archive", [mnist.MNIST, mnist.FASHION_MNIST], ids=["mnist", "fashion_mnist"])
def test_the_checksums_accept_the_files_that_torchvision_downloads(archive):
    """torchvision lists the MD5 of the gzipped files; ours are of what they hold."""
    import torchvision

    for file, md5 in getattr(torchvision.datasets, archive.torchvision_name).resources:
        path = find_file(archive, Path(os.environ["ASSAY_DATA"]), file.removesuffix(".gz"))
        if path.suffix == ".gz":
            assert hashlib.md5(path.read_bytes()).hexdigest() == md5
        read_idx(path, archive.checksums[file.removesuffix(".gz")])
