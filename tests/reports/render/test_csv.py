"""Tables as data that programs read back."""

import io

import numpy as np
import pandas as pd
from reading import estimates, one_cell, table_of
from synthetic_runs import NAN, every_status

from reports.render.csv import to_csv
from reports.tables.table import TableCell


def test_csv_holds_numbers_that_pandas_reads_back():
    frame = pd.read_csv(io.StringIO(to_csv(table_of(every_status(), "summary", "L0"))), index_col="attack")
    assert frame.loc["pointwise", "cnn median"] == 8
    assert np.isinf(frame.loc["pointwise", "binary_cnn median"])
    assert frame.loc["pointwise", "binary_cnn accuracy"] == 0.8
    assert np.isnan(frame.loc["clean", "cnn median"])


def test_csv_has_published_numbers_in_columns_of_their_own():
    text = to_csv(one_cell(TableCell(estimates(1.5, 0.5), published={"median": 1.1, "accuracy": NAN})))
    header, row = text.splitlines()
    assert header == "attack,cnn median,cnn accuracy,cnn published median,cnn published accuracy"
    assert row == "row,1.5,0.5,1.1,"
