"""AutoAttack and FAB (Croce & Hein 2020), by the authors' code in the package pyautoattack.

The library's attacks and checks are called one by one. The library's ``run_standard_evaluation`` is not used, because
one of its checks ends in ``sys.settrace(None)``. Where the library warns of a defense, a remark goes into the ledger.
The remark is our own sentence, because the library's sentences hold numbers of one chunk.
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

from attacks.parts.gradients import steepest, to_spread
from attacks.parts.lines import tightened
from bench.contracts.cards import attack
from bench.contracts.errors import unknown
from bench.contracts.norms import of_norm
from bench.contracts.oracle import Oracle
from bench.contracts.parameters import Count, Natural

Version = Literal["standard", "rand"]
RANDOMIZED = "the outputs change from pass to pass"
PROBABILITIES = "the outputs look like probabilities, not logits"
BEYOND = 0.02
"""How far behind a candidate its distance is tried again, as a share of it."""
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
    short={"queries": 50},
)
def autoattack(oracle: Oracle, x: Tensor, y: Tensor, *, version: Version = "standard", queries: Count = 5000) -> Tensor:
    """Runs the ensemble, each attack on the samples that the attacks before it left.

    ``standard`` runs APGD on the cross-entropy, targeted APGD and FAB on the 9 likeliest wrong classes, and Square with
    ``queries``. ``rand``, for randomized defenses, runs APGD on two losses with gradients averaged over 20 calls.
    """
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
            Scaled(module), norm=oracle.threat.norm.name, eps=epsilon, seed=seed, version=version, device=x.device
        )
        library.apgd_targeted.n_target_classes = library.fab.n_target_classes = min(9, oracle.classes - 1)
        library.square.n_queries = queries
        library.apgd.logger = library.apgd_targeted.logger = Remark(oracle, ZERO_GRADIENTS)
        accuracies: dict[str, float] = {}
        for name in possible(version, oracle.classes, oracle.threat.norm.name, min(x.shape[2:])):
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
    """Returns a version's attacks that are defined for ``classes`` classes and images of ``side`` pixels a side.

    The DLR loss compares the 3 largest logits, the targeted DLR loss the 4 largest. In L2, Square tiles the image with
    5 x 5 squares.
    """
    if version == "rand":
        return ["apgd-ce"] + ["apgd-dlr"] * (classes >= 3)
    return ["apgd-ce"] + ["apgd-t"] * (classes >= 4) + ["fab-t"] + ["square"] * of_norm(norm, L2=side >= 5, Linf=True)


def member(library: AutoAttack, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns one attack of the ensemble, set up as in the library's ``run_standard_evaluation``."""
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
    short={"steps": 10},
    approximation_ratio={"L2": (1.002, 1.15), "Linf": (1.01, 1.1)},
)
def fab(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 50,
    targets: Count = 9,
    restarts: Count = 2,
    binary_search_steps: Natural = 10,
) -> Tensor:
    """Runs FAB towards each of the ``targets`` likeliest wrong classes, from the clean image and then at random starts.

    The library lacks the paper's final search on the segment from the clean image. Here, ``binary_search_steps``
    halvings replace that search.
    """
    with seeded(oracle):
        library = FABAttack_PT(
            Scaled(oracle.as_module()),
            norm=oracle.threat.norm.name,
            n_iter=steps,
            eps=oracle.threat.epsilon,
            device=x.device,
        )
        for restart in range(restarts):
            for target in range(min(targets, oracle.classes - 1)):
                ids = oracle.ids if oracle.threat.epsilon is None else oracle.ids[~oracle.found]
                if not len(ids):
                    break
                library.target_class = target + 2  # the library ranks classes from the likeliest, which is 1
                candidates = library.attack_single_run(x[ids], y[ids], use_rand_start=restart > 0, is_targeted=True)
                hand_in(oracle, x[ids], candidates, ids)
    return tightened(oracle, x, farthest(oracle, x), binary_search_steps)


class Scaled(torch.nn.Module):
    """A module whose logits (N, K) have the standard deviation `attacks.parts.gradients.SPREAD` in each row.

    The library adds absolute constants to its denominators. These constants dominate where logits or their derivatives
    are tiny. Scaling keeps the module's decisions and decision boundaries.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled logits (N, K) of images (N, C, H, W)."""
        logits: Tensor = self.module(x)
        return logits * to_spread(logits)


@dataclass(frozen=True)
class Remark:
    """Stands in for the library's logger: each warning adds this ``text`` to the oracle's remarks."""

    oracle: Oracle
    text: str

    def warning(self, message: str) -> None:
        """Adds the text to the oracle's remarks, in place of the library's ``message``."""
        self.oracle.remarks.append(self.text)


@contextmanager
def seeded(oracle: Oracle) -> Iterator[int]:
    """Seeds torch's global generator from a draw of the chunk's first sample, and restores its state afterwards.

    The library draws from no other generator. Yields the seed.
    """
    seed = int(2**24 * float(oracle.random.uniform(oracle.ids[:1], ())))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield seed


def hand_in(oracle: Oracle, x: Tensor, candidates: Tensor, ids: Tensor) -> None:
    """Shows the library's candidates (N, C, H, W) to the oracle.

    Candidates are first projected into the ball, because rounding pushes them out. Without a ball, a candidate that is
    not adversarial is shown again a little farther out, because it lies on the boundary that the library saw, which is
    not the boundary itself where answers are random or approximate. Rows that the library left at the clean image ``x``
    are failures and are not shown.
    """
    if oracle.threat.epsilon is not None:
        candidates = oracle.threat.norm.project(candidates, x, oracle.threat.epsilon)
    moved = (candidates != x).flatten(1).any(1)
    if not moved.any():
        return
    x, candidates, ids = x[moved], candidates[moved], ids[moved]
    missed = ~oracle.adversarial(candidates, ids)
    if oracle.threat.epsilon is None and missed.any():
        oracle.decision(torch.lerp(x, candidates, 1 + BEYOND)[missed].clamp(0, 1), ids[missed])


def farthest(oracle: Oracle, x: Tensor) -> Tensor:
    """Returns the candidates (n, C, H, W) of failures: all pixels moved towards their far ends, within the ball."""
    radius = 1.0 if oracle.threat.epsilon is None else oracle.threat.epsilon
    step = radius * steepest(torch.zeros_like(x), x, oracle.threat.norm)
    return oracle.threat.norm.project(x + step, x, radius)
