"""E-ABS and its ablations (Ju & Wagner 2020; Ju 2021, chapter 2).

E-ABS extends ABS with an adversarial autoencoder (A), a shared encoder trained with a discriminative loss (D) and
variational inference (V). ``eabs`` has all three. V changes only inference, so four trainings serve eight models:
``eabs`` and ``ad_abs``, ``a_abs`` and ``av_abs``, ``d_abs`` and ``dv_abs``, ``abs:ju2020`` and ``v_abs``.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from bench import defense
from bench.contracts.protocols import Defense
from bench.contracts.streams import RowStreams
from bench.datasets.dataset import Dataset
from bench.datasets.split import Split
from bench.training.trainer import Trainer
from defenses.abs.decoders import RELU
from defenses.abs.descent import AtPoint, NormalPrior, Objective, Objectives, Variational, divergence
from defenses.abs.model import LatentClassifier
from defenses.abs.search import Inference, Search
from defenses.abs.starts import Starts, prior_draws
from defenses.abs.vae import side_by_side
from defenses.eabs.inference import DiscriminatorPenalty, folded_layers, prior_distributions
from defenses.eabs.networks import BETA, Autoencoders, Decoder
from defenses.eabs.settings import CITATION, DATASETS, Setting, Stage, noise_of, setting_of

BATCH_SIZE = 50
A, D, V = "adversarial autoencoder", "shared encoder and discriminative loss", "variational inference"
VERSION = 5
"""Card version of the defenses trained with the discriminative loss. A higher version trains them again."""
DEFENSE_NAMES = ("eabs", "abs:ju2020", "a_abs", "d_abs", "ad_abs", "v_abs", "av_abs", "dv_abs")
"""The names that `member` declares below (see `bench.plugins.scan`)."""
member = partial(defense, datasets=DATASETS, citation=CITATION, batch_size=BATCH_SIZE, family="E-ABS")


def search_for(setting: Setting, *, from_encoder: bool) -> Search:
    """Returns the effort of inference. The paper gives only the starting points.

    The likelihood has variance 1/2, because the squared error is weighed against beta times the divergence.
    """
    iterations = setting.iterations_from_encoder if from_encoder else setting.iterations
    return Search(starts=8000, iterations=iterations, learning_rate=0.05, variance=0.5, minimizing=setting.iterations)


class ExtendedABS(LatentClassifier):
    """A classifier by inference in the latent spaces of autoencoders. Variational inference (V) is randomized.

    Args:
        dataset: gives the number of classes and the image size.
        autoencoders: trained, or to be trained.
        variational: optimize the mean and the deviation of a latent distribution (section 3.3), instead of a point.
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
            # Section 3.4 derives the bound for a single latent instead of a distribution.
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
        return Inference(classes, RELU, starts, self.search, self.kernel())

    def _penalties(self, parameters: Tensor, latents: Tensor) -> Tensor:
        """Penalties (K, S) or (1, S) that the starting points add to the squared error."""
        if self._penalty is None and self.variational:
            return BETA * divergence(parameters)[None]
        penalty = self._penalty or NormalPrior(self.search.variance)
        values = latents.new_zeros(max(1, len(self.autoencoders.discriminators)), len(latents))
        penalty.add_value(values, latents[None])
        return values

    def objective(
        self, classes: slice, rows: slice, *, slack: Tensor | None = None, penalized: bool = True
    ) -> Objective:
        """See `LatentClassifier`. Variational inference uses zero noise here, so it searches for the mean."""
        if self.variational:
            noise = next(self.parameters()).new_zeros(1, 1, 1, 1).expand(self.search.longest, -1, -1, -1)
            return self._at_draws(classes, noise, slack, penalized)
        penalty = self._penalty.of(classes) if self._penalty else NormalPrior(self.search.variance)
        return AtPoint(penalty if penalized else NormalPrior(0.0), slack=slack)

    def noise(self, *rng: RowStreams) -> tuple[Tensor, ...]:
        """Standard normal draws (N, T, K, L) per image, iteration and class, or none without variational inference."""
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

    def unrolled_rows(self, seen: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `LatentClassifier`."""
        propose = self._proposals if self.variational else None
        return self.inference().unrolled(seen, self._objectives(noise), propose)

    def _objectives(self, noise: tuple[Tensor, ...]) -> Objectives:
        """Returns the objectives at the draws ``noise``, or those without draws if ``noise`` is empty."""
        if not noise:
            return self.objective
        drawn = noise[0].movedim(0, 2).contiguous()
        return lambda classes, rows: self._at_draws(classes, drawn[:, classes, rows])

    def _at_draws(
        self, classes: slice, noise: Tensor, slack: Tensor | None = None, penalized: bool = True
    ) -> Variational:
        if self._penalty is None or not penalized:
            return Variational(NormalPrior(0.0), BETA if penalized else 0.0, noise, slack)
        return Variational(self._penalty.of(classes), 0.0, noise, slack)

    def _proposals(self, seen: Tensor, classes: slice = slice(None)) -> Tensor:
        """Parameters (K, N, 2 L) of the latent distributions that the encoders propose for a range of classes."""
        encoders = self.autoencoders.encoders
        encoded = [encoder(seen) for encoder in (encoders if len(encoders) == 1 else encoders[classes])]
        proposals = torch.stack([torch.cat([mean, 0.5 * log_variance], 1) for mean, log_variance in encoded])
        return proposals.expand(len(self.autoencoders.decoders[classes]), -1, -1)


class Trained(ExtendedABS):
    """One of the four models that are trained.

    Args:
        dataset: gives the number of classes, the image size and the noise.
        adversarial: adversarial autoencoder (A).
        discriminative: shared encoder and discriminative loss (D).
        variational: variational inference (V).
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
        # Without D, an encoder only proposes one of thousands of starting points, and only to V. At 28x28 pixels and
        # above, these encoders would be most of the zoo.
        self.coarse = ("autoencoders.encoders.",) if dataset.shape[1] > 8 and not discriminative else ()

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Trains by Algorithm 1: the autoencoders and the discriminators take turns in minimizing their losses."""
        self.forget_inference()
        parts, setting = self.autoencoders, self.setting
        trainer.initialize(self)
        if parts.discriminative:
            stages = setting.shared_on_gpu if trainer.device.type == "cuda" else setting.shared
        else:
            stages = (setting.apart,)
            images = side_by_side(data.images, data.labels, len(parts.decoders))
            data = Split(images, torch.arange(len(images)))
        # Decoding takes nearly all the time of a step.
        decoded = [
            stage.epochs * (len(parts.decoders) if stage.rivals is None else 1 + stage.rivals) for stage in stages
        ]
        for stage, work in zip(stages, decoded, strict=True):
            self._minimize(trainer, data, stage, share=work / sum(decoded))

    def _minimize(self, trainer: Trainer, data: Split, stage: Stage, *, share: float) -> None:
        """Runs one stage, a ``share`` in [0, 1] of the training."""
        parts = self.autoencoders
        adversary = (parts.discriminators.parameters(), lambda x, y, done: parts.discriminator_loss(x, y))
        trainer.minimize(
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
