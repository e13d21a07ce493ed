"""The E-ABS paper's CNN baseline (Ju & Wagner 2020, section 4.3): E-ABS's encoder and a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from bench import defense
from bench.datasets.dataset import Dataset
from bench.datasets.split import Split
from bench.training.trainer import Trainer
from defenses.eabs.networks import convolutions, output_width
from defenses.eabs.settings import CITATION, DATASETS, noise_of, setting_of

COUNTED_AT_ONCE = 1000
"""Images per batch when the statistics of batch normalization are computed."""


class EncoderCNN(nn.Sequential):
    """E-ABS's convolutions and a linear layer to the logits."""

    def __init__(self, dataset: Dataset) -> None:
        setting, (channels, size, _) = setting_of(dataset), dataset.shape
        width = output_width(setting.architecture, size)
        super().__init__(convolutions(setting.architecture, channels), nn.Linear(width, dataset.classes))
        self.setting = setting
        self.noise = noise_of(dataset)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        output: Tensor = self(x)
        return output

    def fit(self, data: Split, trainer: Trainer) -> None:
        """Minimizes the cross-entropy on images with Gaussian noise.

        The statistics of batch normalization are then computed on clean images, because the net classifies clean images
        later.
        """
        trainer.initialize(self)
        trainer.minimize(
            self.parameters(),
            lambda x, y, done: F.cross_entropy(self(x + self.noise * torch.randn_like(x)), y),
            data,
            epochs=self.setting.cnn.epochs,
            batch_size=self.setting.cnn.batch_size,
            learning_rate=self.setting.cnn.learning_rate,
            recordable=True,
        )
        update_bn(torch.split(data.images, COUNTED_AT_ONCE), self, trainer.device)


@defense("cnn:ju2020", datasets=DATASETS, citation=CITATION, version=3)
def cnn(dataset: Dataset) -> EncoderCNN:
    """The CNN of the E-ABS paper, trained with Gaussian noise."""
    return EncoderCNN(dataset)
