"""The evidence that casts doubt on a run's numbers."""

from __future__ import annotations

from bench.contracts.norms import NormName
from reports.measures.numbers import Numbers
from reports.runs.labels import NORM_LABELS
from reports.tables.registry import table
from reports.tables.table import Table, TableCell, listed


@table("masking", per="run", order=50)
def masking_table(numbers: Numbers) -> Table:
    """Builds the table of all doubts of the run, with one row per defense, norm and sign."""
    found: dict[tuple[str, NormName, str], list[str]] = {}
    for defense, norm, attack, doubt in numbers.evidence:
        found.setdefault((defense, norm, doubt.sign), []).append(f"{attack or 'all attacks'}: {doubt.detail}")
    rows = [
        (defense, [TableCell(text=text) for text in (NORM_LABELS[norm], sign, ", ".join(details))])
        for (defense, norm, sign), details in found.items()
    ]
    return Table(
        name="masking",
        title="Masking evidence",
        caption=(
            "What makes a careful reader doubt that a defense is as robust as it looks, and where. "
            + ("A dagger marks these numbers in the other tables." if rows else "Nothing was found.")
        ),
        frame=listed("defense", ["norm", "sign", "evidence"], rows),
        prose=("sign", "evidence"),
    )
