"""Adversarial training with projected gradient descent (Madry et al. 2018), in Linf and in L2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import defense
from bench.datasets import Dataset, Split
from bench.norms import Norm
from bench.threat import project
from bench.training import Trainer

CITATION = (
    "Madry, Makelov, Schmidt, Tsipras & Vladu 2018, Towards deep learning models resistant to adversarial attacks"
)


@dataclass(frozen=True)
class Setting:
    """Net and schedule for one image size.

    Attributes:
        maps: feature maps of the two convolutions.
        kernel: their size; they keep the image size, and 2x2 max-pooling follows each.
        hidden: width of the fully connected layer.
        epsilon: radius of the training ball per norm, in pixel intensity.
        steps: PGD steps per batch.
        reach: length of the PGD run in radii of the ball: each step has length reach epsilon / steps.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: Adam's.
    """

    maps: tuple[int, int]
    kernel: int
    hidden: int
    epsilon: dict[Norm, float]
    steps: int
    reach: float
    epochs: int
    batch_size: int
    learning_rate: float


SETTINGS: dict[int, Setting] = {
    28: Setting(
        maps=(32, 64),
        kernel=5,
        hidden=1024,
        epsilon={"Linf": 0.3, "L2": 1.5},
        steps=4,
        reach=2.0,
        epochs=5,
        batch_size=64,
        learning_rate=1e-3,
    ),
    8: Setting(
        maps=(16, 32),
        kernel=3,
        hidden=64,
        epsilon={"Linf": 0.1, "L2": 0.5},
        steps=5,
        reach=2.5,
        epochs=25,
        batch_size=64,
        learning_rate=2e-3,
    ),
}
"""By image size: Madry et al.'s MNIST net at 28x28 with a short schedule (they take 40 steps of 0.01 and about 80
epochs), a proportionate one at 8x8."""
WARM_UP = 0.3
"""Share of training over which the ball grows from nothing to its full size: without it, training at 0.3 stalls."""


class AdversariallyTrained(nn.Module):
    """Two convolutions with max-pooling and two fully connected layers, trained on PGD adversarials only.

    Args:
        dataset: gives channels, classes and image size (one of `SETTINGS`).
        norm: of the ball that it is trained against, L2 or Linf.
    """

    def __init__(self, dataset: Dataset, norm: Norm) -> None:
        super().__init__()
        channels, size, _ = dataset.shape
        self.norm: Norm = norm
        self.setting = setting = SETTINGS[size]
        first, second = setting.maps
        self.net = nn.Sequential(
            nn.Conv2d(channels, first, setting.kernel, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, setting.kernel, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (size // 4) ** 2, setting.hidden),
            nn.ReLU(),
            nn.Linear(setting.hidden, dataset.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        output: Tensor = self.net(x)
        return output

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        output: Tensor = self.net(x)
        return output

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Minimises the cross-entropy on adversarial images, made anew for each batch, by Adam."""
        setting = self.setting

        def loss(x: Tensor, y: Tensor, done: float) -> Tensor:
            epsilon = setting.epsilon[self.norm] * min(1.0, done / WARM_UP)
            adversarial = perturb(self.net, x, y, self.norm, epsilon, setting.steps, setting.reach)
            return F.cross_entropy(self(adversarial), y)

        trainer.initialise(self)
        trainer.minimise(
            self.parameters(),
            loss,
            data,
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            learning_rate=setting.learning_rate,
        )


def perturb(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    norm: Norm,
    epsilon: float,
    steps: int,
    reach: float = 2.5,
) -> Tensor:
    """Adversarial images (N, C, H, W) in the ball around ``x`` by PGD from a random start: ascent of the cross-entropy
    along the sign of the gradient (Linf) or the gradient's direction (L2) by reach epsilon / steps, projected after
    each step."""
    noise = 2 * torch.rand_like(x) - 1 if norm == "Linf" else torch.randn_like(x)
    adversarial = project(x + epsilon * noise, x, norm, epsilon)
    for _ in range(steps):
        adversarial.requires_grad_(True)
        loss = F.cross_entropy(net(adversarial), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        direction = gradient.sign() if norm == "Linf" else F.normalize(gradient.flatten(1)).view_as(x)
        adversarial = project(adversarial.detach() + reach * epsilon / steps * direction, x, norm, epsilon)
    return adversarial


@defense("adv_linf", datasets=["digits", "mnist", "fashion_mnist"], citation=CITATION, version=2)
def adv_linf(dataset: Dataset) -> AdversariallyTrained:
    """Trained against Linf perturbations: up to 0.3 at 28x28, 0.1 at 8x8."""
    return AdversariallyTrained(dataset, "Linf")


@defense("adv_l2", datasets=["digits", "mnist", "fashion_mnist"], citation=CITATION, version=2)
def adv_l2(dataset: Dataset) -> AdversariallyTrained:
    """Trained against L2 perturbations: up to 1.5 at 28x28, 0.5 at 8x8."""
    return AdversariallyTrained(dataset, "L2")
