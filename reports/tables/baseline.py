"""Every defense beside a baseline."""

from __future__ import annotations

from reports.measures.facts import NormFacts, Pair
from reports.measures.numbers import ACCURACY, MEDIAN, Numbers
from reports.runs.labels import DECIMALS
from reports.statistics.estimates import Estimate
from reports.statistics.significance import SIGNIFICANCE_LEVEL
from reports.tables.captions import bound_note, measured_on
from reports.tables.cells import accuracy_quantity
from reports.tables.mcnemar import ADJUSTED_P, P
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, TableCell, laid_out, sentences


@table("baseline", per="norm", order=50)
def baseline_table(numbers: Numbers, norm: NormFacts) -> Table | None:
    """Builds the table that compares every other defense with the baseline, under the per-sample minimum over attacks.

    Each row holds the difference of the medians with its paired bootstrap interval and the difference of the
    accuracies. It also holds the p-value of McNemar's test that the accuracies are equal, raw and adjusted. Returns
    None if no baseline was named.
    """
    baseline = numbers.baseline
    if not norm.against_baseline:
        return None
    return Table(
        name=f"baseline_{norm.norm}",
        title=f"{norm.label}: beside {baseline}",
        caption=sentences(
            f"Median {norm.label} distance minus that of {baseline}, with its 95 % paired bootstrap interval / "
            f"accuracy at ε = {norm.threshold:g} minus that of {baseline} / p-value of McNemar's exact test that "
            f"the accuracies are equal, raw / adjusted for their number by Holm's method, under all attacks, "
            f"on {measured_on(numbers)}. Where both medians are infinite, their difference is unknown. Bold: adjusted "
            f"p < {SIGNIFICANCE_LEVEL:g}.",
            bound_note([norm]),
        ),
        frame=laid_out("defense", [f"minus {baseline}"], {pair.first: [_cell(pair)] for pair in norm.against_baseline}),
        quantities=(
            Quantity(MEDIAN, DECIMALS[norm.norm], interval=True),
            accuracy_quantity(numbers),
            Quantity(P, 3),
            Quantity(ADJUSTED_P, 3),
        ),
    )


def _cell(pair: Pair) -> TableCell:
    if pair.reason:
        return TableCell(text=pair.reason, notes=pair.notes)
    values = {
        MEDIAN: pair.median,
        ACCURACY: Estimate(pair.accuracy),
        P: Estimate(pair.p),
        ADJUSTED_P: Estimate(pair.adjusted),
    }
    return TableCell(values, notes=pair.notes, doubts=pair.doubts, significant=pair.significant)
