"""The command ``assay`` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "plugins.py"


SMALL = """
dataset = "{dataset}"
samples = {samples}
defenses = ["{defense}"]
attacks = ["gaussian_noise", "fgm"]
{extra}
[thresholds]
L2 = 1.0
"""


def assay(*arguments, cwd=None, **environment):
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'assay'; from bench.cli.app import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env={**{k: v for k, v in os.environ.items() if k != "ASSAY_DATA"}, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(result):
    """The one line of a refusal."""
    assert result.returncode == 2, result
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def run(matrix, tmp_path, *more):
    return assay("run", matrix, "--plugin", PLUGIN, "--out", tmp_path / "out", "--workers", "1", *more)
