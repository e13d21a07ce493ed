"""Lower bounds on the distance beside the smallest adversarial examples."""

from __future__ import annotations

from collections.abc import Mapping

from reports.measures.facts import NormFacts
from reports.measures.numbers import MEDIAN, Number, Numbers
from reports.measures.studies import LOWER_BOUND, REFUTED, STUDY, UNTESTED, UPPER_BOUND
from reports.runs.labels import DECIMALS
from reports.statistics.brackets import REFUTATION_LEVEL
from reports.tables.captions import measured_on
from reports.tables.registry import table
from reports.tables.table import Quantity, Table, TableCell, laid_out

TESTED = (
    "The certificate of a randomized defense is refuted where draws of its own show that an adversarial within it is "
    f"misclassified more often than not (one-sided exact binomial test, p < {REFUTATION_LEVEL:g}, adjusted by Holm's "
    "method); not tested: an adversarial lies within it, but no such draws were made."
)


@table("bracket", per="norm", order=60, heading="Between lower bound and smallest adversarial")
def bracket_table(numbers: Numbers, norm: NormFacts) -> Table | None:
    """Builds the table of lower bounds beside the distances of the smallest adversarial examples found.

    Returns None if the run has no lower bounds.
    """
    bounds = norm.bounds
    if bounds.empty:
        return None
    found = {name: numbers.of(norm.norm, STUDY, name) for name in numbers.defense_names}
    tested = (bounds["certificate"].astype(bool) & bounds["defense"].isin(numbers.randomized)).any()
    return Table(
        name=f"bracket_{norm.norm}",
        title=f"{norm.label}: between lower bound and smallest adversarial",
        caption=(
            f"Median {norm.label} distance, over {measured_on(numbers)}, within which the defense shows that an "
            f"image has no adversarial, and that of the smallest adversarial any attack found; 0 for images that are "
            f"misclassified as they are. An estimate that an adversarial refutes counts as 0. Each image's own bracket "
            f"is in brackets_{norm.norm}.csv.{f' {TESTED}' if tested else ''}"
        ),
        frame=laid_out(
            "defense",
            ["lower bound", "smallest adversarial", "refuted", "the bound is"],
            {name: _row(own) for name, own in found.items() if LOWER_BOUND in own},
        ),
        quantities=(Quantity(MEDIAN, DECIMALS[norm.norm]),),
        prose=("refuted", "the bound is"),
    )


def _row(found: Mapping[str, Number]) -> list[TableCell]:
    lower, upper, refuted, untested = (found[name] for name in (LOWER_BOUND, UPPER_BOUND, REFUTED, UNTESTED))
    return [
        TableCell({MEDIAN: lower.estimate}, doubts=lower.doubts),
        TableCell({} if upper.reason else {MEDIAN: upper.estimate}, upper.reason, upper.notes, upper.doubts),
        TableCell(
            text=f"{refuted.value:.0f} of {refuted.n}"
            + (f", {untested.value:.0f} not tested" if untested.value else "")
        ),
        TableCell(text=", ".join(lower.notes)),
    ]
