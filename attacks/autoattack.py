"""AutoAttack and FAB (Croce & Hein 2020) by the package pyautoattack, which is the authors' code.

The library's attacks and checks are called one by one, not through its ``run_standard_evaluation``, one of whose checks
ends in ``sys.settrace(None)``. Where they warn of a defense, a remark goes into the ledger: a sentence of ours, since
theirs holds numbers of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pyautoattack import checks
from pyautoattack.autoattack import AutoAttack
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor

from attacks.gradients import steepest, to_spread
from attacks.lines import bisect
from bench.cards import attack
from bench.errors import unknown
from bench.norms import of_norm
from bench.oracle import Oracle
from bench.parameters import Count, Natural
from bench.threat import project

Version = Literal["standard", "rand"]
RANDOMIZED = "the outputs change from pass to pass"
PROBABILITIES = "the outputs look like probabilities, not logits"
ZERO_GRADIENTS = "APGD met gradients that are zero"
SQUARE_BREAKS = "Square broke images that the attacks with gradients had left"


@attack(
    "autoattack",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["bounded"],
    stochastic=True,
    library=True,
    budget=15000,
    citation="Croce & Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse "
    "parameter-free attacks",
)
def autoattack(oracle: Oracle, x: Tensor, y: Tensor, *, version: Version = "standard", queries: Count = 5000) -> Tensor:
    """The ensemble, each attack on what the ones before it left: APGD on the cross-entropy, targeted APGD and FAB on
    the 9 likeliest wrong classes, Square with ``queries``; or, as ``rand`` for randomised defenses, APGD on two losses
    with gradients averaged over 20 calls."""
    if version not in get_args(Version):
        raise unknown("version", version, get_args(Version), where="attack 'autoattack'")
    epsilon = oracle.threat.epsilon
    assert epsilon is not None
    module = oracle.as_module()
    with seeded(oracle) as seed:
        if version == "standard":
            checks.check_randomized(module, x, y, logger=Remark(oracle, RANDOMIZED))
        checks.check_range_output(module, x, logger=Remark(oracle, PROBABILITIES))
        library = AutoAttack(
            Scaled(module), norm=oracle.threat.norm, eps=epsilon, seed=seed, version=version, device=x.device
        )
        library.apgd_targeted.n_target_classes = library.fab.n_target_classes = min(9, oracle.classes - 1)
        library.square.n_queries = queries
        library.apgd.logger = library.apgd_targeted.logger = Remark(oracle, ZERO_GRADIENTS)
        accuracies: dict[str, float] = {}
        for name in possible(version, oracle.classes, oracle.threat.norm, min(x.shape[2:])):
            ids = oracle.ids[~oracle.found]
            if not len(ids):
                break
            draws = oracle.draws
            # The library averages over calls by itself.
            oracle.draws = 1 if version == "rand" else draws
            candidates = member(library, name)(x[ids], y[ids])
            oracle.draws = draws
            hand_in(oracle, x[ids], candidates, ids)
            accuracies[name] = float((~oracle.found).float().mean())
        checks.check_square_sr(accuracies, logger=Remark(oracle, SQUARE_BREAKS))
    return oracle.closest(farthest(oracle, x))


def possible(version: str, classes: int, norm: str, side: int) -> list[str]:
    """The members of a version of AutoAttack that are defined for so many classes and images of so many pixels a side:
    the DLR loss compares the 3 largest logits, the targeted one 4, and Square in L2 tiles the image with 5 x 5
    squares."""
    if version == "rand":
        return ["apgd-ce"] + ["apgd-dlr"] * (classes >= 3)
    return ["apgd-ce"] + ["apgd-t"] * (classes >= 4) + ["fab-t"] + ["square"] * of_norm(norm, L2=side >= 5, Linf=True)


def member(library: AutoAttack, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """One attack of the ensemble, set up as the library's ``run_standard_evaluation`` does it."""
    library.apgd.loss = "dlr" if name == "apgd-dlr" else "ce"
    library.fab.targeted = True
    attacks = {"apgd-t": library.apgd_targeted, "fab-t": library.fab, "square": library.square}
    perturb: Callable[[Tensor, Tensor], Tensor] = attacks.get(name, library.apgd).perturb
    return perturb


@attack(
    "fab",
    norms=["L2", "Linf"],
    access="gradient",
    kinds=["minimal", "bounded"],
    stochastic=True,
    library=True,
    budget=6000,
    citation="Croce & Hein 2020, Minimally distorted adversarial examples with a fast adaptive boundary attack",
)
def fab(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 50,
    targets: Count = 9,
    restarts: Count = 2,
    bisections: Natural = 10,
) -> Tensor:
    """FAB towards each of the ``targets`` likeliest wrong classes, from the clean image and then from random ones.

    The paper's final search on the way from the clean image, which the library lacks, is ``bisections`` halvings.
    """
    with seeded(oracle):
        library = FABAttack_PT(
            Scaled(oracle.as_module()),
            norm=oracle.threat.norm,
            n_iter=steps,
            eps=oracle.threat.epsilon,
            device=x.device,
        )
        for restart in range(restarts):
            for target in range(min(targets, oracle.classes - 1)):
                ids = oracle.ids if oracle.threat.epsilon is None else oracle.ids[~oracle.found]
                if not len(ids):
                    break
                library.target_class = target + 2  # the library counts from the likeliest class, from 1
                candidates = library.attack_single_run(x[ids], y[ids], use_rand_start=restart > 0, is_targeted=True)
                hand_in(oracle, x[ids], candidates, ids)
    hit = oracle.ids[oracle.found]
    bisect(oracle, x[hit], oracle.closest(x)[hit], y[hit], hit, bisections)
    return oracle.closest(farthest(oracle, x))


class Scaled(torch.nn.Module):
    """A module whose logits (N, K) have the standard deviation `attacks.gradients.SPREAD` in each row.

    The library adds absolute constants to what it divides by, which rule where logits or their derivatives are tiny.
    Decisions and decision boundaries are the module's.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The scaled logits of images (N, C, H, W)."""
        logits: Tensor = self.module(x)
        return logits * to_spread(logits)


@dataclass(frozen=True)
class Remark:
    """Stands in for the library's logger: whatever it warns of becomes this ``text`` among the oracle's remarks."""

    oracle: Oracle
    text: str

    def warning(self, message: str) -> None:
        """Called by the library."""
        self.oracle.remarks.append(self.text)


@contextmanager
def seeded(oracle: Oracle) -> Iterator[int]:
    """Torch's global generator, the only one that the library draws from, seeded by a draw of the chunk's first sample,
    and its state restored afterwards. Gives the seed."""
    seed = int(2**24 * float(oracle.random.uniform(oracle.ids[:1], ())))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield seed


def hand_in(oracle: Oracle, x: Tensor, candidates: Tensor, ids: Tensor) -> None:
    """Shows the oracle what the library found (N, C, H, W), pulled into the ball, out of which rounding pushes it;
    rows that it left at the clean image ``x`` are its failures."""
    if oracle.threat.epsilon is not None:
        candidates = project(candidates, x, oracle.threat.norm, oracle.threat.epsilon)
    moved = (candidates != x).flatten(1).any(1)
    if moved.any():
        oracle.decision(candidates[moved], ids[moved])


def farthest(oracle: Oracle, x: Tensor) -> Tensor:
    """What failures hand in (n, C, H, W): all pixels moved towards their far ends, within the ball."""
    radius = 1.0 if oracle.threat.epsilon is None else oracle.threat.epsilon
    step = radius * steepest(torch.zeros_like(x), x, oracle.threat.norm)
    return project(x + step, x, oracle.threat.norm, radius)
