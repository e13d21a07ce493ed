"""The files around the code: README, examples, changelog, citations, hooks and types agree with the project."""

import configparser
import importlib.util
import json
import re
import tomllib
import unicodedata
from importlib import resources
from pathlib import Path

import pytest

import bench

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def ascii_only(name: str) -> str:
    """Cards spell names without accents."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def papers(citation: str) -> list[tuple[str, str]]:
    """Returns the first author's surname and the year of each paper in a card's citation."""
    return re.findall(r"\b([A-Z][\w-]+)[^;]*?\b(\d{4})\b", citation)


@pytest.fixture(scope="module")
def references() -> set[tuple[str, str]]:
    """The surname and the year of each first author in CITATION.cff."""
    entries = text("CITATION.cff").partition("\nreferences:\n")[2].split("  - type:")[1:]
    found = [re.search(r"family-names: (.+?)\n.*?year: (\d+)", entry, re.DOTALL) for entry in entries]
    return {(ascii_only(match[1]), match[2]) for match in found if match}


def test_changelog_has_an_unreleased_section_with_changes():
    section = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", text("CHANGELOG.md"), re.DOTALL | re.MULTILINE)
    assert section
    assert "\n- " in section[1]


@pytest.mark.parametrize(
    ("citation", "found"),
    [
        ("Ju 2021, Generative models, chapter 4", [("Ju", "2021")]),
        ("Rony et al. 2019, Decoupling direction and norm", [("Rony", "2019")]),
        ("Moosavi-Dezfooli, Fawzi & Frossard 2016, DeepFool", [("Moosavi-Dezfooli", "2016")]),
        ("Rauber 2017, Foolbox; attacks of Schott et al. 2019", [("Rauber", "2017"), ("Schott", "2019")]),
        ("you, today", []),
    ],
)
def test_papers_of_a_citation(citation, found):
    assert papers(citation) == found


@pytest.mark.parametrize("listing", [bench.list_attacks, bench.list_defenses])
def test_papers_of_built_in_cards_are_in_the_citation_file(references, listing):
    cards = listing()
    built_in = cards[cards["source"] == "built-in"]
    cited = {name: papers(citation) for name, citation in zip(built_in["name"], built_in["citation"], strict=True)}
    assert [name for name, found in cited.items() if not found] == []
    assert {name: found for name, found in cited.items() if not references.issuperset(found)} == {}


def test_the_citation_file_names_the_version_of_the_package():
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert f"\nversion: {version}\n" in text("CITATION.cff")


def tox_commands(environment: str) -> list[str]:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read_string(text("tox.ini"))
    return tox[f"testenv:{environment}"]["commands"].strip().splitlines()


def test_hooks_run_the_commands_of_tox():
    assert re.findall(r"entry: (.+)", text(".pre-commit-config.yaml")) == tox_commands("lint")


@pytest.fixture(scope="module")
def readme():
    """The script that writes the generated parts of the README."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", ["attacks", "defenses"])
def test_the_readme_lists_what_the_cards_say(readme, part):
    assert readme.replaced(text("README.md"), part, getattr(readme, part)()) == text("README.md"), (
        "run: python docs/readme.py"
    )


def test_the_readme_is_short_and_its_links_and_code_are_there():
    lines = text("README.md").splitlines()
    assert len(lines) <= 120
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text("README.md"))
    assert [link for link in links if not (ROOT / link).exists()] == []
    snippet = re.search(r"```python\n(@defense.*?)```", text("README.md"), re.DOTALL)
    assert without_docstrings(snippet[1]) in without_docstrings(text("examples/my_net.py"))


def without_docstrings(code: str) -> str:
    return re.sub(r'    """.*?"""\n', "", code, flags=re.DOTALL)


def test_each_public_name_has_a_place_on_the_page_of_the_api():
    page = text("docs/reference/api.md")
    assert set(re.findall(r"^::: bench\.(\w+)$", page, re.MULTILINE)) == set(bench.__all__)


def test_the_ci_script_runs_the_tests_by_the_command_of_the_readme():
    command = re.search(r"run the tests:\n\n```sh\n(.+)\n```", text("README.md"))[1]
    assert text(".ci/run").rstrip().endswith("\n" + command)


def test_each_example_is_run_by_tox():
    examples = {f"examples/{path.name}" for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")}
    assert examples
    assert examples == {word for line in tox_commands("examples") for word in line.split() if "examples/" in word}


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize("package", ["attacks", "bench", "defenses", "reports"])
def test_each_package_is_marked_as_typed(package):
    assert resources.files(package).joinpath("py.typed").is_file()
