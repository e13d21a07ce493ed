"""Small runs of a linear classifier on digits, for tests of how runs are carried out."""

from pathlib import Path

import pandas as pd

import bench
from bench.plugins.registry import Registry

PLUGIN = Path(__file__).parents[1] / "plugins.py"
MATRIX = """
dataset = "digits"
samples = 4
defenses = ["class_means"]
substitute = "class_means"
attacks = [{attacks}]
[thresholds]
L2 = 1.0
Linf = 0.2
L0 = 6
L1 = 3.0
"""

CHEAP = (
    [
        f"{name}_ge.{key}"
        for name in ("fgm", "fgsm", "bim", "mim", "pgd", "deepfool")
        for key in ("method='nes'", "pairs=8")
    ]
    + ["pgd_ge.steps=10", "boundary.steps=200", "eot_pgd.steps=10", "apgd_t.steps=20", "apgd_t.targets=2"]
    + [
        "unrolled_pgd.steps=10",
        "autoattack.queries=50",
        "fab.steps=10",
        "hopskipjump.steps=6",
        "square.search_steps=50",
        "sparse_rs.steps=50",
    ]
)
"""Settings that keep the dearest attacks short."""


def write_matrix(folder, attacks):
    path = folder / "small.toml"
    cards = {name: Registry([PLUGIN]).get("attacks", name).attack_card for name in attacks}
    entries = [
        f"{{ name = '{name}', bounded = {str('minimal' not in card.kinds).lower()} }}" for name, card in cards.items()
    ]
    path.write_text(MATRIX.format(attacks=", ".join(entries)))
    return str(path)


def results(folder) -> pd.DataFrame:
    """All columns of a ledger but the times, in a fixed order."""
    frame = bench.load_ledger(folder).drop(columns="seconds")
    return frame.sort_values(["cell", "sample"], ignore_index=True)


def run(matrix, out, **options):
    return bench.run(matrix, plugins=[PLUGIN], out=out, device="cpu", **options)
