"""A table or a figure is one file: found in its folder, written to files and shown on the page."""

import sys

import pytest
from synthetic_runs import every_status

import reports.figures
import reports.tables
from reports.figures.registry import FigureCard
from reports.report import write_run_report
from reports.tables.registry import TableCard
from reports.tables.scanning import exhibits

TABLE = '''
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, laid_out

@table("threshold", per="norm", order=15, heading="How far is far?")
def threshold_table(numbers, norm):
    """Builds the table of a norm's threshold; None but for L2."""
    if norm.norm != "L2":
        return None
    frame = laid_out("norm", ["threshold"], {norm.label: [TableCell(text=f"{norm.threshold:g}")]})
    return Table("threshold_L2", "Threshold", "The threshold.", frame)

@table("images", per="run", order=5)
def images_tables(numbers):
    """Builds two tables."""
    frame = laid_out("dataset", ["images"], {numbers.dataset: [TableCell(text=f"{numbers.samples}")]})
    return [Table(name, name.title(), "Images.", frame) for name in ("images", "again")]
'''
FIGURE = '''
from matplotlib.figure import Figure
from reports.figures.registry import Plot, figure

@figure("nothing", order=200)
def nothing(numbers, norm):
    """Draws nothing."""
    return Plot(f"nothing_{norm.norm}", "Nothing to see.", "An empty figure.", Figure(figsize=(1, 1)))
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Two new files beside the tables and figures of the reports."""
    for package, name, code in ((reports.tables, "threshold", TABLE), (reports.figures, "nothing", FIGURE)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for package, name in ((reports.tables, "threshold"), (reports.figures, "nothing")):
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


@pytest.mark.usefixtures("added")
def test_a_table_or_figure_in_a_new_file_is_written_and_shown(tmp_path):
    index = write_run_report(every_status(), tmp_path / "report", formats=["csv", "figures", "html"])
    page = index.read_text(encoding="utf-8")
    assert (index.parent / "threshold_L2.csv").read_text() == "norm,threshold\nL2,1.5\n"
    assert (index.parent / "again.csv").read_text() == "dataset,images\nsynthetic,5\n"
    assert (index.parent / "figures" / "nothing_L0.pdf").exists()
    places = ['id="summary_L2"', "How far is far?", 'id="threshold_L2"', "curves", "Nothing to see.", 'id="images"']
    positions = [page.index(place, page.index('id="summary_L2"')) for place in places]
    assert positions == sorted(positions)
    assert '<a href="#images-section">Images</a>' in page
    assert page.index('id="again-section"') < page.index('id="accuracy-section"')


def test_names_and_places_on_the_page_are_distinct():
    tables, figures = exhibits(reports.tables, TableCard), exhibits(reports.figures, FigureCard)
    for own in (
        [card for card in tables if card.per == "run"],
        [card for card in tables if card.per == "norm"],
        figures,
    ):
        assert own
        assert len({card.name for card in own}) == len({card.order for card in own}) == len(own)
