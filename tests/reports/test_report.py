import multiprocessing
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_runs import RunMaker, every_defense, every_status, lawful

from bench.contracts.errors import UserError
from bench.ledger.files import write_cell
from bench.ledger.manifest_file import write_manifest
from bench.ledger.reader import write_clean
from bench.ledger.schema import ledger_dir
from reports import write_report
from reports.report import write_run_report


class Elements(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def stored(run, directory):
    """``run`` as a ledger on disk."""
    run = replace(run, records=lawful(run))
    name = write_clean(directory, run.clean, run.records["label"].head(len(run.clean)).to_numpy())
    write_manifest(directory, run.manifest.model_copy(update={"images": name}))
    for cell in run.manifest.cells:
        records = run.records[run.records["cell"] == cell.id]
        if len(records):
            write_cell(ledger_dir(directory) / cell.files[0], records, run.adversarials(cell.id), {})
    return directory


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(stored(every_status(), folder), folder / "report")


@pytest.fixture(scope="module")
def page(report):
    return Elements(report.read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", ["torch", "matplotlib.pyplot"])
def test_reports_never_import(module):
    """Not torch, which is slow to load; not pyplot, whose state is everybody's."""
    code = f"import sys, reports; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_table_and_figure_is_a_file(report):
    names = {str(path.relative_to(report.parent)) for path in report.parent.rglob("*") if path.is_file()}
    kinds = ("summary", "mcnemar", "strength", "ranking")
    tables = [f"{kind}_{norm}" for kind in kinds for norm in ("L2", "Linf", "L0")]
    expected = {
        f"{table}.{kind}"
        for table in [*tables, "accuracy", "masking", "attacks", "cost", "defenses"]
        for kind in ("csv", "md", "tex")
    }
    figures = [
        f"{kind}_{norm}"
        for kind in ("curves", "distances", "significance", "cost", "smallest", "quantiles")
        for norm in ("L2", "Linf", "L0")
    ]
    expected |= {f"figures/{figure}.{kind}" for figure in figures for kind in ("pdf", "png")}
    assert names == expected | {"index.html", "options.json"}


def test_the_report_comes_from_the_ledger_alone(report, tmp_path):
    again = write_run_report(every_status(), tmp_path / "again")
    for path in report.parent.rglob("*.*"):
        assert path.read_bytes() == (again.parent / path.relative_to(report.parent)).read_bytes()


def test_several_processes_draw_the_same_files(report, tmp_path):
    again = write_run_report(every_status(), tmp_path, processes=2)
    assert again.read_bytes() == report.read_bytes()
    figures = [path.relative_to(report.parent) for path in (report.parent / "figures").iterdir()]
    assert {path: (tmp_path / path).read_bytes() for path in figures} == {
        path: (report.parent / path).read_bytes() for path in figures
    }
    assert not multiprocessing.active_children()


def test_a_folder_without_a_ledger_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no ledger there"):
        write_report(tmp_path, tmp_path / "report")


def test_the_page_needs_no_other_file(page):
    assert not any("src" in script for script in page.all("script"))
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert all(link["href"].startswith("data:") for link in page.all("link"))


def test_links_within_the_page_and_beside_it_lead_somewhere(page, report):
    ids = {attributes["id"] for _, attributes in page.found if "id" in attributes}
    for link in page.all("a"):
        target = link["href"]
        assert target[1:] in ids if target.startswith("#") else (report.parent / target).is_file()


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_tables_are_tables_with_captions_and_scopes(page):
    assert len(page.all("caption")) == len(page.all("table")) == 3 * 6 + 5
    assert {header["scope"] for header in page.all("th")} == {"row", "col"}
    assert all("alt" in image for image in page.all("img"))


def test_incomplete_cells_are_announced(page):
    text = " ".join("".join(page.text).split())
    assert "4 of 12 cells are incomplete." in text
    assert "nearest_neighbour, L∞: pgd failed: timeout (5/5)" in text


def test_a_complete_run_announces_nothing(tmp_path):
    page = Elements(write_run_report(every_defense(samples=10), tmp_path, formats=["html"]).read_text(encoding="utf-8"))
    assert not [details for details in page.all("details") if "problems" in details.get("class", "")]


def test_published_numbers_stand_in_the_page_and_in_files_of_their_own(tmp_path):
    index = write_run_report(every_defense(samples=10, dataset="mnist"), tmp_path, formats=["html", "csv"])
    page = Elements(index.read_text(encoding="utf-8"))
    assert "(10.9 / 98%)" in "".join(page.text)
    assert {path.name for path in tmp_path.glob("published_*.csv")} == {
        *(f"published_{norm}_schott2019.csv" for norm in ("L0", "L2", "Linf")),
        *(f"published_{norm}_ju2020.csv" for norm in ("L2", "Linf")),
    }
    assert "published" not in (tmp_path / "summary_L2.csv").read_text()


def test_published_numbers_can_be_left_out(tmp_path):
    write_run_report(every_defense(samples=10, dataset="mnist"), tmp_path, formats=["csv"], papers=["ju2020"])
    assert {path.stem[-6:] for path in tmp_path.glob("published_*.csv")} == {"ju2020"}
    with pytest.raises(UserError, match="--published: unknown paper 'schott'"):
        write_run_report(every_defense(samples=10), tmp_path, papers=["schott"])


def test_text_from_plugins_is_escaped(tmp_path):
    maker = RunMaker(["</script><script>"], 1)
    maker.attack("a", ["L2"], citation="<script>alert(1)</script>")
    maker.cell("</script><script>", "a", "L2", [float("nan")], reasons={0: "exception: <img src=x onerror=alert(1)>"})
    page = Elements(write_run_report(maker.make(), tmp_path, formats=["html"]).read_text(encoding="utf-8"))
    assert len(page.all("script")) == 2  # the leaderboard's numbers, and what computes with them
    assert not any("onerror" in image for image in page.all("img"))
    assert "<script>alert(1)</script>" in "".join(page.text)


def test_a_single_defense_is_compared_with_none(tmp_path):
    maker = RunMaker(["cnn"], 2)
    maker.attack("a", ["L2"])
    maker.cell("cnn", "a", "L2", [1.0, 2.0])
    index = write_run_report(maker.make(), tmp_path)
    assert not list(tmp_path.glob("mcnemar*"))
    assert "mcnemar" not in index.read_text()


def test_a_run_of_which_nothing_is_done_yet_has_a_report(tmp_path):
    maker = RunMaker(["cnn", "abs"], 2)
    maker.attack("a", ["L2"])
    maker.cell("cnn", "a", "L2", [1.0, 2.0])
    maker.cell("abs", "a", "L2")
    run = maker.make()
    empty = type(run)(run.records.iloc[:0], run.manifest, run.clean, run.adversarials)
    index = write_run_report(empty, tmp_path)
    assert "2 of 2 cells are incomplete." in index.read_text()


@pytest.mark.slow
def test_the_page_of_a_matrix_as_large_as_mnists_stays_small(tmp_path):
    """Eleven defenses, sixteen attacks in three norms, 100 images of noise, which compresses worst."""
    random = np.random.default_rng(0)
    maker = RunMaker([f"defense_{i}" for i in range(11)], 100, shape=(1, 28, 28))
    for i in range(16):
        maker.attack(f"attack_{i}", ["L2", "Linf", "L0"])
        for defense in maker.defenses:
            for norm, threshold in maker.thresholds.items():
                maker.cell(defense, f"attack_{i}", norm, threshold * random.gamma(2, 0.5, 100))
    clean, adversarial = random.random((2, 100, 1, 28, 28), dtype=np.float32)
    index = write_run_report(maker.make(clean, lambda cell: adversarial), tmp_path, formats=["html"])
    assert index.stat().st_size < 15e6
