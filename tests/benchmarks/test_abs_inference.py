"""The released ABS beside a plain version of it: one class after the other, autograd, torch's Adam; in one thread."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from measuring import NO_GPU, finish, float32_peak, seconds
from released_abs import classify
from torch import Tensor

import bench
from defenses.abs import SETTINGS, AnalysisBySynthesis
from defenses.abs.descent import MAX_NORM
from defenses.abs.starts import prior_draws
from defenses.abs.vae import Decoder

SETTING = SETTINGS[28]
MAC_DECODER = 8 * 512 + 16 * (32 * 16 + 121 * 16) * 25 + 625 * 16 * 16
"""Multiplications that one decoding needs: layer by layer, inputs times maps times kernel."""


@dataclass
class Plain:
    """Inference as the authors' code does it, but for the sign of clipped latents."""

    decoders: list[Decoder]
    starts: Tensor
    grids: list[Tensor]

    @classmethod
    def of(cls, model: AnalysisBySynthesis) -> "Plain":
        starts = prior_draws(SETTING.search.starts, SETTING.architecture.latent)
        decoders = []
        for c in range(10):
            decoder = Decoder(SETTING.architecture, 1).eval()
            state = model.decoder.state_dict()
            decoder.load_state_dict({k: v.chunk(10)[c] if v.dim() else v for k, v in state.items()})
            decoders.append(decoder)
        with torch.no_grad():
            grids = [torch.cat([decoder(z[:, None]) for z in starts.split(500)]).flatten(1) for decoder in decoders]
        return cls(decoders, starts, grids)

    def logits(self, x: Tensor) -> Tensor:
        energies = [self._minimize(c, x) for c in range(10)]
        return -torch.stack(energies, 1) / 784

    def _minimize(self, c: int, x: Tensor) -> Tensor:
        decoder, variance = self.decoders[c], SETTING.search.variance
        prior = variance * self.starts.square().sum(1)
        nearest = (torch.cdist(x.flatten(1), self.grids[c]).square() + prior).argmin(1)
        z = self.starts[nearest][:, None].clone().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=SETTING.search.learning_rate)

        def energy() -> Tensor:
            return (x[:, None] - decoder(z)).square().flatten(1).sum(1) + variance * z.square().flatten(1).sum(1)

        for _ in range(SETTING.search.iterations - 1):
            adam.zero_grad()
            energy().sum().backward()
            adam.step()
            with torch.no_grad():
                z.mul_((MAX_NORM / z.norm(dim=2, keepdim=True)).clamp_max(1))
        with torch.no_grad():
            return energy()


@pytest.fixture(scope="module")
def model(data_dir) -> AnalysisBySynthesis:
    return bench.load_defense("abs:schott2019", dataset="mnist", data_dir=data_dir, device="cpu")


@pytest.fixture(scope="module")
def images(data_dir) -> Tensor:
    return bench.load_dataset("mnist", data_dir).test.images


@pytest.mark.parametrize("batch", [100, 1])
def test_beside_the_plain_loop(benchmark, report, model, images, batch):
    """`logits` and `decide` against the plain loop; of `logits` also the share of the float32 peak."""
    plain, x = Plain.of(model), images[:batch]
    for warm in (model.logits, model.decide):
        warm(x)
    exact, decided, theirs, peak = [], [], [], []
    # Side by side, so that what else the machine does falls on all of them.
    for _ in range(2 if batch > 1 else 5):
        peak.append(float32_peak())
        theirs.append(seconds(plain.logits, x))
        exact.append(seconds(model.logits, x))
        decided.append(seconds(model.decide, x))
    benchmark.pedantic(model.logits, (x,), rounds=1)
    torch.testing.assert_close(model.logits(x), plain.logits(x), rtol=1e-4, atol=0)
    report(f"ABS logits, batch {batch}: plain loop / ours", f"{min(theirs) / min(exact):.1f}")
    report(f"ABS decisions, batch {batch}: plain loop / ours", f"{min(theirs) / min(decided):.1f}")
    report(f"ABS logits, batch {batch}: ms per image", f"{1000 * min(exact) / batch:.1f}")
    report(f"ABS decisions, batch {batch}: ms per image", f"{1000 * min(decided) / batch:.1f}")
    if batch == 100:
        descent = 10 * (2 * SETTING.search.iterations - 1) * MAC_DECODER
        useful = batch * (descent + 10 * SETTING.search.starts * 784) / min(exact)
        report("ABS logits: useful share of the float32 peak", f"{useful / max(peak):.0%}")


def side_by_side(data_dir: Path, jobs: list[tuple[slice, int]]) -> list[tuple[float, float, float]]:
    """Results of `classify` for images and numbers of threads, each in a process of its own."""
    with ProcessPoolExecutor(len(jobs), multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(classify, [data_dir] * len(jobs), *zip(*jobs, strict=True)))


def test_the_whole_test_set(benchmark, report, data_dir):
    """Decisions on all 10,000 MNIST test images, half of them in each of two processes."""
    jobs = [(slice(half, None, 2), 1) for half in (0, 1)]
    halves = benchmark.pedantic(lambda: side_by_side(data_dir, jobs), rounds=1)
    report("ABS decisions on the MNIST test set, two processes", f"{max(half[1] for half in halves):.0f} s")
    report("ABS memory of one process", f"{max(half[2] for half in halves):.2f} GB")
    assert sum(half[0] for half in halves) / 2 == pytest.approx(0.990, abs=0.001)


def test_two_processes_beside_two_threads(benchmark, report, data_dir):
    """The same 2000 images by two processes with one thread each, and by one with two."""
    processes = benchmark.pedantic(
        lambda: side_by_side(data_dir, [(slice(start, 2000, 2), 1) for start in (0, 1)]), rounds=1
    )
    threads = side_by_side(data_dir, [(slice(2000), 2)])
    ratio = threads[0][1] / max(half[1] for half in processes)
    report("ABS decisions: seconds of one process with two threads / of two with one each", f"{ratio:.1f}")
    assert ratio > 1


@NO_GPU
@pytest.mark.parametrize("batch", [100, 1])
def test_on_a_gpu(benchmark, report, model, images, batch):
    """Images per second of `logits` on the first GPU; the model goes back to the CPU afterwards."""
    x = images[:batch].cuda()
    model.to("cuda")

    def classify_once() -> None:
        model.logits(x)
        finish(x.device)

    benchmark.pedantic(classify_once, rounds=5, warmup_rounds=2)
    model.to("cpu")
    report(f"ABS logits on a GPU, batch {batch}: images per second", f"{batch / benchmark.stats.stats.min:.0f}")
