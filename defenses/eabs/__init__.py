"""E-ABS and its ablations (Ju & Wagner 2020; Ju 2021, chapter 2): ABS with an adversarial autoencoder (A), a shared
encoder trained with a discriminative loss (D) and variational inference (V).

``eabs`` has all three. V changes inference alone, so four trainings serve eight models: ``eabs`` and ``ad_abs``,
``a_abs`` and ``av_abs``, ``d_abs`` and ``dv_abs``, ``abs:ju2020`` and ``v_abs``.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from bench import defense
from bench.datasets import Dataset, Split
from bench.protocols import Defense, VectorJacobian
from bench.randomness import RowStreams
from bench.training import Trainer
from defenses.abs.decoders import RELU
from defenses.abs.descent import AtPoint, NormalPrior, Objective, Objectives, Variational, divergence
from defenses.abs.model import LatentClassifier
from defenses.abs.search import Inference, Search, Starts, prior_draws
from defenses.abs.vae import side_by_side
from defenses.eabs.inference import DiscriminatorPenalty, folded_layers, prior_distributions
from defenses.eabs.networks import BETA, Autoencoders, Decoder
from defenses.eabs.settings import CITATION, DATASETS, Setting, Stage, noise_of, setting_of

BATCH_SIZE = 50
A, D, V = "adversarial autoencoder", "shared encoder and discriminative loss", "variational inference"
VERSION = 5
"""Of the cards of all that is trained with the discriminative loss; raising it trains them anew."""
member = partial(defense, datasets=DATASETS, citation=CITATION, batch_size=BATCH_SIZE, family="E-ABS")


def search_for(setting: Setting, *, from_encoder: bool) -> Search:
    """Effort of inference; the paper gives its starting points only. A squared error against beta times the divergence
    makes the likelihood's variance 1/2."""
    iterations = setting.iterations_from_encoder if from_encoder else setting.iterations
    return Search(starts=8000, iterations=iterations, learning_rate=0.05, variance=0.5, minimising=setting.iterations)


class ExtendedABS(LatentClassifier):
    """Inference in the latent spaces of trained autoencoders, at a point or (V) variational and then randomised.

    Args:
        dataset: gives classes and image size.
        autoencoders: trained, or to be trained.
        variational: optimise the mean and the deviation of a distribution of the latent (section 3.3).
    """

    def __init__(self, dataset: Dataset, autoencoders: Autoencoders, *, variational: bool) -> None:
        channels, size, _ = dataset.shape
        self.setting = setting_of(dataset)
        self.search = search_for(self.setting, from_encoder=variational and autoencoders.discriminative)
        super().__init__(channels * size**2, dataset.classes * self.search.iterations)
        self.autoencoders = autoencoders
        self.variational = variational
        self._penalty: DiscriminatorPenalty | None = None
        if variational:
            # Section 3.4 bounds an exact latent in place of a distribution.
            self.bound_caveat = ", of inference at the mean without draws"

    def make_inference(self) -> Inference:
        """See `LatentClassifier`."""
        parts, latent = self.autoencoders, self.setting.architecture.latent
        device = next(parts.parameters()).device
        self._penalty = DiscriminatorPenalty([*parts.discriminators]) if parts.adversarial else None
        if self.variational:
            parameters, latents = prior_distributions(self.search.starts, latent)
        else:
            parameters = latents = prior_draws(self.search.starts, latent)
        parameters, latents = parameters.to(device), latents.to(device)
        classes = [folded_layers(cast(Decoder, decoder)) for decoder in parts.decoders]
        starts = Starts(parameters, latents, self._penalties(parameters, latents))
        return Inference(classes, RELU, starts, self.search)

    def _penalties(self, parameters: Tensor, latents: Tensor) -> Tensor:
        """What starting points add to the squared error, (K, S) or (1, S)."""
        if self._penalty is None and self.variational:
            return BETA * divergence(parameters)[None]
        penalty = self._penalty or NormalPrior(self.search.variance)
        values = latents.new_zeros(max(1, len(self.autoencoders.discriminators)), len(latents))
        penalty.add_value(values, latents[None])
        return values

    def objective(
        self, classes: slice, rows: slice, *, slack: Tensor | None = None, penalised: bool = True
    ) -> Objective:
        """See `LatentClassifier`; without draws, a variational search is one for the mean."""
        if self.variational:
            noise = next(self.parameters()).new_zeros(1, 1, 1, 1).expand(self.search.longest, -1, -1, -1)
            return self._at_draws(classes, noise, slack, penalised)
        penalty = self._penalty.of(classes) if self._penalty else NormalPrior(self.search.variance)
        return AtPoint(penalty if penalised else NormalPrior(0.0), slack=slack)

    def noise(self, *rng: RowStreams) -> tuple[Tensor, ...]:
        """A standard normal draw for each iteration, class and image, (N, T, K, L), where inference is variational."""
        if not self.variational:
            return ()
        shape = (self.search.iterations, len(self.autoencoders.decoders), self.setting.architecture.latent)
        return (rng[0].normal(shape),)

    def infer_rows(self, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `LatentClassifier`."""
        if not noise:
            return super().infer_rows(seen)
        with torch.no_grad():
            proposals = self._proposals(seen)
        return self.inference().all_classes(seen, self._objectives(noise), proposals)

    def unrolled_gradient(self, x: Tensor, *rng: RowStreams) -> tuple[Tensor, VectorJacobian]:
        """Logits (N, K) and their exact derivative; see `bench.protocols.HasUnrolledGradient`."""
        noise = self.noise(*rng)
        propose = self._proposals if self.variational else None
        energies, derivatives = self.inference().unrolled(x, self._objectives(noise), propose)
        scale = -self.class_scales() / self.pixels
        return scale * energies, lambda cotangent: torch.einsum("nk,nkchw->nchw", scale * cotangent, derivatives)

    def _objectives(self, noise: tuple[Tensor, ...]) -> Objectives:
        """The objectives with the draws of `noise`, where there are any."""
        if not noise:
            return self.objective
        drawn = noise[0].movedim(0, 2).contiguous()
        return lambda classes, rows: self._at_draws(classes, drawn[:, classes, rows])

    def _at_draws(
        self, classes: slice, noise: Tensor, slack: Tensor | None = None, penalised: bool = True
    ) -> Variational:
        if self._penalty is None or not penalised:
            return Variational(NormalPrior(0.0), BETA if penalised else 0.0, noise, slack)
        return Variational(self._penalty.of(classes), 0.0, noise, slack)

    def _proposals(self, seen: Tensor, classes: slice = slice(None)) -> Tensor:
        """Parameters (K, N, 2 L) of the distributions that the encoders propose for a range of classes."""
        encoders = self.autoencoders.encoders
        encoded = [encoder(seen) for encoder in (encoders if len(encoders) == 1 else encoders[classes])]
        proposals = torch.stack([torch.cat([mean, 0.5 * log_variance], 1) for mean, log_variance in encoded])
        return proposals.expand(len(self.autoencoders.decoders[classes]), -1, -1)


class Trained(ExtendedABS):
    """One of the four that are trained.

    Args:
        dataset: gives classes, image size and noise.
        adversarial: A.
        discriminative: D.
        variational: V.
    """

    def __init__(self, dataset: Dataset, *, adversarial: bool, discriminative: bool, variational: bool = False) -> None:
        autoencoders = Autoencoders(
            setting_of(dataset).architecture,
            dataset.classes,
            dataset.shape,
            adversarial=adversarial,
            discriminative=discriminative,
            noise=noise_of(dataset),
        )
        super().__init__(dataset, autoencoders, variational=variational)
        # An encoder for each class does no more than propose one of thousands of starting points, and only to V; those
        # of 28x28 pixels and more would be most of the zoo.
        self.coarse = ("autoencoders.encoders.",) if dataset.shape[1] > 8 and not discriminative else ()

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Algorithm 1: encoders and decoders descend their loss, and the discriminators theirs, in turns."""
        self.forget_inference()
        parts, setting = self.autoencoders, self.setting
        trainer.initialise(self)
        if parts.discriminative:
            stages = setting.shared_on_gpu if trainer.device.type == "cuda" else setting.shared
        else:
            stages = (setting.apart,)
            images = side_by_side(data.images, data.labels, len(parts.decoders))
            data = Split(images, torch.arange(len(images)))
        # Nearly all of a step is decoding.
        decoded = [
            stage.epochs * (len(parts.decoders) if stage.rivals is None else 1 + stage.rivals) for stage in stages
        ]
        for stage, work in zip(stages, decoded, strict=True):
            self._minimise(trainer, data, stage, share=work / sum(decoded))

    def _minimise(self, trainer: Trainer, data: Split, stage: Stage, *, share: float) -> None:
        """A stage, which is a ``share`` of the training."""
        parts = self.autoencoders
        adversary = (parts.discriminators.parameters(), lambda x, y, done: parts.discriminator_loss(x, y))
        trainer.minimise(
            chain(parts.encoders.parameters(), parts.decoders.parameters()),
            lambda x, y, done: parts.loss(x, y, rivals=stage.rivals),
            data,
            epochs=stage.epochs,
            batch_size=stage.batch_size,
            learning_rate=stage.learning_rate,
            adversary=adversary if parts.adversarial else None,
            mixed_precision=True,
            recordable=stage.rivals is None,
            share=share,
        )


@member("eabs", randomized=True, version=VERSION, parts=(A, D, V))
def eabs(dataset: Dataset) -> Trained:
    """E-ABS: adversarial autoencoder, discriminative loss and variational inference."""
    return Trained(dataset, adversarial=True, discriminative=True, variational=True)


@member("abs:ju2020")
def plain(dataset: Dataset) -> Trained:
    """ABS with the networks of E-ABS."""
    return Trained(dataset, adversarial=False, discriminative=False)


@member("a_abs", parts=(A,))
def adversarial(dataset: Dataset) -> Trained:
    """ABS with adversarial autoencoders."""
    return Trained(dataset, adversarial=True, discriminative=False)


@member("d_abs", version=VERSION, parts=(D,))
def discriminative(dataset: Dataset) -> Trained:
    """ABS with a shared encoder and a discriminative loss."""
    return Trained(dataset, adversarial=False, discriminative=True)


@member("ad_abs", wraps="eabs", parts=(A, D))
def exact(dataset: Dataset, base: Defense) -> ExtendedABS:
    """E-ABS with inference at a point."""
    return _reused(dataset, base, variational=False)


@member("v_abs", randomized=True, wraps="abs:ju2020", parts=(V,))
def variational(dataset: Dataset, base: Defense) -> ExtendedABS:
    """ABS with variational inference."""
    return _reused(dataset, base, variational=True)


@member("av_abs", randomized=True, wraps="a_abs", parts=(A, V))
def adversarial_variational(dataset: Dataset, base: Defense) -> ExtendedABS:
    """ABS with adversarial autoencoders and variational inference."""
    return _reused(dataset, base, variational=True)


@member("dv_abs", randomized=True, wraps="d_abs", parts=(D, V))
def discriminative_variational(dataset: Dataset, base: Defense) -> ExtendedABS:
    """ABS with a shared encoder, a discriminative loss and variational inference."""
    return _reused(dataset, base, variational=True)


def _reused(dataset: Dataset, base: Defense, *, variational: bool) -> ExtendedABS:
    assert isinstance(base, ExtendedABS)
    return ExtendedABS(dataset, base.autoencoders, variational=variational)
