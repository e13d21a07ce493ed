"""Reads files of candidates from outside."""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.contracts.errors import UserError
from bench.datasets.dataset import Dataset


@dataclass(frozen=True)
class Candidates:
    """The candidates of a file.

    Attributes:
        label: name of the attack in the ledger: ``imported:``, the file's name and the first digits of its digest.
        images: images (C, H, W) float32, by the sample's index in the test set.
        digest: digest of the file's arrays.
        stretched: True if the candidates are also post-processed and moved outward, like an attack's.
    """

    label: str
    images: dict[int, Tensor]
    digest: str
    stretched: bool = False


def read_candidates(path: Path, dataset: Dataset, samples: int, *, stretched: bool = False) -> Candidates:
    """Reads candidates from a file of NumPy arrays (npz).

    ``adversarials`` (N, C, H, W) holds floats in [0, 1]. ``samples`` (N,) holds integer indices in the test set. The
    default is 0 to N - 1. Candidates beyond the run's samples are left out.

    Raises:
        UserError: when the file is missing or not an npz file, or when its arrays do not fit the dataset.
    """
    try:
        with zipfile.ZipFile(path):  # np.load accepts other files, too
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # zipfile, zlib and NumPy each raise their own errors on a broken file
        raise UserError(f"{path}: not an npz file of plain arrays ({type(error).__name__}: {error})") from None
    if "adversarials" not in arrays:
        raise UserError(f"{path}: has no array 'adversarials', but {', '.join(arrays) or 'none at all'}")
    images = arrays["adversarials"]
    if images.shape[1:] != dataset.shape or not np.issubdtype(images.dtype, np.floating):
        wanted = f"floats (N, {', '.join(map(str, dataset.shape))})"
        raise UserError(f"{path}: adversarials are {images.dtype} {images.shape}; {dataset.name} needs {wanted}")
    indices = arrays.get("samples", np.arange(len(images)))
    available = len(dataset.test.labels)
    if indices.shape != (len(images),) or not np.issubdtype(indices.dtype, np.integer):
        found = f"{indices.dtype} {indices.shape}"
        raise UserError(f"{path}: samples are {found}; one integer for each adversarial is needed")
    if len(set(indices.tolist())) < len(indices):
        raise UserError(f"{path}: samples holds an index twice")
    if len(indices) and not 0 <= indices.min() <= indices.max() < available:
        ends = f"from {indices.min()} to {indices.max()}"
        raise UserError(f"{path}: samples go {ends}; the test set has {available} images")
    known = {i: torch.from_numpy(x.astype(np.float32)) for i, x in zip(indices.tolist(), images, strict=True)}
    stem = re.sub(r"[^a-z0-9_]+", "_", path.stem.lower())
    digest = hashlib.sha256(images.tobytes() + indices.tobytes()).hexdigest()[:16]
    label = f"imported:{stem}_{digest[:6]}" + ("_stretched" if stretched else "")
    return Candidates(label, {i: x for i, x in known.items() if i < samples}, digest, stretched)


def range_seen(candidates: Candidates) -> str:
    """Returns the range of the candidates' values as text, with a hint if values lie outside [0, 1]."""
    values = torch.stack(list(candidates.images.values()))
    if not torch.isfinite(values).all():
        return "some values are not finite"
    low, high = float(values.min()), float(values.max())
    if low >= 0 and 2 < high <= 255:
        hint = "; divide by 255?"
    elif low < 0 or high > 1:
        hint = "; undo the normalization?"
    else:
        hint = ""
    return f"values from {low:.3g} to {high:.3g}, allowed are 0 to 1{hint}"
