"""Names are found in the sources of modules, and none of these is imported."""

import pytest

from bench.plugins import scan as scanning
from bench.plugins.scan import Declaration, scan


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Returns a function that writes a module of the package ``things`` and scans the package."""
    monkeypatch.setattr(scanning, "ROOT", tmp_path)

    def write(text, name="one.py", decorator="attack"):
        path = tmp_path / "things" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return scan("things", decorator)

    return write


@pytest.mark.parametrize(
    "text",
    [
        "@attack('mine', norms=NORMS)\ndef f(): ...",
        "@bench.attack('mine')\ndef f(): ...",
        "@other\n@attack('mine')\nclass F: ...",
        "ATTACK_NAMES = ('mine',)\nmine = made(ATTACK_NAMES[0])",
        "ATTACK_NAMES: tuple[str, ...] = ('mine',)",
        "ATTACK_NAMES = ['mine']",
    ],
)
def test_a_module_declares_a_name_by_the_decorator_or_in_the_literal_list(package, text):
    assert package(f"raise RuntimeError('this module was imported')\n{text}").declarations == (
        Declaration("mine", "things.one"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "@defense('mine')\ndef f(): ...",
        "def outer():\n    @attack(name)\n    def f(): ...",
        "@attack\ndef f(): ...",
        "DEFENSE_NAMES = ('mine',)",
        "",
    ],
)
def test_other_decorators_and_inner_functions_declare_nothing(package, text):
    found = package(text)
    assert (found.declarations, found.broken) == ((), {})


def test_names_are_ordered_by_module_and_then_as_in_the_source(package):
    package("@attack('z')\ndef z(): ...\n@attack('a')\ndef a(): ...", "b/__init__.py")
    package("@attack('inner')\ndef f(): ...", "b/inner.py")
    found = package("@attack('last')\ndef f(): ...\nATTACK_NAMES = ('listed',)", "a.py")
    assert [(each.name, each.module) for each in found.declarations] == [
        ("last", "things.a"),
        ("listed", "things.a"),
        ("z", "things.b"),
        ("a", "things.b"),
        ("inner", "things.b.inner"),
    ]


def test_examples_of_a_family_are_read_from_the_source(package):
    found = package("@family('f', member=TEXT, examples=('a', 'b'))\ndef f(): ...", decorator="family")
    assert found.declarations == (Declaration("f", "things.one", ("a", "b")),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "SyntaxError: invalid syntax"),
        ("@attack(NAME)\ndef f(): ...", "ValueError: malformed node"),
        ("@attack(3)\ndef f(): ...", "ValueError: line 1: the first argument of @attack must be a literal string"),
        ("\n@attack(name='mine')\ndef f(): ...", "ValueError: line 2: the first argument of @attack must be a literal"),
        ("ATTACK_NAMES = (NAME,)", "ValueError: malformed node"),
        ("ATTACK_NAMES = tuple(TABLE)", "ValueError: line 1: ATTACK_NAMES must be a literal tuple of strings"),
        ("ATTACK_NAMES = 'mine'", "ValueError: line 1: ATTACK_NAMES must be a literal tuple of strings"),
    ],
)
def test_a_module_whose_names_cannot_be_read_is_named_with_the_error(package, text, message):
    package("@attack('good')\ndef f(): ...", "good.py")
    found = package(text)
    assert [each.name for each in found.declarations] == ["good"]
    assert list(found.broken) == ["things.one"]
    assert found.broken["things.one"].startswith(message)
