"""What a defense is: a card, ``logits(x)``, and optional capabilities that are found by protocol.

A factory may return a ``torch.nn.Module``; `as_defense` turns it into a defense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bench.cards import DefenseCard
from bench.errors import DefenseFault
from bench.norms import Norm
from bench.randomness import RowStreams, Streams

VectorJacobian = Callable[[Tensor], Tensor]
"""Maps a cotangent on the logits (N, K) to the gradient on the images (N, C, H, W); may be called repeatedly."""


class Defense(Protocol):
    """A classifier under test.

    ``logits`` maps images (N, C, H, W), float32 in [0, 1], to logits (N, K), float32, never probabilities, with each
    row independent of the others. A randomised defense takes ``logits(x, rng)`` with `bench.randomness.RowStreams`.
    """

    card: DefenseCard

    @property
    def logits(self) -> Callable[..., Tensor]:
        """Maps images, and for a randomised defense its streams, to logits."""

    def to(self, device: torch.device | str) -> Any:
        """Moves the defense to a device, in place."""


@runtime_checkable
class HasInputGradient(Protocol):
    """A defense that computes its own derivative, where autograd has none to give."""

    def input_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """The logits at ``x`` and the function that multiplies cotangents with their Jacobian there; a randomised
        defense is called with ``(x, rng)``, as its ``logits`` are, and holds the draw fixed in the product."""


@runtime_checkable
class HasUnrolledGradient(Protocol):
    """A defense that optimises at inference, with a derivative through that too, beside its ``input_gradient``."""

    def unrolled_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """As `HasInputGradient.input_gradient`, but exact wherever the logits are smooth: no step of the optimisation
        is held fixed."""


@runtime_checkable
class HasDecision(Protocol):
    """A deterministic defense that can decide without computing all logits."""

    def decide(self, x: Tensor) -> Tensor:
        """The classes (N,) int64 of the largest logits of images (N, C, H, W).

        Attacks that ask for decisions get these; the engine's verdict is always taken on ``logits``.
        """


@runtime_checkable
class HasReconstruction(Protocol):
    """A generative defense: what Latent Descent walks towards."""

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """The reconstruction (N, C, H, W) of each row of ``x`` under the class in ``y`` (N,)."""


@runtime_checkable
class HasDecodedImage(Protocol):
    """A defense with an autoencoder that knows no classes."""

    def decoded(self, x: Tensor) -> Tensor:
        """The reconstruction (N, C, H, W) of each row of ``x``."""


@dataclass(frozen=True)
class LowerBound:
    """Distances within which images have no adversarial, as far as their defense knows.

    Attributes:
        values: one per image, (N,); 0 or less where there is nothing to say.
        certificate: it is proved; otherwise an estimate that trusts a numeric minimum.
        note: what it rests on: the number of starts of an estimate, the confidence of a certificate.
    """

    values: Tensor
    certificate: bool
    note: str = ""


@runtime_checkable
class HasLowerBound(Protocol):
    """A defense that bounds the distance to its nearest adversarial."""

    bound_norms: tuple[Norm, ...]
    """The norms it can do that in."""

    def lower_bound(self, x: Tensor, y: Tensor, norm: Norm, streams: Streams) -> LowerBound:
        """Bounds on the distance from each image of ``x`` (N, C, H, W) to the nearest one that is not given its class
        in ``y`` (N,); ``streams`` has one random stream per row."""


@runtime_checkable
class HasCoarseWeights(Protocol):
    """A trainable defense some of whose weights need little precision in a zoo."""

    coarse: tuple[str, ...]
    """How their names begin."""


@runtime_checkable
class HasDetectionScore(Protocol):
    """A defense that suspects adversarials, whether or not it classifies them correctly."""

    def detection_score(self, x: Tensor) -> Tensor:
        """How suspicious each of the images (N, C, H, W) is, (N,); the larger, the more likely it is adversarial.

        Differentiable in ``x`` by autograd, so that attacks can evade it; what is a high score is left to the user.
        """


@runtime_checkable
class HasInnerSteps(Protocol):
    """A defense that optimises at inference."""

    inner_steps: int
    """Optimisation steps per image and forward pass, summed over classes; for ``decide`` an upper bound."""


@runtime_checkable
class Trainable(Protocol):
    """A defense that is trained on first use; its state is then cached (see `bench.training`)."""

    def fit(self, data: Any, trainer: Any) -> None:
        """Learns from a `bench.datasets.Split` with the `bench.training.Trainer` given."""

    def state_dict(self) -> dict[str, Any]:
        """The learned tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes the learned tensors back."""


class ModuleDefense:
    """A plain ``torch.nn.Module`` as a defense: evaluation mode, parameters frozen, output taken as logits."""

    def __init__(self, card: DefenseCard, module: nn.Module) -> None:
        self.card = card
        self.module = _frozen(module)

    def logits(self, x: Tensor, rng: RowStreams | None = None) -> Tensor:
        """The module's output for images ``x``; a randomised module is called with ``(x, rng)``."""
        output: Tensor = self.module(x, rng) if self.card.randomized else self.module(x)
        return output

    def to(self, device: torch.device | str) -> ModuleDefense:
        """Moves the module to a device, in place."""
        self.module.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The module's tensors."""
        return self.module.state_dict()


def as_defense(card: DefenseCard, made: Any) -> Defense:
    """Returns what a factory returned, as a defense with this card.

    Raises:
        DefenseFault: when it is neither an object with ``logits`` nor a ``torch.nn.Module``.
    """
    if isinstance(made, torch.export.ExportedProgram):
        made = made.module()
    logits = getattr(made, "logits", None)
    # A layer of that name takes features, not images.
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
    """Returns the module, in evaluation mode and with parameters that need no gradient."""
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
    """Returns a hash of the defense's tensors (its ``state_dict``, where it has one), for cell identities."""
    digest = hashlib.sha256()
    state: dict[str, Any] = getattr(defense, "state_dict", dict)()
    for key in sorted(state):
        _digest(digest, key, state[key])
    return digest.hexdigest()[:16]


def _digest(digest: hashlib._Hash, key: str, value: object) -> None:
    """Adds what a state holds under a key: a tensor of any kind, a container of such values, or a plain value."""
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
        # NumPy knows neither bfloat16 nor float8: all kinds of numbers are hashed as bytes.
        array = value.detach().resolve_conj().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(json.dumps([key, str(value.dtype).removeprefix("torch."), list(value.shape)]).encode())
        digest.update(array.data)


def offers(defense_card: DefenseCard, defense: object, access: str) -> str | None:
    """None when the defense can answer an attack with this access, otherwise the reason why not."""
    order = ("decision", "score", "gradient")
    if access == "transfer":
        return None
    if access == "latent":
        return None if isinstance(defense, HasReconstruction) else "has no reconstructions"
    if access == "unrolled":
        if not isinstance(defense, HasUnrolledGradient):
            return "gives no gradient through an optimisation"
        access = "gradient"
    if order.index(access) <= order.index(defense_card.access):
        return None
    return f"gives {defense_card.access} access only"
