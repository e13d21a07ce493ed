"""A network of one's own, with its own normalization, as a plugin.

Run once, this file trains the network on scikit-learn's digits and writes ``my_net.pt`` beside itself. Then:

    assay check examples/my_net.py
    assay run digits --plugin examples/my_net.py --defenses my_net,cnn --out runs/mine
"""

from pathlib import Path

import torch
from torch import nn
from torchvision.transforms import Normalize

import bench
from bench import defense

WEIGHTS = Path(__file__).with_name("my_net.pt")


def architecture() -> nn.Module:
    """Returns the network. It expects normalized images (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 4 * 4, 10)
    )


@defense("my_net", datasets=["digits"])
def my_net() -> nn.Module:
    """Returns the trained network behind its normalization: images (N, 1, 8, 8) in [0, 1] to logits (N, 10)."""
    net = architecture()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return nn.Sequential(Normalize([0.3], [0.4]), net)


def train(steps: int = 200) -> nn.Module:
    """Returns the network after that many Adam steps on all training images."""
    torch.manual_seed(0)
    net, images = architecture(), bench.load_dataset("digits").train
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(Normalize([0.3], [0.4])(images.images)), images.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


if __name__ == "__main__":
    torch.save(train().state_dict(), WEIGHTS)
    print(f"Wrote {WEIGHTS}.")
