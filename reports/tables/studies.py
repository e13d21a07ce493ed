"""Tables of the studies' results: lower bounds, distal adversarial examples and detection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.contracts.norms import NormName
from bench.ledger.schema import Status
from reports.evidence.masking import judged_before
from reports.runs.labels import DECIMALS, NORM_LABELS
from reports.runs.run import Run
from reports.statistics.brackets import REFUTED
from reports.statistics.distances import median_distance
from reports.statistics.records import detection
from reports.tables.cells import measured_on, signs_of, versions_of
from reports.tables.table import Cell, Quantity, Table, laid_out

CERTIFICATE_REFUTED = "an adversarial lies within the certified distance: the certificate is wrong"
TESTED = (
    "The certificate of a randomized defense is refuted where draws of its own show that an adversarial within it is "
    f"misclassified more often than not (one-sided exact binomial test, p < {REFUTED:g}, adjusted by Holm's method); "
    "not tested: an adversarial lies within it, but no such draws were made."
)
DETECTION = {
    "accuracy": "detector's accuracy",
    "auc": "ROC AUC",
    "detected": "adversarials refused",
    "false_alarms": "clean images refused",
    "undefended": "right, under PGD",
    "defended": "right or refused, under PGD",
    "evading": "right or refused, under evading PGD",
}
"""Column labels of the quantities that `reports.statistics.records.detection` returns."""


def bracket_table(run: Run, norm: NormName) -> Table | None:
    """Builds the table of lower bounds beside the distances of the smallest adversarial examples found.

    Returns None if the run has no lower bounds.
    """
    known = run.brackets(norm)
    if known.empty:
        return None
    rows: dict[str, list[Cell]] = {}
    for defense in run.defenses:
        own = known[known["defense"] == defense]
        if own.empty:
            continue
        certified = bool(own["certificate"].all())
        distances = own["distance"].dropna()
        # A refuted estimate carries no information. A refuted certificate is an error that must stay visible.
        bounds = own["lower_bound"].mask(own["refuted"] & ~own["certificate"].astype(bool), 0.0)
        refuted, untested = int(own["refuted"].sum()), int(own["untested"].sum())
        kind = "a certificate" if certified else "an estimate"
        rows[defense] = [
            Cell((median_distance(bounds),), doubts=(CERTIFICATE_REFUTED,) if certified and refuted else ()),
            replace(
                _number_or_reason(median_distance(distances)),
                notes=(f"{len(distances)} of {len(own)} images",) if len(distances) < len(own) else (),
                doubts=signs_of(judged_before(run, defense, run.cells_of(defense, norm))),
            ),
            Cell(text=f"{refuted} of {len(own)}{f', {untested} not tested' if untested else ''}"),
            Cell(text=", ".join([kind, *(note for note in own["note"].unique() if note)])),
        ]
    drawn = known["certificate"].astype(bool) & known["defense"].isin(run.randomized)
    tested = f" {TESTED}" if drawn.any() else ""
    return Table(
        name=f"bracket_{norm}",
        title=f"{NORM_LABELS[norm]}: between lower bound and smallest adversarial",
        caption=(
            f"Median {NORM_LABELS[norm]} distance, over {measured_on(run)}, within which the defense shows that an "
            f"image has no adversarial, and that of the smallest adversarial any attack found; 0 for images that are "
            f"misclassified as they are. An estimate that an adversarial refutes counts as 0. Each image's own bracket "
            f"is in brackets_{norm}.csv.{tested}"
        ),
        frame=laid_out("defense", ["lower bound", "smallest adversarial", "refuted", "the bound is"], rows),
        quantities=(Quantity("median", DECIMALS[norm]),),
        prose=("refuted", "the bound is"),
    )


def distal_table(run: Run) -> Table | None:
    """Builds the table of how easily noise is driven to confidence in a class (Schott et al. 2019, section 7).

    It includes the calibration that makes confidences comparable. Returns None if this was not studied.
    """
    distals = run.study_records("distal")
    if distals.empty:
        return None
    columns = ["reached", "median steps", "alpha", "log eta"]
    rows: dict[str, list[Cell]] = {}
    for defense in run.defenses:
        own = distals[distals["defense"] == defense]
        failed, valid = own[own["status"] == Status.FAILED], own[own["status"] != Status.FAILED]
        if len(valid):
            reached = int((valid["status"] == "reached").sum())
            steps, alpha, log_eta = valid["steps"].median(), valid["alpha"].iloc[0], valid["log_eta"].iloc[0]
            texts = [f"{reached} of {len(valid)}", f"{steps:g}", f"{alpha:.3g}", f"{log_eta:.3g}"]
            notes = (f"{len(failed)} failed ({failed['reason'].iloc[0]})",) if len(failed) else ()
            rows[defense] = [Cell(text=text, notes=notes) for text in texts]
        elif len(failed):
            rows[defense] = [Cell(text="failed", notes=(str(failed["reason"].iloc[0]),)) for _ in columns]
    return Table(
        name="distal",
        title="Distal adversarials",
        caption=(
            "Images of uniform noise that gradient ascent drove to a confidence of 0.9 in a given class under the "
            "graded softmax (Schott et al. 2019, equation 4), whose alpha minimizes the cross-entropy and whose eta "
            f"makes the median confidence 0.9 on the first test images of {run.dataset} ({versions_of(run)}). Whether "
            "they look like their class is for the eye to judge."
        ),
        frame=laid_out("defense", columns, rows),
        prose=tuple(columns),
    )


def detection_table(run: Run) -> Table | None:
    """Builds the table of how well each defense's score tells adversarial examples from clean images.

    It includes what remains of this if the attacker knows the detector (Maggipinto, Terzi & Susto 2020, section 6).
    Returns None if this was not studied.
    """
    records = run.study_records("detection")
    if records.empty:
        return None
    rows: dict[str, list[Cell]] = {}
    for _, own in records.groupby("cell", sort=False):
        if own["status"].eq(Status.FAILED).any():
            cells = [Cell(text="failed", notes=(str(own["reason"].iloc[0]),)) for _ in DETECTION]
        else:
            found = detection(own)
            cells = [_number_or_reason(found[quantity]) for quantity in DETECTION]
        rows[detection_row(run, own["defense"].iloc[0], own["norm"].iloc[0])] = cells
    return Table(
        name="detection",
        title="Detection",
        caption=(
            f"A logistic detector on each defense's own score, fitted to training images and their adversarials, on "
            f"{measured_on(run)}. Its accuracy weighs clean images and adversarials the same. Right or refused: images "
            "that are not both misclassified and accepted, under PGD that knows of no detector and under selective PGD "
            "that evades it too. Refusing costs nothing there: mind the clean images refused."
        ),
        frame=laid_out("defense", list(DETECTION.values()), rows),
        quantities=(Quantity("share", 3),),
    )


def detection_row(run: Run, defense: str, norm: NormName) -> str:
    """Returns the label of a row of `detection_table`."""
    return f"{defense}, {NORM_LABELS[norm]} ε={run.threshold(norm):g}"


def _number_or_reason(value: float) -> Cell:
    return Cell(text="unknown") if np.isnan(value) else Cell(values=(value,))
