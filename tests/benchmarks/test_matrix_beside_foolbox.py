"""The embedded matrix, on the defenses that all its attacks are for, beside a plain script that calls foolbox's attacks
for each of them, in one process each.

The script has the attacks that foolbox has, at foolbox's defaults but for Boundary (5000 steps) and PGD (40); bounded
ones on a ladder of epsilons. The matrix has more: estimated gradients, Latent Descent, bounded PGD. Foolbox's Pointwise
starts from the best of 1000 tries and stands beside ours with ten repetitions.
"""

import time
import warnings
from dataclasses import dataclass

import foolbox
import numpy as np
import pandas as pd
import torch
from foolbox_attacks import LADDER, SALT_AND_PEPPER, foolbox_distances
from torch import nn

import bench
from bench.contracts.protocols import HasInputGradient

SAMPLES = 40
LINF_LADDER = [epsilon for epsilon in LADDER if epsilon <= 1]
DEFENSES = ["cnn", "binary_cnn", "nearest_neighbour", "adv_linf", "adv_l2", "binary_abs", "abs"]


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
    "pointwise_10x L2": Plain("L2", foolbox.attacks.PointwiseAttack(init_attack=SALT_AND_PEPPER)),
    "boundary": Plain("L2", foolbox.attacks.BoundaryAttack(steps=5000)),
    "fgm": Plain("L2", foolbox.attacks.L2FastGradientAttack(), LADDER),
    "deepfool": Plain("L2", foolbox.attacks.L2DeepFoolAttack()),
    "bim": Plain("L2", foolbox.attacks.L2BasicIterativeAttack(), LADDER),
    "pgd": Plain("L2", foolbox.attacks.L2PGD(steps=40), LADDER),
    "fgsm": Plain("Linf", foolbox.attacks.LinfFastGradientAttack(), LINF_LADDER),
    "deepfool Linf": Plain("Linf", foolbox.attacks.LinfDeepFoolAttack()),
    "bim Linf": Plain("Linf", foolbox.attacks.LinfBasicIterativeAttack(), LINF_LADDER),
    "pgd Linf": Plain("Linf", foolbox.attacks.LinfPGD(steps=40), LINF_LADDER),
    "mim": Plain("Linf", foolbox.attacks.LinfMomentumIterativeFastGradientMethod(), LINF_LADDER),
    "salt_and_pepper": Plain("L0", SALT_AND_PEPPER),
    "pointwise_10x L0": Plain(
        "L0", foolbox.attacks.PointwiseAttack(init_attack=SALT_AND_PEPPER, l2_binary_search=False)
    ),
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


def test_the_digits_matrix(benchmark, report, tmp_path, device):
    """Seconds of their part of the matrix, with judging and ledger, against the script's; medians of both."""
    nets = {name: bench.load_defense(name, dataset="digits", device=device.type) for name in DEFENSES}
    options = {"defenses": DEFENSES, "out": tmp_path / "run", "runner": "serial", "device": device.type}
    frame = benchmark.pedantic(bench.run, ("digits",), options, rounds=1)
    whole = benchmark.stats.stats.min
    assert not frame["status"].isin(["failed", "violation"]).any()
    test = bench.load_dataset("digits").test
    x, y = test.images[:SAMPLES].to(device), test.labels[:SAMPLES].to(device)
    both = {(label.split()[0], plain.norm) for label, plain in PLAIN.items()}
    frame = frame[frame["epsilon"].isna()]
    spent = frame[[pair in both for pair in zip(frame["attack"], frame["norm"], strict=True)]]["seconds"].sum()
    frame = frame[frame["status"] != "clean_error"]
    own = np.select([frame["norm"] == "L0", frame["norm"] == "L2"], [frame["l0"], frame["l2"]], frame["linf"])
    ours = frame.assign(distance=own).groupby(["defense", "norm", "attack"])["distance"].median()
    theirs_spent, errors, rows = 0.0, [], []
    for name, defense in nets.items():
        right = defense.logits(x).argmax(1) == y
        model = Differentiable(defense).eval()
        for label, plain in PLAIN.items():
            attack = label.split()[0]
            started = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    theirs = foolbox_distances(model, x[right], y[right], plain.attack, plain.norm, plain.epsilons)
                # Not torch's median, which is the lower of two in the middle.
                median = pd.Series(theirs.cpu().numpy()).median()
                rows.append((name, plain.norm, attack, ours[name, plain.norm, attack], median))
            except Exception as error:
                errors.append(f"{label} on {name}: {type(error).__name__}")
            theirs_spent += time.perf_counter() - started
    table = pd.DataFrame(rows, columns=["defense", "norm", "attack", "ours", "foolbox"])
    print(table.to_string())
    larger = table[table["ours"] > 1.01 * table["foolbox"]]
    report(f"digits matrix, {device.type}, the attacks that foolbox has: script / ours", f"{theirs_spent / spent:.1f}")
    report("  seconds of all of ours, of these, of the script", f"{whole:.0f}, {spent:.0f}, {theirs_spent:.0f}")
    report(
        "  medians larger than 1.01 times foolbox's",
        f"{len(larger)} of {len(table)}; foolbox raised {len(errors)} times",
    )
    assert spent < theirs_spent, errors
