"""How often the judge refutes what an attack's warm queries claim (`bench.contracts.protocols.HasWarmAnswers`)."""

from __future__ import annotations

from dataclasses import dataclass

from bench.ledger.schema import Status
from reports.runs.run import Run


@dataclass(frozen=True)
class WarmClaims:
    """The claims of attacks whose queries on a defense were answered from earlier ones.

    Attributes:
        defense: name of the defense.
        claims: number of samples, over all cells, that the queries showed an adversarial example of.
        refuted: those of them for which the exact judge accepted no candidate. Undecided samples do not count.
    """

    defense: str
    claims: int
    refuted: int

    def __str__(self) -> str:
        share = f"{self.refuted / self.claims:.1%}" if self.claims else "0%"
        return f"{self.defense} {self.refuted} of {self.claims} ({share})"


def warm_claims(run: Run) -> list[WarmClaims]:
    """Returns the claims on each defense that was asked warm, in the run's order."""
    warm = {cell.id for cell in run.manifest.cells if (cell.identity or {}).get("inference") == "warm"}
    records = run.records[run.records["cell"].isin(warm) & (run.records["status"] != Status.UNDECIDED)]
    claimed = records[records["claimed"].astype(bool)]
    found = []
    for defense in run.defenses:
        if (records["defense"] == defense).any():
            own = claimed[claimed["defense"] == defense]
            found.append(WarmClaims(defense, len(own), int((~own["broken"].astype(bool)).sum())))
    return found
