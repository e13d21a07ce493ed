"""Defenses: a card, ``logits(x)``, and optional capabilities that are detected by protocol.

A factory may return a ``torch.nn.Module``. `as_defense` turns it into a defense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bench.contracts.cards import DefenseCard
from bench.contracts.errors import DefenseFault
from bench.contracts.norms import NormName
from bench.contracts.streams import RowStreams, Streams

VectorJacobian = Callable[[Tensor], Tensor]
"""Maps a cotangent on the logits (N, K) to the gradient on the images (N, C, H, W); may be called repeatedly."""


class Defense(Protocol):
    """A classifier under test.

    ``logits`` maps images (N, C, H, W), float32 in [0, 1], to logits (N, K), float32. The logits are never
    probabilities. Each row is independent of the others. A randomized defense takes ``logits(x, rng)`` with
    `bench.contracts.streams.RowStreams`.
    """

    card: DefenseCard

    @property
    def logits(self) -> Callable[..., Tensor]:
        """Maps images to logits. A randomized defense also takes its streams."""

    def to(self, device: torch.device | str) -> Any:
        """Moves the defense to a device, in place."""


@runtime_checkable
class HasInputGradient(Protocol):
    """A defense that computes its own derivative because autograd cannot."""

    def input_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """Returns the logits at ``x``, and the function that multiplies cotangents with their Jacobian there.

        A randomized defense is called with ``(x, rng)``, as its ``logits`` are. It holds the draw fixed in the product.
        """


@runtime_checkable
class HasUnrolledGradient(Protocol):
    """A defense that optimizes at inference and can also differentiate through this optimization.

    It has an ``input_gradient`` as well, or logits that autograd can differentiate.
    """

    def unrolled_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """Does the same as `HasInputGradient.input_gradient`, but exactly wherever the logits are smooth.

        No step of the optimization is held fixed. Draws are. A binarized defense goes straight through the threshold.
        """


@runtime_checkable
class HasDecision(Protocol):
    """A deterministic defense that can decide without computing all logits."""

    def decide(self, x: Tensor) -> Tensor:
        """Returns the classes (N,) int64 of the largest logits of images (N, C, H, W).

        Attacks that query decisions get these classes. The engine's verdict always uses ``logits``.
        """


@runtime_checkable
class HasReconstruction(Protocol):
    """A generative defense, whose reconstructions are the direction of Latent Descent."""

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the reconstruction (N, C, H, W) of each row of ``x`` under its class in ``y`` (N,)."""


@runtime_checkable
class HasDecodedImage(Protocol):
    """A defense with an autoencoder that knows no classes."""

    def decoded(self, x: Tensor) -> Tensor:
        """Returns the reconstruction (N, C, H, W) of each row of ``x``."""


@dataclass(frozen=True)
class LowerBound:
    """Distances within which a defense claims that images have no adversarial example.

    Attributes:
        values: one distance per image, (N,); 0 or less where the defense claims nothing.
        certificate: whether the bound is proved. Otherwise it is an estimate that relies on a numeric minimum.
        note: basis of the bound: the number of starts of an estimate, the confidence of a certificate.
    """

    values: Tensor
    certificate: bool
    note: str = ""


@runtime_checkable
class HasLowerBound(Protocol):
    """A defense that bounds the distance to its nearest adversarial example."""

    bound_norms: tuple[NormName, ...]
    """The norms in which it has a bound."""

    def lower_bound(self, x: Tensor, y: Tensor, norm: NormName, streams: Streams) -> LowerBound:
        """Returns lower bounds on the distance of each image in ``x`` (N, C, H, W) to its nearest adversarial example.

        An adversarial example is an image that is not assigned the row's class in ``y`` (N,). ``streams`` has one
        random stream per row.
        """


@runtime_checkable
class HasCoarseWeights(Protocol):
    """A trainable defense that can store some of its weights in a zoo at low precision."""

    coarse: tuple[str, ...]
    """Prefixes of the names of these weights."""


@runtime_checkable
class HasDetectionScore(Protocol):
    """A defense that detects adversarial examples, whether or not it classifies them correctly."""

    def detection_score(self, x: Tensor) -> Tensor:
        """Returns a score (N,) for images (N, C, H, W). Adversarial examples are expected to have larger scores.

        The score is differentiable in ``x`` by autograd, so that attacks can evade it. The user chooses the threshold.
        """


class WarmAnswers(Protocol):
    """What a defense remembers of the samples of one attack, to answer queries about images near earlier ones.

    Attributes:
        evaluations: number of evaluations (S,) float64 so far, summed over classes, as in `HasInnerSteps`.
    """

    evaluations: Tensor

    def at(self, samples: Tensor, wanted: Tensor) -> Defense:
        """Returns a defense whose rows are images of ``samples`` (N,).

        It gives logits and, where the defense does, gradients, decisions and reconstructions. Its answers may be
        approximate. They start from what was remembered before the last `settle`. The attack needs the answers for the
        classes in ``wanted`` (N, M) most, which may repeat.
        """

    def settle(self) -> None:
        """Ends a query: from now on, each sample is remembered by its last row."""

    def forget(self, samples: Tensor) -> None:
        """Makes the next answers about ``samples`` (N,) start from nothing."""


@runtime_checkable
class HasWarmAnswers(Protocol):
    """A defense that optimizes at inference, and can answer faster about images near those that it was asked about."""

    def warm_answers(self, samples: int) -> WarmAnswers:
        """Returns an empty memory of this number of samples."""


@runtime_checkable
class HasInnerSteps(Protocol):
    """A defense that optimizes at inference."""

    inner_steps: int
    """Number of optimization steps per image and forward pass, summed over classes. For ``decide``, an upper bound."""


@runtime_checkable
class HasCalibration(Protocol):
    """A defense with limits that are measured when its weights are known, such as those at which it gives up early."""

    @property
    def calibration(self) -> dict[str, Any]:
        """The limits in use, as JSON; empty for none. They are stored in the checkpoint's card, and in ids of cells."""

    def calibrate(self, data: Any) -> dict[str, Any]:
        """Returns limits measured on a `bench.datasets.split.Split` of training images."""

    def use(self, calibration: Mapping[str, Any]) -> None:
        """Takes limits into use."""


@runtime_checkable
class HasArithmetic(Protocol):
    """A defense that is computed in different ways on different machines. The ways are equal within rounding."""

    @property
    def arithmetic(self) -> str:
        """Name of the way in which this machine computes it. It is stored with every result, and is part of its id."""


@runtime_checkable
class Trainable(Protocol):
    """A defense that is trained on first use. Its state is then cached (see `bench.training.trainer`)."""

    def fit(self, data: Any, trainer: Any) -> None:
        """Learns from a `bench.datasets.split.Split` with the given `bench.training.trainer.Trainer`."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the learned tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restores the learned tensors."""


class ModuleDefense:
    """A plain ``torch.nn.Module`` as a defense: in evaluation mode, with frozen parameters, its output as logits."""

    def __init__(self, card: DefenseCard, module: nn.Module) -> None:
        self.card = card
        self.module = _frozen(module)

    def logits(self, x: Tensor, rng: RowStreams | None = None) -> Tensor:
        """Returns the module's output for images ``x``. A randomized module is called with ``(x, rng)``."""
        output: Tensor = self.module(x, rng) if self.card.randomized else self.module(x)
        return output

    def to(self, device: torch.device | str) -> ModuleDefense:
        """Moves the module to a device, in place."""
        self.module.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Returns the module's tensors."""
        return self.module.state_dict()


def as_defense(card: DefenseCard, made: Any) -> Defense:
    """Returns a factory's product as a defense with this card.

    Raises:
        DefenseFault: when the product has no ``logits`` and is no ``torch.nn.Module``.
    """
    if isinstance(made, torch.export.ExportedProgram):
        made = made.module()
    logits = getattr(made, "logits", None)
    # A layer named logits takes features, not images.
    if callable(logits) and not isinstance(logits, nn.Module):
        made.card = card
        if isinstance(made, nn.Module):
            _frozen(made)
        if not hasattr(made, "to"):
            made.to = lambda device: made
        defense: Defense = made
        return defense
    if isinstance(made, nn.Module):
        return ModuleDefense(card, made)
    raise DefenseFault(
        f"defense {card.name!r}: its factory returned {type(made).__name__}; "
        "it must return a torch.nn.Module or an object with logits(x)"
    )


def _frozen(module: nn.Module) -> nn.Module:
    """Returns the module in evaluation mode, with parameters that need no gradient."""
    try:
        module.eval()
    except NotImplementedError:
        # An exported program stays in the mode in which it was exported.
        for part in module.modules():
            part.training = False
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def fingerprint(defense: Defense) -> str:
    """Returns a hash of the tensors in the defense's ``state_dict``, if it has one, for cell identities."""
    digest = hashlib.sha256()
    state: dict[str, Any] = getattr(defense, "state_dict", dict)()
    for key in sorted(state):
        _digest(digest, key, state[key])
    return digest.hexdigest()[:16]


def _digest(digest: hashlib._Hash, key: str, value: object) -> None:
    """Adds a state's value to the digest: a tensor of any kind, a container of such values, or a plain value."""
    if isinstance(value, Mapping):
        for name in sorted(value):
            _digest(digest, f"{key}.{name}", value[name])
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            _digest(digest, f"{key}.{i}", item)
    elif not isinstance(value, Tensor):
        digest.update(json.dumps([key, repr(value)]).encode())
    elif value.is_quantized:
        _digest(digest, key, value.dequantize())
    elif value.layout != torch.strided:
        sparse = value.detach().to_sparse(layout=torch.sparse_coo).coalesce()
        _digest(digest, key, [sparse.indices(), sparse.values(), list(sparse.shape)])
    else:
        # NumPy lacks bfloat16 and float8, so numbers of all dtypes are hashed as bytes.
        array = value.detach().resolve_conj().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(json.dumps([key, str(value.dtype).removeprefix("torch."), list(value.shape)]).encode())
        digest.update(array.data)


def offers(defense_card: DefenseCard, defense: object, access: str) -> str | None:
    """Returns None if the defense can answer an attack with this access, otherwise the reason why not."""
    order = ("decision", "score", "gradient")
    if access == "transfer":
        return None
    if access == "latent":
        return None if isinstance(defense, HasReconstruction) else "has no reconstructions"
    if access == "unrolled":
        if not isinstance(defense, HasUnrolledGradient):
            return "gives no gradient through an optimization"
        access = "gradient"
    if order.index(access) <= order.index(defense_card.access):
        return None
    return f"gives {defense_card.access} access only"
