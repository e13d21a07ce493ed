"""Numbers and footnotes in print."""

import pandas as pd
import pytest
from reading import ACCURACY, MEDIAN, estimates, one_cell
from synthetic_runs import INF, NAN

from reports.render.csv import to_csv
from reports.render.printing import print_numbers, print_published, print_table
from reports.statistics.estimates import Estimate
from reports.tables.table import Quantity, Table, TableCell


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.234, 0.5), "1.23 / 50%"),
        ((INF, 1.0), "∞ / 100%"),
        ((NAN, 0.25), "25%"),
        ((0.0, 0.0), "0.00 / 0%"),
        ((0.001, 0.125), "<0.01 / 12%"),
        ((-INF, -0.25), "−∞ / −25%"),
        ((-0.5, -0.001), "−0.50 / 0%"),
        ((-0.001, 0.0), "−<0.01 / 0%"),
        ((), ""),
    ],
)
def test_numbers_are_printed_as_in_a_paper(values, text):
    assert print_numbers(estimates(*values), (MEDIAN, ACCURACY)) == text


def test_an_interval_stands_in_brackets_behind_its_number():
    quantities = (
        Quantity("median", 1, interval=True),
        Quantity("accuracy", percent=True, interval=True),
        Quantity("passes"),
    )
    values = {"median": Estimate(1.0, 0.5, INF), "accuracy": Estimate(0.5, 0.25, 0.75), "passes": Estimate(3.0)}
    assert print_numbers(values, quantities) == "1.0 [0.5, ∞] / 50% [25%, 75%] / 3"
    assert print_numbers({"median": Estimate(NAN), "accuracy": Estimate(0.5)}, quantities) == "50%"
    table = one_cell(TableCell(values), quantities=quantities)
    header, numbers = to_csv(table).splitlines()
    assert header.count(",") == numbers.count(",") == 7
    assert "median,cnn median low,cnn median high," in header


def test_published_numbers_keep_their_own_digits():
    assert print_published({"median": 1.1, "accuracy": 0.991}, (MEDIAN, ACCURACY)) == "1.1 / 99.1%"
    assert print_published({"median": INF, "accuracy": NAN}, (MEDIAN, ACCURACY)) == "∞"


def test_equal_footnotes_share_a_mark():
    cells = [[TableCell(text="n/a", notes=("why",)), TableCell(text="n/a", notes=("else", "why"))]]
    frame = pd.DataFrame(cells, index=pd.Index(["row"], name="attack"), columns=["a", "b"], dtype=object)
    shown = print_table(Table("name", "Title", "Caption.", frame, (MEDIAN,)))
    assert shown.notes == {"a": "why", "b": "else"}
    assert [cell.marks for cell in shown.rows[0][1]] == [("a",), ("a", "b")]


def test_more_footnotes_than_letters_have_marks():
    shown = print_table(one_cell(TableCell(estimates(1.0, 1.0), notes=tuple(f"note {i}" for i in range(30)))))
    assert list(shown.notes)[24:28] == ["y", "z", "aa", "ab"]
    assert shown.rows[0][1][0].marks[-4:] == ("aa", "ab", "ac", "ad")
