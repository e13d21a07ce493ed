"""The findings of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Verification:
    """The findings about a run.

    Attributes:
        faults: one line per fault, with file, row and field.
        missing: one line per result that does not exist yet.
        unjudged: one line per reason why images were not judged again.
        remarks: further remarks for the reader.
        judged: number of images judged again.
        boundary: number of images so close to the decision boundary that rounding decides. These images are no faults.
    """

    faults: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    judged: int = 0
    boundary: int = 0

    def lines(self) -> list[str]:
        """Returns the lines of the report, with the most severe findings first."""
        counted = f"{self.judged} images judged again"
        counted += f", {self.boundary} of them at the boundary, where rounding decides" if self.boundary else ""
        return [
            *(f"does not hold: {line}" for line in self.faults),
            *(f"not there yet: {line}" for line in self.missing),
            *(f"not re-judged: {line}" for line in self.unjudged),
            *self.remarks,
            f"{counted}; {len(self.faults) or 'no'} faults.",
        ]
