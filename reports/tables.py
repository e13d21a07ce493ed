"""Summary tables: a run's statistics laid out in rows and columns, ready for any renderer.

Every cell of a table says numbers or, where there are none, why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bench.norms import Norm, within
from reports.masking import Doubt, cell_doubts, defense_doubts, evidence
from reports.runs import AttackRow, Run
from reports.statistics import (
    accuracy_at,
    brackets,
    clean_accuracy,
    mcnemar,
    median_distance,
    median_interval,
    smallest_adversarials,
)

CERTIFICATE_REFUTED = "an adversarial lies within the certified distance: the certificate is wrong"
CLEAN = "clean"
"""Label of the row of accuracies without attack."""
NORM_LABELS: dict[Norm, str] = {"L0": "L0", "L2": "L2", "Linf": "L∞"}
_COSTS = {
    "forwards": "forward passes",
    "backwards": "backward passes",
    "inner_steps": "steps of an optimisation inside the defense",
}
_DECIMALS: dict[Norm, int] = {"L0": 1, "L2": 2, "Linf": 3}


@dataclass(frozen=True)
class Quantity:
    """One of the numbers that a table's cells hold; shares and p-values are fractions in [0, 1].

    Attributes:
        name: what it is called in data files.
        decimals: digits after the point, in print.
        percent: printed as a percentage.
    """

    name: str
    decimals: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Cell:
    """What one cell of a table says.

    Attributes:
        values: a number for each of the table's quantities, NaN where one does not apply; or nothing.
        text: what stands there instead of numbers.
        notes: footnotes.
        doubts: footnotes behind a dagger, that say why the numbers may be too good.
        published: numbers of a publication for the same quantities, NaN where it has none; or nothing.
    """

    values: tuple[float, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    published: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of `Cell`.

    Attributes:
        name: stem of its files and of its LaTeX label.
        title: a few words.
        caption: what the numbers are and what they were measured on.
        frame: the cells; its index are the row labels, the index's name their heading, its columns the column labels.
        quantities: what the cells' values are.
        prose: columns that hold running text.
        rules: positions of rows that are set off from the one above.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    quantities: tuple[Quantity, ...] = ()
    prose: tuple[str, ...] = ()
    rules: tuple[int, ...] = ()


def all_attacks(norm: Norm) -> str:
    """The label of the row of per-sample minima over attacks."""
    return f"All {NORM_LABELS[norm]} attacks"


def summary_table(run: Run, norm: Norm) -> Table:
    """Median distance and accuracy at the threshold of each defense under each attack (Schott et al. 2019, Table 1).

    A bounded attack has an accuracy at its epsilon and no median. The last row is the per-sample minimum over attacks.
    """
    attacks = run.attack_rows(norm)
    rows: dict[str, list[Cell]] = {CLEAN: [_clean_cell(run, defense) for defense in run.defenses]}
    rows |= {row.label: [_attack_cell(run, norm, row, defense) for defense in run.defenses] for row in attacks}
    smallest = {
        defense: frame["distance"] for defense, frame in smallest_adversarials(run.records, norm).groupby("defense")
    }
    rows[all_attacks(norm)] = [
        _all_cell(run, norm, attacks, defense, smallest.get(defense)) for defense in run.defenses
    ]
    caption = (
        f"Median {NORM_LABELS[norm]} distance of the smallest adversarials / accuracy at ε = {run.threshold(norm):g} "
        f"on {_measured_on(run)}. A median of ∞: none found for at least half of the images. "
        f"The last row takes each image's smallest adversarial over all attacks."
    )
    return Table(
        name=f"summary_{norm}",
        title=f"{NORM_LABELS[norm]}: median distance / accuracy at ε = {run.threshold(norm):g}",
        caption=caption,
        frame=_frame("attack", run.defenses, rows),
        quantities=(
            Quantity("median", _DECIMALS[norm]),
            _accuracy(run),
        ),
        rules=(1, len(rows) - 1),
    )


def with_published(table: Table, numbers: Mapping[tuple[str, str], tuple[float, ...]], source: str) -> Table | None:
    """``table`` with published numbers, by row and column label, in its cells; None where there are none."""
    if not numbers:
        return None
    columns = [str(column) for column in table.frame]
    rows = {
        str(row): [
            replace(cell, published=numbers.get((str(row), name), ()))
            for name, cell in zip(columns, cells, strict=True)
        ]
        for row, cells in zip(table.frame.index, table.frame.to_numpy(), strict=True)
    }
    return replace(
        table,
        name=table.name.replace("summary", "published"),
        caption=f"{table.caption} In parentheses: {source}.",
        frame=_frame(str(table.frame.index.name), columns, rows),
    )


def mcnemar_table(run: Run, norm: Norm) -> Table:
    """p-values of McNemar's exact test for each pair of defenses, under the per-sample minimum over attacks.

    Compared is survival at the threshold, on the samples whose distance is known for both defenses.
    """
    smallest = smallest_adversarials(run.records, norm)
    distances = smallest.pivot(index="sample", columns="defense", values="distance").reindex(columns=run.defenses)
    doubts = {defense: _signs(defense_doubts(run, norm, defense)) for defense in run.defenses}
    rows = {
        first: [
            _mcnemar_cell(run, norm, distances[first], distances[second], doubts) if column < row else Cell()
            for column, second in enumerate(run.defenses[:-1])
        ]
        for row, first in enumerate(run.defenses[1:], start=1)
    }
    caption = (
        f"p-values of McNemar's exact test (two-sided, uncorrected) that two defenses survive all "
        f"{NORM_LABELS[norm]} attacks within ε = {run.threshold(norm):g} equally often, on {_measured_on(run)}."
    )
    return Table(
        name=f"mcnemar_{norm}",
        title=f"{NORM_LABELS[norm]}: McNemar p-values",
        caption=caption,
        frame=_frame("defense", run.defenses[:-1], rows),
        quantities=(Quantity("p", 3),),
    )


def strength_table(run: Run, norm: Norm) -> Table:
    """How strong each attack is, how sure that is, and what it costs: the numbers of `summary_table` with the median's
    interval, and passes and seconds per attacked image."""
    together = all_attacks(norm)
    summary: dict[Any, dict[Any, Cell]] = summary_table(run, norm).frame.to_dict("index")
    smallest = smallest_adversarials(run.records, norm).assign(forwards=np.nan, seconds=np.nan)
    rows = {
        row.label: [
            _with_interval_and_cost(summary[row.label][defense], _records(run, row, defense), norm)
            for defense in run.defenses
        ]
        for row in run.attack_rows(norm)
    }
    rows[together] = [
        _with_interval_and_cost(summary[together][defense], smallest[smallest["defense"] == defense], norm)
        for defense in run.defenses
    ]
    return Table(
        name=f"strength_{norm}",
        title=f"{NORM_LABELS[norm]}: strength and cost of the attacks",
        caption=(
            f"Median {NORM_LABELS[norm]} distance / lower / upper end of its 95 % confidence interval (from order "
            f"statistics) / accuracy at ε = {run.threshold(norm):g} / mean forward plus backward passes / mean seconds "
            f"per attacked image, on {_measured_on(run)}. Seconds depend on the machine and on what else it does."
        ),
        frame=_frame("attack", run.defenses, rows),
        quantities=(
            *(Quantity(name, _DECIMALS[norm]) for name in ("median", "low", "high")),
            _accuracy(run),
            Quantity("passes"),
            Quantity("seconds", 2),
        ),
        rules=(len(rows) - 1,),
    )


def bracket_table(run: Run, norm: Norm) -> Table | None:
    """What is known of the distance to the nearest adversarial from below and from above; None without lower bounds."""
    known = brackets(run.records, run.bounds, norm)
    if known.empty:
        return None
    rows: dict[str, list[Cell]] = {}
    for defense in run.defenses:
        own = known[known["defense"] == defense]
        if own.empty:
            continue
        certified = bool(own["certificate"].all())
        # A refuted estimate says nothing; a refuted certificate is an error that has to be seen.
        bounds = own["lower_bound"].mask(own["refuted"] & ~own["certificate"].astype(bool), 0.0)
        refuted = int(own["refuted"].sum())
        kind = "a certificate" if certified else "an estimate"
        rows[defense] = [
            Cell((median_distance(bounds),), doubts=(CERTIFICATE_REFUTED,) if certified and refuted else ()),
            _number_or_reason(median_distance(own["distance"])),
            Cell(text=f"{refuted} of {len(own)}"),
            Cell(text=", ".join([kind, *(note for note in own["note"].unique() if note)])),
        ]
    return Table(
        name=f"bracket_{norm}",
        title=f"{NORM_LABELS[norm]}: between lower bound and smallest adversarial",
        caption=(
            f"Median {NORM_LABELS[norm]} distance, over {_measured_on(run)}, within which the defense shows that an "
            f"image has no adversarial, and that of the smallest adversarial any attack found; 0 for images that are "
            f"misclassified as they are. An estimate that an adversarial refutes counts as 0. Each image's own bracket "
            f"is in brackets_{norm}.csv."
        ),
        frame=_frame("defense", ["lower bound", "smallest adversarial", "refuted", "the bound is"], rows),
        quantities=(Quantity("median", _DECIMALS[norm]),),
        prose=("refuted", "the bound is"),
    )


def distal_table(run: Run) -> Table | None:
    """How easily noise is driven to confidence in a class (Schott et al. 2019, section 7), and the calibration that
    makes confidences comparable; None where that was not studied."""
    if run.distals.empty:
        return None
    columns = ["reached", "median steps", "alpha", "log eta"]
    rows: dict[str, list[Cell]] = {}
    for defense in run.defenses:
        own = run.distals[run.distals["defense"] == defense]
        if own["status"].eq("failed").any():
            rows[defense] = [Cell(text="failed", notes=(str(own["reason"].iloc[0]),)) for _ in columns]
        elif len(own):
            reached = int((own["status"] == "reached").sum())
            steps, alpha, log_eta = own["steps"].median(), own["alpha"].iloc[0], own["log_eta"].iloc[0]
            texts = [f"{reached} of {len(own)}", f"{steps:g}", f"{alpha:.3g}", f"{log_eta:.3g}"]
            rows[defense] = [Cell(text=text) for text in texts]
    return Table(
        name="distal",
        title="Distal adversarials",
        caption=(
            "Images of uniform noise that gradient ascent drove to a confidence of 0.9 in a given class under the "
            "graded softmax (Schott et al. 2019, equation 4), whose alpha minimises the cross-entropy and whose eta "
            f"makes the median confidence 0.9 on the first test images of {run.dataset} ({_versions(run)}). Whether "
            "they look like their class is for the eye to judge."
        ),
        frame=_frame("defense", columns, rows),
        prose=tuple(columns),
    )


def _number_or_reason(value: float) -> Cell:
    return Cell(text="unknown") if np.isnan(value) else Cell(values=(value,))


def refuted_certificates(run: Run) -> list[str]:
    """One line for each defense and norm of which a certificate exceeds a found adversarial."""
    lines = []
    for norm in run.norms:
        known = brackets(run.records, run.bounds, norm)
        if known.empty:
            continue
        wrong = known[known["refuted"] & known["certificate"].astype(bool)]
        for defense, own in wrong.groupby("defense", sort=False):
            first = own.iloc[0]
            lines.append(
                f"{defense}, {NORM_LABELS[norm]}: {len(own)} certificates exceed found adversarials "
                f"(sample {first['sample']}: {first['lower_bound']:.4g} against {first['distance']:.4g})"
            )
    return lines


def attacks_table(run: Run) -> Table:
    """What each attack may spend and with which parameters, once per setting."""
    settings: dict[tuple[str, str, int], set[str]] = {}
    for cell in run.manifest["cells"]:
        key = (cell["attack"], _parameters(cell["parameters"]), cell["budget"])
        settings.setdefault(key, set()).add(cell["defense"])
    rows: list[tuple[str, list[Cell]]] = []
    for attack in run.manifest["attacks"]:
        own = [(key, defenses) for key, defenses in settings.items() if key[0] == attack["name"]]
        for (name, parameters, budget), defenses in own:
            against = "" if len(own) == 1 else ", ".join(d for d in run.defenses if d in defenses)
            norms = ", ".join(NORM_LABELS[norm] for norm in attack["norms"])
            texts = [norms, attack["kind"], attack["access"], f"{budget}", parameters, against, attack["citation"]]
            rows.append((name, [Cell(text=text) for text in texts]))
    columns = ["norms", "kind", "access", "budget", "parameters", "against", "citation"]
    filled = [i for i, _ in enumerate(columns) if any(cells[i].text for _, cells in rows)]
    frame = pd.DataFrame(
        [[cells[i] for i in filled] for _, cells in rows],
        index=pd.Index([name for name, _ in rows], name="attack"),
        columns=[columns[i] for i in filled],
        dtype=object,
    )
    return Table(
        name="attacks",
        title="Attacks and budgets",
        caption="Attacks with their parameters. The budget is in forward plus backward passes per image.",
        frame=frame,
        prose=tuple(column for column in ("parameters", "against", "citation") if column in frame.columns),
    )


def cost_table(run: Run) -> Table:
    """Mean passes and inner optimisation steps per attacked image, of each attack on each defense."""
    rows = {
        f"{row.label}, {NORM_LABELS[norm]}": [_cost_cell(run, row, defense) for defense in run.defenses]
        for norm in run.norms
        for row in run.attack_rows(norm)
    }
    return Table(
        name="cost",
        title="Cost",
        caption=(
            f"Mean {' / '.join(_COSTS.values())}, per attacked image (clean errors are not attacked), "
            f"on {_measured_on(run)}."
        ),
        frame=_frame("attack", run.defenses, rows),
        quantities=tuple(map(Quantity, _COSTS)),
    )


def defenses_table(run: Run) -> Table:
    """What each defense is."""
    rows = {
        defense["name"]: [Cell(text="yes" if defense["randomized"] else "no"), Cell(text=defense["citation"])]
        for defense in run.manifest["defenses"]
    }
    return Table(
        name="defenses",
        title="Defenses",
        caption="Defenses of this run. Randomised ones are judged over many draws.",
        frame=_frame("defense", ["randomised", "citation"], rows),
        prose=("citation",),
    )


def masking_table(run: Run) -> Table:
    """Every doubt of the run: one row per defense, norm and sign."""
    rows: dict[tuple[str, Norm, str], list[str]] = {}
    for defense, norm, attack, doubt in evidence(run):
        rows.setdefault((defense, norm, doubt.sign), []).append(f"{attack or 'all attacks'}: {doubt.detail}")
    return Table(
        name="masking",
        title="Masking evidence",
        caption=(
            "What makes a careful reader doubt that a defense is as robust as it looks, and where. "
            + ("A dagger marks these numbers in the other tables." if rows else "Nothing was found.")
        ),
        frame=pd.DataFrame(
            [
                [Cell(text=NORM_LABELS[norm]), Cell(text=sign), Cell(text=", ".join(details))]
                for (_, norm, sign), details in rows.items()
            ],
            index=pd.Index([defense for defense, _, _ in rows], name="defense"),
            columns=["norm", "sign", "evidence"],
            dtype=object,
        ),
        prose=("sign", "evidence"),
    )


def problems(run: Run) -> list[str]:
    """One line for each cell or study that has not run or holds samples without a valid result."""
    of_cells = [
        f"{defense}, {NORM_LABELS[norm]}: {gap}"
        for norm in run.norms
        for attacks in [run.attack_rows(norm)]
        for defense in run.defenses
        for gap in _gaps(run, norm, attacks, defense)
    ]
    return [*of_cells, *_study_problems(run)]


def _study_problems(run: Run) -> list[str]:
    lines = []
    for study in run.manifest.get("studies", []):
        records = run.bounds if study["kind"] == "lower_bound" else run.distals
        own = records[records["cell"] == study["id"]] if len(records) else records
        norm = f", {NORM_LABELS[study['norm']]}" if study["norm"] else ""
        place = f"{study['defense']}{norm}: {study['kind'].replace('_', ' ')}"
        if own.empty:
            lines.append(f"{place} not run yet")
            continue
        failed = own.loc[own["status"] == "failed", "reason"].tolist()
        lines += [f"{place} failed: {reason} ({count}/{len(own)})" for reason, count in Counter(failed).items()]
    return lines


def _accuracy(run: Run) -> Quantity:
    return Quantity("accuracy", 0 if len(run.samples) < 1000 else 1, percent=True)


def _clean_cell(run: Run, defense: str) -> Cell:
    records = run.records[run.records["defense"] == defense]
    accuracy = clean_accuracy(records, len(run.samples))
    if np.isnan(accuracy):
        return Cell(text="not run yet" if records.empty else "failed")
    return Cell((np.nan, accuracy))


def _attack_cell(run: Run, norm: Norm, row: AttackRow, defense: str) -> Cell:
    records = _records(run, row, defense)
    if isinstance(records, Cell):
        return records
    invalid = _invalid(records, norm)
    if invalid:
        return Cell(text=invalid, notes=_details(records, norm))
    distances = records[norm.lower()]
    doubts = _signs(cell_doubts(run, row, defense))
    if row.epsilon is not None:
        return Cell((np.nan, accuracy_at(distances, row.epsilon)), doubts=doubts)
    return Cell((median_distance(distances), accuracy_at(distances, run.threshold(norm))), doubts=doubts)


def _all_cell(run: Run, norm: Norm, attacks: list[AttackRow], defense: str, distances: pd.Series | None) -> Cell:
    """The per-sample minimum, with a footnote that names the attacks which could not take part in full."""
    gaps = _gaps(run, norm, attacks, defense)
    notes = (f"incomplete: {'; '.join(gaps)}",) if gaps else ()
    if distances is None:
        return Cell(text="not run yet", notes=notes) if gaps else Cell(text="—", notes=("no attack applies",))
    unknown = int(distances.isna().sum())
    if unknown:
        return Cell(text=f"unknown ({unknown}/{len(distances)})", notes=notes)
    # adversarials of bounded attacks lie near their epsilon: alone, they say nothing about the smallest ones
    minimal = any(row.epsilon is None and defense in row.cells for row in attacks)
    median = median_distance(distances) if minimal else np.nan
    doubts = _signs(defense_doubts(run, norm, defense))
    return Cell((median, accuracy_at(distances, run.threshold(norm))), notes=notes, doubts=doubts)


def _signs(doubts: list[Doubt]) -> tuple[str, ...]:
    return tuple(doubt.sign for doubt in doubts)


def _with_interval_and_cost(cell: Cell, records: pd.DataFrame | Cell, norm: Norm) -> Cell:
    """A cell that says median and accuracy, with the median's interval between them, mean passes and seconds behind."""
    if isinstance(records, Cell) or not cell.values:
        return cell
    median, accuracy = cell.values
    low, high = (np.nan, np.nan) if np.isnan(median) else median_interval(records[norm.lower()])
    attacked = records[~records["status"].isin(["clean_error", "failed"])]
    passes, seconds = (attacked["forwards"] + attacked["backwards"]).mean(), attacked["seconds"].mean()
    return replace(cell, values=(median, low, high, accuracy, passes, seconds))


def _gaps(run: Run, norm: Norm, attacks: list[AttackRow], defense: str) -> list[str]:
    """The attacks on a defense whose cell has not run or holds samples without a valid result."""
    gaps = []
    for row in attacks:
        if defense in row.cells:
            records = run.cell_records(row.cells[defense])
            problem = "not run yet" if records is None else _invalid(records, norm)
            gaps += [f"{row.label} {problem}"] if problem else []
    return gaps


def _mcnemar_cell(
    run: Run, norm: Norm, first: pd.Series, second: pd.Series, doubts: Mapping[str, tuple[str, ...]]
) -> Cell:
    valid = first.notna() & second.notna()
    if not valid.any():
        return Cell(text="—", notes=("no image with a known distance for both",))
    epsilon = run.threshold(norm)
    samples = len(run.samples)
    notes = [] if valid.sum() == samples else [f"on the {valid.sum()} of {samples} images valid for both"]
    attacks = run.attack_rows(norm)
    names = (str(first.name), str(second.name))
    notes += [f"not all attacks on {name} are complete" for name in names if _gaps(run, norm, attacks, name)]
    p = mcnemar(~within(first[valid], epsilon), ~within(second[valid], epsilon))
    return Cell((p,), notes=tuple(notes), doubts=tuple(f"{name}: {sign}" for name in names for sign in doubts[name]))


def _cost_cell(run: Run, row: AttackRow, defense: str) -> Cell:
    records = _records(run, row, defense)
    if isinstance(records, Cell):
        return records
    attacked = records[~records["status"].isin(["clean_error", "failed"])]
    if attacked.empty:
        return Cell(text="—", notes=("no image was attacked",))
    return Cell(tuple(float(attacked[cost].mean()) for cost in _COSTS))


def _records(run: Run, row: AttackRow, defense: str) -> pd.DataFrame | Cell:
    """The records of one place in a table, or why there are none."""
    if defense in row.cells:
        records = run.cell_records(row.cells[defense])
        return Cell(text="not run yet") if records is None else records
    if defense in row.not_applicable:
        return Cell(text="n/a", notes=(f"not applicable: {row.not_applicable[defense]}",))
    return Cell(text="—", notes=("not in the matrix",))


def _invalid(records: pd.DataFrame, norm: Norm) -> str:
    """Counts of the records without a distance, by status and kind of reason; empty if there are none."""
    invalid = records[records[norm.lower()].isna()]
    kinds = [
        f"{status}: {reason.partition(':')[0]}" if reason else status
        for status, reason in zip(invalid["status"], invalid["reason"], strict=True)
    ]
    return "; ".join(f"{kind} ({count}/{len(records)})" for kind, count in Counter(kinds).items())


def _details(records: pd.DataFrame, norm: Norm) -> tuple[str, ...]:
    """The reasons in full, where `_invalid` shortens them."""
    reasons = records.loc[records[norm.lower()].isna(), "reason"]
    return tuple(reasons[reasons.str.contains(":")].unique())


def _parameters(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())


def _frame(heading: str, columns: list[str], rows: Mapping[str, list[Cell]]) -> pd.DataFrame:
    index = pd.Index(list(rows), name=heading)
    return pd.DataFrame(list(rows.values()), index=index, columns=columns, dtype=object)


def _measured_on(run: Run) -> str:
    return f"{len(run.samples)} test images of {run.dataset} ({_versions(run)})"


def _versions(run: Run) -> str:
    versions = run.manifest["provenance"]["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("assay", "torch") if name in versions)
