"""What a manifest says of its defenses."""

import bench
from bench.ledger.manifest_file import load_manifest
from reports.evidence.masking import evidence
from reports.evidence.signs import NOT_UNROLLED
from reports.runs.run import load_run

PLUGIN = """
import torch
from bench import defense, load_dataset
from bench.conformance.checks import ClassMeans

class Optimizing(torch.nn.Module):
    def __init__(self, inner_steps):
        super().__init__()
        self.inner_steps, self.means = inner_steps, ClassMeans(load_dataset("digits"))

    def logits(self, x):
        return self.means.logits(x)

@defense("optimizing", datasets=["digits"])
def optimizing():
    return Optimizing(3)

@defense("idle", datasets=["digits"])
def idle():
    return Optimizing(0)
"""
OPTIMIZING = {"abs", "binary_abs", "eabs", "variational_smoothing:cnn_gaussian"}


def test_it_says_which_optimize_and_offer_their_unrolled_gradient(tmp_path):
    """One that optimizes is doubted unless it is attacked through that, also if it cannot be."""
    plugin, matrix, run = tmp_path / "mine.py", tmp_path / "small.toml", tmp_path / "run"
    plugin.write_text(PLUGIN)
    defenses = [*sorted(OPTIMIZING), "randomized_smoothing:cnn_gaussian", "cnn", "optimizing", "idle"]
    matrix.write_text(
        f"dataset = 'digits'\nsamples = 2\ndefenses = {defenses}\nstudies = []\n"
        "attacks = [\n"
        "    { name = 'bim', defenses = ['abs', 'binary_abs', 'optimizing', 'idle'],"
        " parameters = { steps = 2, binary_search_steps = 1 } },\n"
        "    { name = 'unrolled_pgd', variant = 'abs', defenses = ['abs', 'optimizing'],"
        " parameters = { steps = 2, binary_search_steps = 1 } },\n"
        "]\n[thresholds]\nL2 = 0.5\n"
    )
    bench.run(str(matrix), plugins=[plugin], out=run, device="cpu", runner="serial")
    manifest = load_manifest(run)
    assert {entry.name for entry in manifest.defenses if entry.optimizes} == OPTIMIZING | {"optimizing"}
    assert {entry.name for entry in manifest.defenses if entry.unrolled} == OPTIMIZING
    doubts = {defense: doubt.detail for defense, _, _, doubt in evidence(load_run(run)) if doubt.sign == NOT_UNROLLED}
    assert doubts == {
        "binary_abs": "gradients hold its end fixed",
        "optimizing": "the defense gives no gradient through it",
    }
