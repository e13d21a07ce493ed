"""What the judge makes of an attack that cheats.

The attack returns the clean image, or images that are brighter than white, outside the ball, or not numbers.
"""

import tempfile
from pathlib import Path

import torch

import bench
from bench import attack


@attack("cheat", norms=["L2"], access="decision", kinds=["bounded"], budget=1)
def cheat(oracle, x, y, *, trick: str = "clean"):
    """Returns images that break the rules, by the name of the trick."""
    return {
        "clean": x,
        "too_bright": x + 1000,
        "too_far": 1 - x,
        "not_a_number": torch.full_like(x, torch.nan),
    }[trick]


MATRIX = """
dataset = "digits"
samples = 20
studies = []
defenses = ["nearest_neighbour"]
attacks = [
    { name = "cheat", bounded = true, variant = "clean", parameters = { trick = "clean" } },
    { name = "cheat", bounded = true, variant = "too_bright", parameters = { trick = "too_bright" } },
    { name = "cheat", bounded = true, variant = "too_far", parameters = { trick = "too_far" } },
    { name = "cheat", bounded = true, variant = "not_a_number", parameters = { trick = "not_a_number" } },
]
[thresholds]
L2 = 0.5
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        matrix = Path(folder, "cheats.toml")
        matrix.write_text(MATRIX, encoding="utf-8")
        ledger = bench.run(str(matrix), plugins=[__file__], out=Path(folder, "run"))
    attacked = ledger[ledger.status != "clean_error"]
    print(attacked.groupby(["attack", "status", "reason"]).size().to_string())
    print(f"{(~attacked.broken).sum()} of {len(attacked)} images of an attack that cheats were refused.")
