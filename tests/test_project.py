"""The files around the code: changelog, citations, hooks and type markers agree with the project."""

import configparser
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


def test_hooks_run_the_commands_of_tox():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read_string(text("tox.ini"))
    hooks = re.findall(r"entry: (.+)", text(".pre-commit-config.yaml"))
    assert hooks == tox["testenv:lint"]["commands"].strip().splitlines()


@pytest.mark.parametrize("package", ["attacks", "bench", "defenses", "reports"])
def test_each_package_is_marked_as_typed(package):
    assert resources.files(package).joinpath("py.typed").is_file()
