"""The rooms of the four packages, and who may import whom: imports point down, and none goes round."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import bench

ROOT = Path(bench.__file__).parents[1]
ROOMS = (
    "contracts",
    "ledger",
    "plugins",
    "datasets",
    "training",
    "engine",
    "conformance",
    "studies",
    "planning",
    "execution",
    "verification",
    "api",
    "cli",
)
"""Of `bench`, from the ground up."""
ALLOWED = {
    "attacks": {"attacks", "bench.contracts"},
    "defenses": {"defenses", "bench.contracts", "bench.datasets", "bench.training"},
    "reports": {"reports", "bench.contracts", "bench.ledger"},
}
"""What the modules of each other package may import of ours."""
REPORT_ROOMS = ("statistics", "runs", "evidence", "measures", "published", "tables", "figures", "render")
"""Of `reports`, from the ground up."""
ATTACK_ROOMS = ("parts",)
LAZY = ("bench", "reports")
"""Packages that hand on names: whoever imports from them knows no module."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("bench", "attacks", "defenses", "reports"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of ours: in functions too, and by name in a string; for type checkers does not count."""
    return {name: imported(path) - {name} for name, path in modules().items()}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, path
            found |= {origin(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
            found.add(node.value if "." in node.value else "")
    return found & modules().keys()


def origin(module: str, name: str) -> str:
    return f"{module}.{name}" if f"{module}.{name}" in modules() else module


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def arrows(package: str) -> list[tuple[str, str]]:
    return [(a, b) for a, of in imports().items() if a.partition(".")[0] == package for b in sorted(of)]


NAMED_IN_STRINGS = {"bench.contracts.source"}
"""Modules whose strings name modules higher up, to read their sources."""


def test_no_module_of_bench_imports_from_a_room_above_it():
    upwards = [
        (a, b)
        for a, b in arrows("bench")
        if b.startswith("bench.")
        and room(a)
        and a not in NAMED_IN_STRINGS
        and ROOMS.index(room(b)) > ROOMS.index(room(a))
    ]
    assert upwards == []


def test_every_module_of_bench_is_in_a_room():
    assert {room(name) for name in modules() if name.startswith("bench.")} == set(ROOMS)


def test_nothing_in_bench_but_the_command_line_imports_reports():
    assert {room(a) for a, b in arrows("bench") if b.partition(".")[0] == "reports"} == {"cli"}


@pytest.mark.parametrize("package", ALLOWED)
def test_other_packages_import_only_what_they_may_know(package):
    def allowed(module: str) -> bool:
        return module in ("bench", package) or any(module.startswith(f"{of}.") for of in ALLOWED[package])

    assert [(a, b) for a, b in arrows(package) if not allowed(b)] == []


def test_no_module_of_reports_imports_from_a_room_above_it():
    in_rooms = [(a, b) for a, b in arrows("reports") if room(a) in REPORT_ROOMS and room(b)]
    above = [(a, b) for a, b in in_rooms if b.startswith("reports.") and room(b) not in REPORT_ROOMS]
    upwards = [
        (a, b)
        for a, b in in_rooms
        if room(b) in REPORT_ROOMS and REPORT_ROOMS.index(room(b)) > REPORT_ROOMS.index(room(a))
    ]
    assert above + upwards == []


def test_what_attacks_share_knows_no_attack():
    assert [
        (a, b) for a, b in arrows("attacks") if room(a) == "parts" and b.startswith("attacks.") and room(b) != "parts"
    ] == []


def test_no_imports_go_round():
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in state:
            for each in sorted(imports()[module]):
                if module not in NAMED_IN_STRINGS:
                    visit(each, (*path, module))
            state[module] = 1

    for module in modules():
        visit(module, ())
