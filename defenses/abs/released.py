"""Analysis by synthesis with the authors' weights: ``abs:schott2019`` and ``binary_abs:schott2019``."""

from __future__ import annotations

import torch

from bench import defense
from bench.contracts.errors import UserError
from bench.datasets.dataset import Dataset
from bench.training.weights import check_shapes, load_tensors
from defenses.abs import BATCH_SIZE, CITATION, THRESHOLD, VERSION, AnalysisBySynthesis

RELEASED_WEIGHTS = "weights/schott2019_abs.safetensors"
"""Path of the authors' weights, relative to the data folder."""
PRUNING = ((0, 25.0), (3, 18.0), (6, 15.0), (8, 12.0), (11, 11.0), (15, 10.0), (21, 8.0), (30, 7.5), (40, 4.0))
BINARY_PRUNING = (
    (0, 25.0),
    (3, 20.0),
    (6, 17.0),
    (8, 16.0),
    (11, 15.0),
    (15, 13.0),
    (21, 8.0),
    (30, 7.5),
    (40, 4.0),
)
"""Pruning gaps for the authors' weights, with plain and with binarized inputs. Each gap is at least 1.6 times the
largest lag of a class that won in the end. The lags were measured on a few hundred inputs of each kind: clean images,
points at decision boundaries, and noise."""
RELEASED_GAMMA = (1.0, 0.96, 1.001, 1.06, 0.98, 0.96, 1.03, 1.0, 1.0, 1.0)
"""Binary ABS's class scalars for the authors' weights (appendix A.7)."""


@defense("abs:schott2019", datasets=["mnist"], citation=CITATION, batch_size=BATCH_SIZE, version=VERSION)
def released_analysis_by_synthesis(dataset: Dataset) -> AnalysisBySynthesis:
    """ABS with the authors' weights."""
    return _released(dataset, binary=False)


@defense(
    "binary_abs:schott2019",
    datasets=["mnist"],
    citation=CITATION,
    batch_size=BATCH_SIZE,
    binarization_threshold=THRESHOLD,
    version=VERSION,
)
def released_binary_analysis_by_synthesis(dataset: Dataset) -> AnalysisBySynthesis:
    """Binary ABS with the authors' weights and class scalars."""
    return _released(dataset, binary=True)


def _released(dataset: Dataset, *, binary: bool) -> AnalysisBySynthesis:
    """Returns ABS with the weights in ``<data_dir>/weights/schott2019_abs.safetensors``.

    Raises:
        UserError: when there is no data folder, or the file is missing, corrupt or does not fit.
    """
    if dataset.data_dir is None:
        raise UserError(f"no data folder to read {RELEASED_WEIGHTS} from; set --data-dir or ASSAY_DATA")
    path = dataset.data_dir / RELEASED_WEIGHTS
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; set --data-dir or ASSAY_DATA to the folder that has it")
    model = AnalysisBySynthesis(dataset, binary=binary, gaps={"plain": PRUNING, "binarized": BINARY_PRUNING})
    tensors = {name: tensor for name, tensor in load_tensors(path).items() if ".Encoder." not in name}
    released = {ours: _released_names(ours, dataset.classes) for ours in model.state_dict() if _is_released(ours)}
    own = model.state_dict()
    check_shapes(
        {
            theirs: (own[ours].shape[0] // dataset.classes, *own[ours].shape[1:])
            for ours, names in released.items()
            for theirs in names
        },
        tensors,
        path,
    )
    state = {ours: torch.cat([tensors[theirs] for theirs in names]) for ours, names in released.items()}
    model.load_state_dict(state, strict=False)
    model.gamma.copy_(torch.tensor(RELEASED_GAMMA if binary else [1.0] * dataset.classes))
    return model


def _is_released(ours: str) -> bool:
    return ours.startswith("decoder.") and not ours.endswith("num_batches_tracked")


def _released_names(ours: str, classes: int) -> list[str]:
    """Names of the authors' tensors (``3.Decoder.conv_0.weight``), one per class, that one of our tensors holds."""
    rest = ours.removeprefix("decoder.").replace("convolutions.", "conv_").replace("normalisations.", "bn_")
    return [f"{c}.Decoder.{rest}" for c in range(classes)]
