"""Decoders that the compiled kernel evaluates: descents in latent spaces, one image and one class at a time.

The results equal those of `defenses.abs.descent` within rounding. A row's result does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.abs.built import Kernel
from defenses.abs.energies import Ends, Energy, Steps

ACTIVATIONS = {"relu": 0, "elu": 1}
MOST_LAYERS, MOST_LATENTS = 8, 64


class _Layer(Structure):
    _fields_ = tuple((name, c_int32) for name in ("channels", "kernel", "stride", "padding"))


class _Decoder(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("latent", "activation", "size", "channels", "layers")),
        ("layer", _Layer * MOST_LAYERS),
    )


class _Objective(Structure):
    _fields_ = (
        *((name, c_float) for name in ("variance", "most_norm", "divergence", "discriminator_weight", "leak")),
        *((name, c_int32) for name in ("first", "second")),
        *((name, c_int64) for name in ("network_step", "noise_step")),
        *((name, c_void_p) for name in ("network", "slack", "noise")),
    )


class _Problem(Structure):
    _fields_ = (
        ("classes", c_int64),
        ("images", c_int64),
        ("learning_rate", c_float),
        *((name, c_void_p) for name in ("weights", "x", "p", "wanted")),
        ("objective", _Objective),
    )


_STATE = 2 * 2 + 4 * 2 * MOST_LATENTS + 2
"""Number of 4-byte values that the kernel keeps of a class while it decides."""


@dataclass(frozen=True)
class Convolution:
    """Sizes of a transposed convolution."""

    channels: int
    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        latent: dimension L of the latent space.
        activation: a key of `ACTIVATIONS`.
        size: edge length of the dense layer's output, in pixels.
        channels: channels of the dense layer's output.
        layers: the transposed convolutions that follow.
    """

    latent: int
    activation: str
    size: int
    channels: int
    layers: Sequence[Convolution]

    def fits(self) -> bool:
        """Returns whether the kernel has room for this decoder."""
        return self.latent <= MOST_LATENTS and 1 <= len(self.layers) <= MOST_LAYERS

    @property
    def weights(self) -> int:
        """Number of weights and biases."""
        total, channels = (self.latent + 1) * self.size**2 * self.channels, self.channels
        for layer in self.layers:
            total += layer.channels * (channels * layer.kernel**2 + 1)
            channels = layer.channels
        return total

    def structure(self) -> _Decoder:
        """Returns the sizes as the kernel reads them."""
        layers = [_Layer(layer.channels, layer.kernel, layer.stride, layer.padding) for layer in self.layers]
        filled = (_Layer * MOST_LAYERS)(*layers)
        return _Decoder(self.latent, ACTIVATIONS[self.activation], self.size, self.channels, len(self.layers), filled)


class CompiledDecoders:
    """Decoders G_c(z) of K classes, evaluated by the kernel on a CPU.

    Args:
        shape: sizes of the decoders, which fit.
        weights: weights of each class (K, W): the dense matrix (L, size, size, channels) and its bias, then each
            convolution (in, out, k, k) and its bias.
        kernel: the kernel that evaluates them.
    """

    def __init__(self, shape: Shape, weights: Tensor, kernel: Kernel) -> None:
        if not shape.fits() or weights.shape[1] != shape.weights:
            raise ValueError(f"{shape} does not fit the kernel, or its weights {tuple(weights.shape)}")
        self.kernel, self.shape, self._decoder = kernel, shape, shape.structure()
        floats, scratch = c_int64(), c_int64()
        kernel.function("sizes")(byref(self._decoder), byref(floats), byref(scratch))
        self._scratch = scratch.value
        size = shape.size
        for layer in shape.layers:
            size = (size - 1) * layer.stride + layer.kernel - 2 * layer.padding
        self._pixels = size**2 * shape.layers[-1].channels
        self._weights = torch.zeros(len(weights), floats.value)
        for natural, packed in zip(weights.contiguous(), self._weights, strict=True):
            kernel.function("pack")(byref(self._decoder), _Address(natural), _Address(packed))

    def minimize(self, classes: slice, energy: Energy, x: Tensor, p: Tensor, steps: Steps) -> Ends:
        """Does what `defenses.abs.descent.Descent.minimize` does.

        Args:
            classes: range of K classes.
            energy: what is minimized, besides the squared error.
            x: images as rows (N, D).
            p: parameters (K, N, P) to start from.
            steps: how the search goes on.

        Equal rows, with which verdicts fill up their batches, are searched once.
        """
        if energy.slack is None and energy.noise is None and len(x) == p.shape[1] > 1:
            first, back = _distinct(torch.cat([x, p.transpose(0, 1).flatten(1)], 1))
            if len(first) < len(x):
                ends = self.minimize(classes, energy, x[first], p[:, first], steps)
                return Ends(ends.values[:, back], ends.decoded[back], ends.p[:, back])
        ends = Ends(p.new_empty(p.shape[:2]), x.new_empty(len(x), len(p), x.shape[1]), _copied(p))
        self._minimize(self._problem(classes, energy, x, ends.p, steps.learning_rate), energy, steps, ends)
        return ends

    def resume(self, energy: Energy, x: Tensor, ends: Ends, wanted: Tensor, steps: Steps) -> Ends:
        """Goes on from where other searches ended, for the wanted pairs of all K classes and images.

        Args:
            energy: what is minimized, besides the squared error.
            x: images as rows (N, D).
            ends: the ends of all pairs.
            wanted: True (K, N) for the pairs that go on. The others keep their ends.
            steps: how the search goes on.
        """
        moved = Ends(_copied(ends.values), _copied(ends.decoded), _copied(ends.p))
        problem = self._problem(slice(None), energy, x, moved.p, steps.learning_rate)
        mask = wanted.to(torch.uint8).contiguous()
        problem.structure.wanted = _Address(mask)
        self._minimize(problem, energy, steps, moved)
        return moved

    def differentiate(self, classes: slice, energy: Energy, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the values (K, N) at parameters (K, N, P), and their derivatives (K, N, P)."""
        ends = Ends(p.new_empty(p.shape[:2]), x.new_empty(len(x), len(p), x.shape[1]), _copied(p))
        derivatives = torch.empty_like(ends.p)
        self._minimize(self._problem(classes, energy, x, ends.p, 0.0), energy, Steps(0.0, 1), ends, derivatives)
        return ends.values, derivatives

    def _minimize(
        self, problem: _Prepared, energy: Energy, steps: Steps, ends: Ends, derivatives: Tensor | None = None
    ) -> None:
        """Runs a problem and writes what comes of it into the ends, and the derivatives there."""
        if energy.noise is not None and len(energy.noise) < steps.evaluations:
            raise ValueError(f"{len(energy.noise)} draws do not suffice for {steps.evaluations} evaluations")
        outputs = [None if tensor is None else _Address(tensor) for tensor in (ends.values, ends.decoded, derivatives)]
        memory = _Address(self._memory(energy))
        self.kernel.function("minimize")(
            byref(self._decoder), byref(problem.structure), steps.evaluations, *outputs, memory
        )

    def decide(
        self,
        energy: Energy,
        x: Tensor,
        p: Tensor,
        energies: Tensor,
        scale: Tensor,
        gaps: Sequence[float],
        learning_rate: float,
    ) -> Decided:
        """Decides for the classes of least scaled energy.

        Args:
            energy: what is minimized, besides the squared error. It has no draws.
            x: images as rows (N, D).
            p: parameters (K, N, P) to start from, for all K classes.
            energies: the values there (K, N).
            scale: factors (K,) of the energies.
            gaps: one for each evaluation, the last of which takes no step. After that many steps, a class is given up
                if its scaled energy exceeds the least one by more than the gap; infinity gives up none.
            learning_rate: learning rate of Adam.
        """
        if energy.noise is not None:
            raise ValueError("decisions have no draws")
        problem = self._problem(slice(None), energy, x, _copied(p), learning_rate)
        known, taken = energies.clone(), torch.zeros(energies.shape, dtype=torch.int32)
        decisions = torch.empty(len(x), dtype=torch.int64)
        states = torch.empty(len(p), _STATE)
        limits, scales = torch.tensor(gaps, dtype=torch.float32), scale.float().contiguous()
        self.kernel.function("decide")(
            byref(self._decoder),
            byref(problem.structure),
            len(gaps),
            *map(_Address, (scales, limits, known, taken, decisions, states)),
            _Address(self._memory(energy)),
        )
        return Decided(decisions, known.T, taken.T)

    def _problem(self, classes: slice, energy: Energy, x: Tensor, p: Tensor, learning_rate: float) -> _Prepared:
        """Returns a problem that moves the parameters ``p`` in place."""
        weights, x = self._weights[classes], x.contiguous()
        held = [weights, x, p]
        count, images = len(p), len(x)
        parameters = self.shape.latent * (1 if energy.noise is None else 2)
        if p.shape != (len(weights), images, parameters) or x.shape[1] != self._pixels:
            raise ValueError(f"parameters {tuple(p.shape)} and images {tuple(x.shape)} do not fit the decoders")
        networks = energy.discriminators
        if networks is not None and networks.packed.shape not in ((1, networks.size), (count, networks.size)):
            raise ValueError(f"discriminators {tuple(networks.packed.shape)} do not fit {count} classes")
        if energy.slack is not None and energy.slack.shape != (images, 1):
            raise ValueError(f"slack {tuple(energy.slack.shape)} does not fit {images} images")
        objective = _Objective(variance=energy.variance, most_norm=energy.most_norm, divergence=energy.divergence)
        if networks is not None:
            objective.first, objective.second = networks.widths
            objective.discriminator_weight, objective.leak = networks.weight, networks.leak
            objective.network = _Address(networks.packed)
            objective.network_step = networks.size if len(networks.packed) > 1 else 0
            held.append(networks.packed)
        if energy.slack is not None:
            slack = energy.slack[:, 0].contiguous()
            objective.slack = _Address(slack)
            held.append(slack)
        if energy.noise is not None:
            noise = energy.noise.expand(-1, count, images, self.shape.latent).contiguous()
            objective.noise, objective.noise_step = _Address(noise), noise[0].numel()
            held.append(noise)
        structure = _Problem(count, images, learning_rate, *map(_Address, (weights, x, p)), None, objective)
        return _Prepared(structure, held)

    def _memory(self, energy: Energy) -> Tensor:
        """Returns scratch memory for one call: zeros, as calls may run at the same time."""
        hidden = 0 if energy.discriminators is None else sum(energy.discriminators.widths)
        return torch.zeros(self._scratch + 2 * hidden)


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the places of the first of equal rows (N, D), and for each row which of these places is its own (N,)."""
    back: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    places = torch.arange(len(rows))
    return torch.full_like(places[: int(back.amax()) + 1], len(rows)).scatter_reduce_(0, back, places, "amin"), back


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Decided:
    """What a decision by the kernel found out about N images.

    Attributes:
        classes: the decisions (N,) int64.
        energies: the last known scaled energies (N, K); stale for classes that were given up.
        evaluations: number of evaluations (N, K) int32.
    """

    classes: Tensor
    energies: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class _Prepared:
    """A problem as the kernel reads it, and all tensors that it points to."""

    structure: _Problem
    held: Sequence[Tensor]


class _Address(c_void_p):
    """The address of a contiguous tensor's memory, which lives as long as its address."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous()
        assert not tensor.is_cuda
        if tensor.dtype == torch.float64:
            raise ValueError("the kernel computes in float32")
        super().__init__(tensor.data_ptr())
        self.tensor = tensor
