"""Plugins on the command line: a new one, its checks, and the tutorials' as they stand."""

import re
from pathlib import Path

from command_line import PLUGIN, assay, refused

TUTORIALS = Path(__file__).parents[3] / "docs" / "tutorials"


def test_a_new_defense_is_ten_lines_passes_the_checks_and_runs(tmp_path):
    made = assay("new", "defense", "my_defense", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert len([line for line in (tmp_path / "my_defense.py").read_text().splitlines() if line]) <= 10
    checked = assay("check", "my_defense.py", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    command = ["run", "--samples", "4", "--plugin", "my_defense.py", "--defenses", "my_defense", "--attacks", "fgm"]
    assert assay(*command, cwd=tmp_path).returncode == 0
    assert "my_defense.py exists" in refused(assay("new", "defense", "my_defense", cwd=tmp_path))


def test_check_fails_a_defense_that_returns_probabilities_in_training_mode(tmp_path):
    text = PLUGIN.read_text().replace(
        "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))",
        "torch.manual_seed(0); return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), "
        "torch.nn.Softmax(1))",
    )
    (tmp_path / "probable.py").write_text(text)
    result = assay("check", "moody", "--plugin", tmp_path / "probable.py")
    assert result.returncode == 1
    assert "FAIL logits are not probabilities (the outputs look like probabilities" in result.stdout


def test_check_goes_on_behind_a_factory_that_fails(tmp_path):
    text = "from bench import defense\nfrom bench.conformance.checks import ClassMeans\n"
    text += '@defense("broken", datasets=["digits"])\ndef broken():\n    raise OSError("no weights")\n'
    text += '@defense("sound", datasets=["digits"])\ndef sound(dataset):\n    return ClassMeans(dataset)\n'
    (tmp_path / "two.py").write_text(text)
    result = assay("check", tmp_path / "two.py")
    assert result.returncode == 1
    assert "FAIL can be built (defense 'broken' (file" in result.stdout
    assert "OSError: no weights)" in result.stdout
    behind = result.stdout.partition("defense sound")[2]
    assert "ok   logits are float32" in behind
    assert "FAIL" not in behind


def test_a_run_names_the_defense_that_cannot_be_built_and_reports_the_others(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from bench import defense\n"
        '@defense("broken", datasets=["digits"])\ndef broken():\n    raise OSError("no weights")\n'
    )
    command = ["run", "--samples", "4", "--attacks", "gaussian_noise", "--norms", "L2", "--out", tmp_path / "run"]
    command += ["--plugin", tmp_path / "broken.py", "--plugin", PLUGIN, "--set", "studies=[]", "--defenses"]
    result = assay(*command, "broken,class_means")
    assert result.returncode == 1
    assert result.stderr.count("cannot be built: OSError: no weights") == 1
    assert "Traceback" not in result.stderr
    table = (tmp_path / "run" / "report" / "summary_L2.md").read_text()
    assert "not run: defense 'broken' (file" in table
    assert "class_means" in table
    assert "cannot be built: OSError: no weights" in refused(assay(*command, "broken"))


def test_another_package_of_our_names_is_found_out(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text("")
    result = assay("list", "matrices", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert f"package 'reports' comes from {tmp_path / 'reports'}, expected" in refused(result)


def test_the_tutorials_defense_runs_as_it_stands(tmp_path):
    code = re.search(r"```python\n(import torch\n.*?@defense.*?)```", (TUTORIALS / "defense.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "rounded_means.py").write_text(code[1])
    result = assay("check", "rounded_means.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    choices = ["--defenses", "rounded_means", "--attacks", "bim", "--norms", "L2"]
    command = ["run", "--samples", "4", "--plugin", "rounded_means.py", *choices]
    result = assay(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_tutorials_attack_passes_the_checks(tmp_path):
    code = re.search(r"```python\n(from bench import attack\n.*?)```", (TUTORIALS / "attack.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "toward_gray.py").write_text(code[1])
    result = assay("check", "toward_gray.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout


def test_the_tutorials_matrix_is_valid(tmp_path):
    code = re.search(r"```toml\n(.*?)```", (TUTORIALS / "matrix.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "mine.toml").write_text(code[1])
    result = assay("plan", "mine.toml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "pgd:bounded" in result.stdout
