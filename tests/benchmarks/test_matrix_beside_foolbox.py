"""The embedded matrix beside a plain script that calls foolbox's attacks for each defense, in one process each."""

import math
import time
from dataclasses import dataclass

import foolbox
import numpy as np
import pandas as pd
import torch
from torch import nn

import bench
from bench.protocols import HasInputGradient
from bench.threat import distance

SAMPLES = 40
DEFENSES = ["cnn", "binary_cnn", "nearest_neighbour", "adv_linf", "adv_l2", "binary_abs", "abs"]
EPSILONS = [0.02 * 1.2**k for k in range(25)]
SALT_AND_PEPPER = foolbox.attacks.SaltAndPepperNoiseAttack(steps=1000)


@dataclass
class Plain:
    """One attack of the script: for foolbox's minimal attacks without epsilons, for bounded ones with a ladder."""

    norm: str
    attack: foolbox.attacks.base.Attack
    epsilons: list[float] | None = None


PLAIN = {
    "gaussian_noise": Plain(
        "L2",
        foolbox.attacks.L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack(repeats=10),
        [8 * k / 100 for k in range(1, 101)],
    ),
    "pointwise": Plain("L2", foolbox.attacks.PointwiseAttack(init_attack=SALT_AND_PEPPER)),
    "boundary": Plain("L2", foolbox.attacks.BoundaryAttack(steps=5000)),
    "fgm": Plain("L2", foolbox.attacks.L2FastGradientAttack(), [8 * e for e in EPSILONS]),
    "deepfool": Plain("L2", foolbox.attacks.L2DeepFoolAttack()),
    "bim": Plain("L2", foolbox.attacks.L2BasicIterativeAttack(), [8 * e for e in EPSILONS]),
    "pgd": Plain("L2", foolbox.attacks.L2PGD(), [8 * e for e in EPSILONS]),
    "fgsm": Plain("Linf", foolbox.attacks.LinfFastGradientAttack(), EPSILONS),
    "deepfool Linf": Plain("Linf", foolbox.attacks.LinfDeepFoolAttack()),
    "bim Linf": Plain("Linf", foolbox.attacks.LinfBasicIterativeAttack(), EPSILONS),
    "pgd Linf": Plain("Linf", foolbox.attacks.LinfPGD(), EPSILONS),
    "mim": Plain("Linf", foolbox.attacks.LinfMomentumIterativeFastGradientMethod(), EPSILONS),
    "salt_and_pepper": Plain("L0", SALT_AND_PEPPER),
    "pointwise_10x": Plain("L0", foolbox.attacks.PointwiseAttack(init_attack=SALT_AND_PEPPER)),
}


class Differentiable(nn.Module):
    """A defense as a script would hand it to foolbox, with its own derivative where it has one."""

    def __init__(self, defense):
        super().__init__()
        self.defense = defense

    def forward(self, x):
        if isinstance(self.defense, HasInputGradient) and x.requires_grad:
            return _OwnDerivative.apply(x, self.defense)
        return self.defense.logits(x)


class _OwnDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, defense):
        logits, ctx.vector_jacobian = defense.input_gradient(x)
        return logits

    @staticmethod
    def backward(ctx, cotangent):
        return ctx.vector_jacobian(cotangent), None


def plain_distances(defense, plain, x, y):
    model = foolbox.PyTorchModel(Differentiable(defense).eval(), bounds=(0, 1))
    torch.manual_seed(0)
    _, clipped, success = plain.attack(model, x, y, epsilons=plain.epsilons)
    if plain.epsilons is None:
        clipped, success = [clipped], success[None]
    found = torch.stack([distance(images, x, plain.norm) for images in clipped])
    return torch.where(success, found, torch.inf).amin(0)


def test_the_digits_matrix(benchmark, report, tmp_path):
    """Seconds of the whole matrix, with all attacks that foolbox lacks, judging and ledger, against the script's."""
    torch.set_num_threads(1)
    nets = {name: bench.load_defense(name, dataset="digits") for name in DEFENSES}
    frame = benchmark.pedantic(bench.run, ("digits",), {"out": tmp_path / "run", "workers": 1}, rounds=1)
    spent = benchmark.stats.stats.min
    test = bench.load_dataset("digits").test
    x, y = test.images[:SAMPLES], test.labels[:SAMPLES]
    frame = frame[frame["epsilon"].isna() & (frame["status"] != "clean_error")]
    own = np.select([frame["norm"] == "L0", frame["norm"] == "L2"], [frame["l0"], frame["l2"]], frame["linf"])
    ours = frame.assign(distance=own).groupby(["defense", "norm", "attack"])["distance"].median()
    theirs_spent, worse, rows = 0.0, [], []
    for name, defense in nets.items():
        right = defense.logits(x).argmax(1) == y
        for attack, plain in PLAIN.items():
            started = time.perf_counter()
            try:
                median = plain_distances(defense, plain, x[right], y[right]).median().item()
            except Exception as error:
                report(f"{attack} on {name}", f"foolbox raised {type(error).__name__}")
                median = math.inf
            theirs_spent += time.perf_counter() - started
            mine = ours[name, plain.norm, attack.split()[0]]
            rows.append((name, plain.norm, attack.split()[0], mine, median))
            if mine > 1.001 * median:
                worse.append(f"{attack} {plain.norm} on {name}: {mine:.3g} against {median:.3g}")
    print(pd.DataFrame(rows, columns=["defense", "norm", "attack", "ours", "foolbox"]).to_string())
    report(
        "digits matrix, one worker: foolbox script / ours",
        f"{theirs_spent / spent:.1f} ({theirs_spent:.0f} s / {spent:.0f} s)",
    )
    report("digits matrix: medians larger than foolbox's", f"{len(worse)} of {len(rows)}: " + "; ".join(worse))
    assert spent < theirs_spent
