"""McNemar's test between each pair of defenses."""

from __future__ import annotations

from reports.measures.facts import NormFacts, Pair
from reports.measures.numbers import Numbers
from reports.statistics.estimates import Estimate
from reports.statistics.significance import SIGNIFICANCE_LEVEL
from reports.tables.captions import bound_note, measured_on
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, TableCell, laid_out, sentences

P, ADJUSTED_P = "p", "adjusted p"


@table("mcnemar", per="norm", order=30, heading="Do two defenses differ?")
def mcnemar_table(numbers: Numbers, norm: NormFacts) -> Table | None:
    """Builds the table of p-values of McNemar's exact test for each pair of defenses, over all attacks.

    The test compares survival at the threshold under the per-sample minimum over attacks. It uses the samples whose
    distance is known for both defenses. Returns None for a single defense.
    """
    if len(norm.defenses) < 2:
        return None
    shown = {(pair.first, pair.second): _cell(pair) for pair in norm.pairs}
    columns = norm.defenses[:-1]
    rows = {first: [shown.get((first, second), TableCell()) for second in columns] for first in norm.defenses[1:]}
    tested, equality = sum(not pair.reason for pair in norm.pairs), norm.equality
    all_equal = (
        f"Cochran's Q that all {len(norm.defenses)} do: {equality.q:.3g}, p = {equality.p:.2g}, on the {equality.n} "
        "known for all. "
        if equality is not None
        else ""
    )
    return Table(
        name=f"mcnemar_{norm.norm}",
        title=f"{norm.label}: McNemar p-values",
        caption=sentences(
            f"p-values of McNemar's exact test (two-sided) that two defenses survive all {norm.label} attacks "
            f"within ε = {norm.threshold:g} equally often, raw / adjusted for {tested} pairs by Holm's "
            f"method, on {measured_on(numbers)}. {all_equal}Bold: adjusted p < {SIGNIFICANCE_LEVEL:g}.",
            bound_note([norm]),
        ),
        frame=laid_out("defense", columns, rows),
        quantities=(Quantity(P, 3), Quantity(ADJUSTED_P, 3)),
    )


def _cell(pair: Pair) -> TableCell:
    values = {} if pair.reason else {P: Estimate(pair.p), ADJUSTED_P: Estimate(pair.adjusted)}
    return TableCell(values, pair.reason, pair.notes, pair.doubts, significant=pair.significant)
