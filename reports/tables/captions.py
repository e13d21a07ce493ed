"""What captions say of the run, its defenses and its judge."""

from __future__ import annotations

from collections.abc import Collection

from reports.evidence.randomized import percentage
from reports.measures.facts import NormFacts
from reports.measures.numbers import Numbers
from reports.statistics.significance import SIGNIFICANCE_LEVEL

BOLD = (
    "Bold: the highest accuracy of a row without a dagger, where McNemar's exact test tells it from every other one "
    f"(p < {SIGNIFICANCE_LEVEL:g}, adjusted by Holm's method)."
)


def measured_on(numbers: Numbers) -> str:
    """Returns the number of images, the dataset and the versions.

    If attacks were selected, or defenses have fewer images, the text also names them.
    """
    chosen = "" if numbers.chosen is None else f", attacks {', '.join(numbers.chosen)} only"
    fewer = "".join(f"; {each.name}: the first {each.samples}" for each in numbers.defenses if each.samples is not None)
    return f"{numbers.samples} test images of {numbers.dataset} ({versions_of(numbers)}{chosen}{fewer})"


def versions_of(numbers: Numbers) -> str:
    """Returns the versions that the numbers depend on."""
    versions = numbers.provenance["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("assay", "torch") if name in versions)


def bound_note(norms: Collection[NormFacts]) -> str:
    """Returns the judge's guarantees for randomized defenses in some norms; empty if there are none."""
    alphas = [norm.alpha for norm in norms if norm.alpha is not None]
    return (
        "On a randomized defense, a cell records a sample as broken by an image whose P(misclassified) is below one "
        f"half with probability at most α = {percentage(max(alphas))}; a row over m cells does so with at most m α."
        if alphas
        else ""
    )


def power_note(norms: Collection[NormFacts]) -> str:
    """Returns what "not found" means for a randomized defense; empty if there are none."""
    if not bound_note(norms):
        return ""
    return (
        "Not found on a randomized defense says that no tested candidate reaches P(misclassified) = .65; one between "
        ".5 and .65 may be given up (p = .55: in 75 % of cases). Undecided images count as not broken."
    )


def protocols_note(numbers: Numbers) -> str:
    """Returns what the protocols for randomized defenses mean."""
    times = numbers.resubmissions
    return (
        "For randomized defenses, accuracy is by majority: an image is broken where most answers are wrong. Two more "
        "accuracies follow it, each on the likeliest image within ε: one draw is the expected share of right answers "
        f"when the image is submitted once, best of {times} the expected share of samples for which all of {times} "
        "submissions are answered right (intervals by bootstrap over samples; Wilson's where all samples agree)."
    )
