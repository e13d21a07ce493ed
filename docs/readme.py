"""Writes the parts of README.md that come from elsewhere, below comments that name them.

    python docs/readme.py                       the lists of attacks and defenses, from the cards
    python docs/readme.py runs/digits runs/mine also what comes from the runs of the README's commands

The second form runs `assay verify` and takes the picture with Chromium.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

import bench
from bench.contracts.norms import NORMS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "assets" / "report.png"
ACCESS = {
    "gradient": "gradients",
    "unrolled": "gradients through the defense's optimization",
    "score": "scores",
    "decision": "decisions",
    "latent": "reconstructions",
    "transfer": "a substitute",
}
"""The words for each access of an attack's card."""
SHOWN = ("clean", "boundary", "ddn", "latent_descent", "All L2 attacks")
"""The rows of a table of medians that the README shows, as columns."""


def attacks() -> str:
    """Returns the table of the built-in attacks: one row per access, one column per norm."""
    cards = _built_in(bench.list_attacks().to_dict("records"))
    lines = [f"| attack by | {' | '.join(NORMS)} |", "|---" * (1 + len(NORMS)) + "|"]
    for access, words in ACCESS.items():
        of_access = [card for card in cards if card["access"] == access]
        cells = [_codes(card["name"] for card in of_access if norm in card["norms"].split(", ")) for norm in NORMS]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def defenses() -> str:
    """Returns the table of the built-in defenses: one row per paper, the randomized ones with a star."""
    papers: dict[str, list[str]] = {}
    for card in _built_in(bench.list_defenses().to_dict("records")):
        paper = re.match(r".*?\d{4}", card["citation"])
        star = "\\*" if card["randomized"] else ""
        papers.setdefault(paper[0] if paper else "", []).append(f"`{card['name']}`{star}")
    rows = (f"| {paper} | {', '.join(names)} |" for paper, names in papers.items())
    return "\n".join(["| paper | defenses (\\* randomized) |", "|---|---|", *rows])


def table(run: Path) -> str:
    """Returns some columns of a run's medians, one row per defense. Daggers stay, letters of footnotes do not."""
    summary = (run / "report" / "summary_L2.md").read_text(encoding="utf-8").split("\n\n")[1]
    header, _, *rows = (
        [_plain(cell) for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")]
        for line in summary.splitlines()
    )
    columns = [["defense", *header[1:]], *(row for name in SHOWN for row in rows if row[0] == name)]
    names, *others = zip(*columns, strict=True)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---", *[":-:"] * (len(names) - 1)], *others])


def _plain(cell: str) -> str:
    """Returns a cell that does not wrap, with a dagger for footnotes on doubts and without other footnotes."""
    number = re.sub(r" \[([^]]*)\]", lambda letters: "†" * ("†" in letters[1]), cell)
    return number.replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}")


def figures(run: Path) -> str:
    """Returns four reasons to trust a number, each with a figure and the command that gives it."""
    cheats = _last_line(sys.executable, ROOT / "examples" / "cheating_attack.py")
    verified = _last_line(Path(sys.executable).with_name("assay"), "verify", run)
    bracket = pd.read_csv(run / "report" / "bracket_L2.csv").iloc[0]
    doubts = pd.read_csv(run / "report" / "masking.csv")
    doubt = doubts.iloc[-1]
    lines = [
        "**Attacks propose, the engine judges**: in bounds, in the ball, misclassified on fresh passes, how far away. "
        f"{cheats} (`python examples/cheating_attack.py`)",
        f"**Brackets** put certificates below the attacks. Medians of `{bracket['defense']}` in L2: "
        f"{bracket['lower bound median']:.2f} certified, {bracket['smallest adversarial median']:.2f} found, "
        f"{bracket['refuted']} bounds refuted. (`report/bracket_L2.md`)",
        f"**Daggers** (†) mark numbers that a careful reviewer would doubt. One of {len(doubts)} reasons in this run: "
        f"{doubt['sign']} (`{doubt['defense']}`, {doubt['norm']}, {doubt['evidence']}). (`report/masking.md`)",
        f"**Verification**, by anyone and at any time: {verified} (`assay verify runs/digits`)",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _last_line(*command: str | Path) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


def picture(run: Path) -> None:
    """Photographs the first screen of a run's page."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1120,780"]
    page = (run / "report" / "index.html").resolve().as_uri()
    subprocess.run(["chromium", *flags, f"--screenshot={PICTURE}", page], check=True, capture_output=True)


def replaced(text: str, name: str, content: str) -> str:
    """Returns the text with new content between the comment of that name and the next empty line."""
    found = re.compile(rf"(<!-- {name}: docs/readme.py -->\n).*?\n(?=\n)", re.DOTALL)
    if not found.search(text):
        raise SystemExit(f"README.md has no line <!-- {name}: docs/readme.py -->")
    return found.sub(lambda match: f"{match[1]}{content}\n", text)


def main(runs: list[str]) -> None:
    """Writes README.md, and the picture if there are runs: one of the default matrix, one of `examples/my_net.py`."""
    text = README.read_text(encoding="utf-8")
    parts = {"defenses": defenses(), "attacks": attacks()}
    if runs:
        run, mine = map(Path, runs)
        parts |= {"table": table(run), "figures": figures(run), "mine": table(mine)}
        picture(run)
    for name, content in parts.items():
        text = replaced(text, name, content)
    README.write_text(text, encoding="utf-8")


def _built_in(cards: Iterable[dict]) -> list[dict]:
    return [card for card in cards if card["source"] == "built-in"]


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "—"


if __name__ == "__main__":
    main(sys.argv[1:])
