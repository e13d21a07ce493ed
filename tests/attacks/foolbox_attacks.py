"""What tests and benchmarks that call foolbox share."""

import foolbox
import numpy as np
import torch
from torch import Tensor, nn

from bench.contracts.norms import NORMS, NormName

LADDER = [0.02 * 1.12**k for k in range(46)]
"""46 epsilons from 0.02 to 3.3, that a script would try with a bounded attack; neighbors are 12 % apart."""
SALT_AND_PEPPER = foolbox.attacks.SaltAndPepperNoiseAttack(steps=1000)


def foolbox_distances(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: foolbox.attacks.base.Attack,
    norm: NormName,
    epsilons: list[float] | None = None,
) -> Tensor:
    """Distance (N,) of what a foolbox attack finds: the nearest of its results over ``epsilons``, if bounded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        _, clipped, success = attack(
            foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=epsilons
        )
    if epsilons is None:
        clipped, success = [clipped], success[None]
    found = torch.stack([NORMS[norm].distance(images, x) for images in clipped])
    return torch.where(success, found, torch.inf).amin(0)
