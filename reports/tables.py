"""Summary tables: a run's statistics laid out in rows and columns, ready for any renderer.

Every cell of a table says numbers or, where there are none, why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bench.norms import Norm, within
from reports.masking import Doubt, cell_doubts, defense_doubts, judged_before
from reports.randomized import (
    bound_note,
    bounded_cells,
    percentage,
    power_note,
    protocols,
    protocols_note,
    quantity_names,
    with_protocols,
)
from reports.runs import AttackRow, Run, once_per_run
from reports.statistics import (
    COSTS,
    accuracy_at,
    accuracy_interval,
    by_sample,
    local_optimality,
    median_distance,
    median_interval,
    significantly_best,
)

CLEAN = "clean"
"""Label of the row of accuracies without attack."""
NORM_LABELS: dict[Norm, str] = {"L0": "L0", "L2": "L2", "Linf": "L∞"}
NOT_APPLICABLE, NO_CELL = "n/a", "—"
"""What stands in place of numbers that there will never be."""
NOT_PLANNED = "not in the matrix"
ALPHA = 0.01
"""Level of tests, the papers' own."""
BOLD = (
    "Bold: the highest accuracy of a row without a dagger, where McNemar's exact test tells it from every other one "
    f"(p < {ALPHA:g}, adjusted by Holm's method)."
)
DECIMALS: dict[Norm, int] = {"L0": 1, "L2": 2, "Linf": 3}
"""Digits of a distance after the point, in print."""


@dataclass(frozen=True)
class Quantity:
    """One of the numbers that a table's cells hold; shares and p-values are fractions in [0, 1].

    Attributes:
        name: what it is called in data files.
        decimals: digits after the point, in print.
        percent: printed as a percentage.
        interval: two more numbers follow it, the ends of its confidence interval.
    """

    name: str
    decimals: int = 0
    percent: bool = False
    interval: bool = False


@dataclass(frozen=True)
class Cell:
    """What one cell of a table says.

    Attributes:
        values: the numbers of the table's quantities, NaN where one does not apply; or nothing.
        text: what stands there instead of numbers.
        significant: set off in print, as the caption explains.
        notes: footnotes.
        doubts: footnotes behind a dagger, that say why the numbers may be too good.
        published: numbers of a publication for the same quantities, NaN where it has none; or nothing.
    """

    values: tuple[float, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    published: tuple[float, ...] = ()
    significant: bool = False


@dataclass(frozen=True)
class Published:
    """What a publication says for a cell: numbers, NaN where it has none, and footnotes to them."""

    values: tuple[float, ...]
    notes: tuple[str, ...] = ()


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

    def row(self, label: str) -> dict[str, Cell]:
        """The cells of a row by column label."""
        cells: list[Cell] = self.frame.iloc[list(self.frame.index).index(label)].tolist()
        return dict(zip(map(str, self.frame.columns), cells, strict=True))


def all_attacks(norm: Norm) -> str:
    """The label of the row of per-sample minima over attacks."""
    return f"All {NORM_LABELS[norm]} attacks"


def clean_row(run: Run, defenses: list[str]) -> list[Cell]:
    """Accuracies without attack, behind a median that is none."""
    distances = {name: run.clean_distances[name] for name in defenses if name in run.clean_distances}
    return _marked({name: _clean_cell(run, name) for name in defenses}, run, distances, 0.0)


@once_per_run
def summary_table(run: Run, norm: Norm) -> Table:
    """Median distance and accuracy at the threshold of each defense under each attack (Schott et al. 2019, Table 1).

    A bounded attack has an accuracy at its epsilon and no median. The last row is the per-sample minimum over attacks.
    """
    attacks = run.attack_rows(norm)
    defenses = run.defenses_in(norm)
    rows = {CLEAN: clean_row(run, defenses)}
    for row in attacks:
        cells = {defense: _attack_cell(run, norm, row, defense) for defense in defenses}
        epsilon = run.threshold(norm) if row.epsilon is None else row.epsilon
        rows[row.label] = _marked(cells, run, distances_of(run, norm, row), epsilon)
    smallest = smallest_of(run, norm)
    cells = {defense: _all_cell(run, norm, defense, smallest.get(defense)) for defense in defenses}
    # Nor does anybody know whether one that was spared attacks is better.
    rows[all_attacks(norm)] = [
        replace(cell, significant=False) if spared(run, norm, defense) else cell
        for defense, cell in zip(defenses, _marked(cells, run, smallest, run.threshold(norm)), strict=True)
    ]
    caption = sentences(
        f"Median {NORM_LABELS[norm]} distance of the smallest adversarials / accuracy at ε = {run.threshold(norm):g} "
        f"on {measured_on(run)}. A median of ∞: none found for at least half of the images. "
        f"The last row takes each image's smallest adversarial over all attacks. {BOLD}",
        bound_note(run, [norm]),
        power_note(run, [norm]),
    )
    return Table(
        name=f"summary_{norm}",
        title=f"{NORM_LABELS[norm]}: median distance / accuracy at ε = {run.threshold(norm):g}",
        caption=caption,
        frame=laid_out("attack", defenses, rows),
        quantities=(
            Quantity("median", DECIMALS[norm]),
            accuracy_quantity(run),
        ),
        rules=(1, len(rows) - 1),
    )


def with_published(
    table: Table, numbers: Mapping[tuple[str, str], Published], paper: str, reference: str
) -> Table | None:
    """The part of ``table`` that a paper has numbers for, by row and column label, with these in its cells; None where
    there are none."""
    rows = [str(row) for row in table.frame.index if any(str(row) == label for label, _ in numbers)]
    columns = [str(column) for column in table.frame if any(str(column) == name for _, name in numbers)]
    if not rows:
        return None
    shown = {row: [_beside(table.row(row)[column], numbers.get((row, column))) for column in columns] for row in rows}
    return replace(
        table,
        name=f"{table.name.replace('summary', 'published')}_{paper}",
        title=f"{table.title}, beside published numbers",
        caption=f"{table.caption} In parentheses: {reference}.",
        frame=laid_out(str(table.frame.index.name), columns, shown),
        rules=tuple(i for i, row in enumerate(rows) if list(table.frame.index).index(row) in table.rules),
    )


def _beside(cell: Cell, published: Published | None) -> Cell:
    if published is None:
        return cell
    return replace(cell, published=published.values, notes=(*cell.notes, *published.notes))


def strength_table(run: Run, norm: Norm) -> Table:
    """How strong each attack is, how sure that is, and what it costs: the numbers of `summary_table` with the median's
    interval, and passes and seconds per attacked image. Cells of randomized defenses also hold their accuracies under
    the other protocols of `reports.randomized`."""
    summary, smallest, shown = summary_table(run, norm), smallest_of(run, norm), with_protocols(run, norm)
    rows: dict[str, list[Cell]] = {}
    for row in run.attack_rows(norm):
        distances, epsilon = distances_of(run, norm, row), run.threshold(norm) if row.epsilon is None else row.epsilon
        rows[row.label] = [
            _with_intervals(
                cell,
                distances.get(defense),
                epsilon,
                protocols(run, norm, defense, row) if shown else (),
                passes_and_seconds(run, row, defense),
            )
            for defense, cell in summary.row(row.label).items()
        ]
    rows[all_attacks(norm)] = [
        _with_intervals(
            cell,
            smallest.get(defense),
            run.threshold(norm),
            protocols(run, norm, defense, None) if shown else (),
            (np.nan, np.nan),
        )
        for defense, cell in summary.row(all_attacks(norm)).items()
    ]
    accuracy = replace(accuracy_quantity(run), interval=True)
    return Table(
        name=f"strength_{norm}",
        title=f"{NORM_LABELS[norm]}: strength and cost of the attacks",
        caption=sentences(
            f"Median {NORM_LABELS[norm]} distance / accuracy at ε = {run.threshold(norm):g} / mean forward plus "
            f"backward passes / mean seconds per attacked image, on {measured_on(run)}; in brackets 95 % confidence "
            "intervals (between order statistics; Wilson's). Seconds depend on the machine and on what else it does.",
            protocols_note(run) if shown else "",
            bound_note(run, [norm]),
            power_note(run, [norm]),
        ),
        frame=laid_out("attack", run.defenses_in(norm), rows),
        quantities=(
            Quantity("median", DECIMALS[norm], interval=True),
            accuracy,
            *(replace(accuracy, name=name) for name in (quantity_names(run) if shown else ())),
            Quantity("passes"),
            Quantity("seconds", 2),
        ),
        rules=(len(rows) - 1,),
    )


def ranking_table(run: Run, norm: Norm) -> Table | None:
    """The minimal attacks of a norm, strongest first: how near each comes to the best adversarials known of each
    defense (AttackBench's local optimality), on average over the defenses (global), and what it costs. None where there
    are none."""
    best = smallest_of(run, norm)
    rows: dict[str, list[Cell]] = {}
    for row in run.attack_rows(norm):
        if row.epsilon is not None or not row.cells:
            continue
        shown, local, costs = [], [], []
        for defense in run.defenses_in(norm):
            records = records_of(run, row, defense)
            if isinstance(records, Cell):
                shown.append(records)
                continue
            distances = distances_of(run, norm, row)[defense].dropna()
            optimality = local_optimality(distances, best[defense].reindex(distances.index))
            doubts = signs_of(judged_before(run, defense, [row.cells[defense]]))
            cell = Cell(text="unknown") if np.isnan(optimality) else Cell((optimality,), doubts=doubts)
            shown.append(replace(cell, notes=shortfall(records, norm)))
            local.append(optimality)
            costs.append(passes_and_seconds(run, row, defense))
        known = [value for value in local if not np.isnan(value)]
        gap = (
            ()
            if len(known) == len(run.defenses_in(norm))
            else (f"over {len(known)} of {len(run.defenses_in(norm))} defenses",)
        )
        mean = Cell(text="unknown")
        if known:
            passes, seconds = (float(np.nanmean(values)) for values in zip(*costs, strict=True))
            mean = Cell((float(np.mean(known)), passes, seconds), notes=gap)
        rows[row.label] = [mean, *shown]
    if not rows:
        return None
    order = sorted(rows, key=lambda label: -(rows[label][0].values or (-1.0,))[0])
    columns = ["all defenses", *run.defenses_in(norm)]
    return Table(
        name=f"ranking_{norm}",
        title=f"{NORM_LABELS[norm]}: ranking of the attacks",
        caption=(
            f"Optimality of each {NORM_LABELS[norm]} attack (Cina et al. 2024): 1 where its adversarials are the "
            "nearest known ones, 0 where it breaks nothing within the largest distance that these need; the mean over "
            f"the defenses it ran on / mean passes / mean seconds per attacked image, then each. On {measured_on(run)}."
            " Known are the adversarials of this run's attacks: with few attacks, all look good."
        ),
        frame=laid_out("attack", columns, {label: rows[label] for label in order}),
        quantities=(Quantity("optimality", 2), Quantity("passes"), Quantity("seconds", 2)),
    )


def accuracy_quantity(run: Run) -> Quantity:
    """An accuracy, in as many digits as the samples allow."""
    return Quantity("accuracy", 0 if len(run.samples) < 1000 else 1, percent=True)


def _marked(cells: Mapping[str, Cell], run: Run, distances: Mapping[Any, pd.Series], epsilon: float) -> list[Cell]:
    """A row, by defense, whose best accuracy, at ``epsilon``, is set off where it is significant (`BOLD`). Of a defense
    that the row will or may yet say something about, nobody knows whether it is better."""
    if not all(cell.values or cell.text in (NOT_APPLICABLE, NO_CELL) for cell in cells.values()):
        return list(cells.values())
    known = pd.DataFrame(dict(distances)).dropna()
    best = significantly_best(~within(known, epsilon), ALPHA) if len(known) else None
    return [
        replace(cell, significant=True) if name == best and cell.values and not cell.doubts else cell
        for name, cell in cells.items()
    ]


def _clean_cell(run: Run, defense: str) -> Cell:
    if defense not in run.clean_distances:
        return Cell(text="not run yet")
    distances = run.clean_distances[defense]
    known = distances.dropna()
    if known.empty:
        return Cell(text="failed")
    missing = len(distances) - len(known)
    notes = (f"{len(known)} of {len(distances)}, {missing} failed",) if missing else ()
    doubts = signs_of(judged_before(run, defense, run.cells_of(defense)))
    return Cell((np.nan, accuracy_at(known, 0.0)), notes=notes, doubts=doubts)


def _attack_cell(run: Run, norm: Norm, row: AttackRow, defense: str) -> Cell:
    records = records_of(run, row, defense)
    if isinstance(records, Cell):
        return records
    distances = records[norm.lower()].dropna()
    if len(distances) < len(records) and not distances.gt(0).any():
        # Images that are misclassified as they are say nothing about the attack.
        return Cell(text=invalid(records, norm), notes=_details(records, norm))
    notes = (*shortfall(records, norm), *_undecided(records["status"].eq("undecided")))
    doubts = signs_of(*cell_doubts(run, row, defense))
    if row.epsilon is not None:
        return Cell((np.nan, accuracy_at(distances, row.epsilon)), notes=notes, doubts=doubts)
    values = (median_distance(distances), accuracy_at(distances, run.threshold(norm)))
    return Cell(values, notes=notes, doubts=doubts)


def _all_cell(run: Run, norm: Norm, defense: str, distances: pd.Series | None) -> Cell:
    """The per-sample minimum, with footnotes that name the attacks which could not take part in full, and count those
    which took part where others were not meant to."""
    gaps = gaps_of(run, norm, defense)
    notes: tuple[str, ...] = (f"incomplete: {'; '.join(gaps)}",) if gaps else ()
    if spared(run, norm, defense):
        met, there_are = meant_for(run, norm, [defense]), meant_for(run, norm, run.defenses)
        notes += (f"under {len(met)} of {len(there_are)} attacks only",)
    if distances is None:
        return Cell(text="not run yet", notes=notes) if gaps else Cell(text=NO_CELL, notes=("no attack applies",))
    known = distances.dropna()
    if known.empty:
        return Cell(text=f"unknown ({len(distances)}/{len(distances)})", notes=notes)
    if len(known) < len(distances):
        smallest = run.smallest(norm)
        notes = (*shortfall(smallest[smallest["defense"] == defense], norm), *notes)
    records = run.records_against(defense, norm, ["sample", "status"])
    undecided = records.loc[records["status"] == "undecided", "sample"]
    notes += _undecided(pd.Series(distances.index.isin(undecided) & np.isposinf(distances)))
    alphas = bounded_cells(run, norm, defense)
    if alphas:
        bound = percentage(min(1.0, sum(alphas)))
        notes += (f"over m = {len(alphas)} cells: broken by mistake with probability at most m α = {bound} per sample",)
    median = median_distance(known) if minimised(run, norm, defense) else np.nan
    doubts = signs_of(*defense_doubts(run, norm, defense))
    return Cell((median, accuracy_at(known, run.threshold(norm))), notes=notes, doubts=doubts)


def _undecided(images: pd.Series) -> tuple[str, ...]:
    """A footnote that counts undecided images; nothing where there are none."""
    return (f"{images.sum()} of {len(images)} undecided",) if images.any() else ()


def spared(run: Run, norm: Norm, defense: str) -> bool:
    """True if the matrix keeps attacks of this norm from the defense, without need."""
    return meant_for(run, norm, [defense]) != meant_for(run, norm, run.defenses)


def meant_for(run: Run, norm: Norm, defenses: Sequence[str]) -> set[str]:
    """The attacks of a norm that the matrix has a place for on one of the defenses, by name: variants of an attack are
    the same one."""
    rows = run.attack_rows(norm)
    return {row.attack.partition(":")[0] for row in rows if any(row.concerns(defense) for defense in defenses)}


def minimised(run: Run, norm: Norm, defense: str) -> bool:
    """True if a minimal attack ran on the defense: adversarials of bounded ones lie near their epsilon and alone say
    nothing about the smallest."""
    return any(row.epsilon is None and row.cells.get(defense) in run.facts for row in run.attack_rows(norm))


def with_distances(run: Run, norm: Norm) -> list[str]:
    """The defenses of a norm but for those that bounded attacks alone met; all of them where there are no others."""
    bounded = {name for name in smallest_of(run, norm) if not minimised(run, norm, name)}
    return [name for name in run.defenses_in(norm) if name not in bounded] or run.defenses_in(norm)


def signs_of(*doubts: Doubt | None) -> tuple[str, ...]:
    """What was seen, for footnotes."""
    return tuple(doubt.sign for doubt in doubts if doubt is not None)


def _with_intervals(
    cell: Cell,
    distances: pd.Series | None,
    epsilon: float,
    others: tuple[float, ...],
    costs: tuple[float, float],
) -> Cell:
    """A cell that says median and accuracy, with their intervals; behind them the accuracies under other protocols, and
    mean passes and seconds."""
    if distances is None or not cell.values:
        return cell
    (median, accuracy), known = cell.values, distances.dropna()
    of_median = (np.nan, np.nan) if np.isnan(median) else median_interval(known)
    of_accuracy = accuracy_interval(known, epsilon)
    return replace(cell, values=(median, *of_median, accuracy, *of_accuracy, *others, *costs), significant=False)


def passes_and_seconds(run: Run, row: AttackRow, defense: str) -> tuple[float, float]:
    """Mean passes and seconds of an attack per image that was attacked; NaN where none was."""
    costs = run.facts[row.cells[defense]].costs if row.cells.get(defense) in run.facts else dict.fromkeys(COSTS, np.nan)
    return costs["forwards"] + costs["backwards"], costs["seconds"]


@once_per_run
def distances_of(run: Run, norm: Norm, row: AttackRow) -> dict[str, pd.Series]:
    """The distances of an attack by sample, for each defense whose cell has run."""
    found = {defense: run.cell_records(cell) for defense, cell in row.cells.items()}
    return {defense: by_sample(own, norm.lower()) for defense, own in found.items() if own is not None}


@once_per_run
def smallest_of(run: Run, norm: Norm) -> dict[str, pd.Series]:
    """The smallest distances over all attacks by sample, for each defense that has some."""
    return {str(name): by_sample(own, "distance") for name, own in run.smallest(norm).groupby("defense")}


@once_per_run
def gaps_of(run: Run, norm: Norm, defense: str) -> list[str]:
    """The attacks on a defense whose cell has not run or lacks a valid result on an image that another attack has one
    for; where no attack has any, all attacks."""
    distances = smallest_of(run, norm).get(defense, pd.Series(dtype=float))
    unknown = distances.index[distances.isna()]
    samples = unknown[:0] if len(unknown) == len(distances) else unknown
    gaps = ((row, problem_of(run, norm, row, defense, samples)) for row in run.attack_rows(norm))
    return [f"{row.label} {problem}" for row, problem in gaps if problem]


def problem_of(run: Run, norm: Norm, row: AttackRow, defense: str, passed_over: Collection[int] = ()) -> str:
    """That the cell of an attack on a defense has not run, or counts of its images without a valid result; empty where
    there is no cell, or no problem. Some samples may be passed over."""
    if defense not in row.cells:
        return ""
    records = run.cell_records(row.cells[defense])
    if records is None:
        return "not run yet"
    return invalid(records, norm, passed_over)


def records_of(run: Run, row: AttackRow, defense: str) -> pd.DataFrame | Cell:
    """The records of one place in a table, or why there are none."""
    if defense in row.cells:
        records = run.cell_records(row.cells[defense])
        return Cell(text="not run yet") if records is None else records
    if defense in row.not_applicable:
        return Cell(text=NOT_APPLICABLE, notes=(f"not applicable: {row.not_applicable[defense]}",))
    return Cell(text=NO_CELL, notes=(NOT_PLANNED,))


def invalid(records: pd.DataFrame, norm: Norm, passed_over: Collection[int] = ()) -> str:
    """Counts of the records without a distance, by status and kind of reason; empty if there are none."""
    unknown = np.isnan(records[norm.lower()].to_numpy(float))
    if unknown.any() and len(passed_over):
        unknown &= ~records["sample"].isin(list(passed_over)).to_numpy()
    if not unknown.any():
        return ""
    kinds = [
        f"{status}: {reason.partition(':')[0]}" if reason else status
        for status, reason in zip(records["status"][unknown], records["reason"][unknown], strict=True)
    ]
    return "; ".join(f"{kind} ({count}/{len(records)})" for kind, count in Counter(kinds).items())


def shortfall(records: pd.DataFrame, norm: Norm) -> tuple[str, ...]:
    """Footnotes to a number over the records with a distance, where some have none: ``4 of 5, 1 failed (non_finite)``,
    and the reasons in full where that shortens them."""
    unknown = np.isnan(records[norm.lower()].to_numpy(float))
    if not unknown.any():
        return ()
    missing = records[unknown]
    reasons = missing["reason"].str.partition(":")[0]
    kinds = Counter(zip(missing["status"], reasons, strict=True))
    counts = [f"{count} {status}{f' ({reason})' if reason else ''}" for (status, reason), count in kinds.items()]
    return f"{len(records) - len(missing)} of {len(records)}, {', '.join(counts)}", *_details(records, norm)


def _details(records: pd.DataFrame, norm: Norm) -> tuple[str, ...]:
    """The reasons in full, where `invalid` and `shortfall` shorten them."""
    reasons = records.loc[records[norm.lower()].isna(), "reason"]
    return tuple(reasons[reasons.str.contains(":")].unique())


def laid_out(heading: str, columns: list[str], rows: Mapping[str, list[Cell]]) -> pd.DataFrame:
    """A table's frame, from its rows by label."""
    index = pd.Index(list(rows), name=heading)
    return pd.DataFrame(list(rows.values()), index=index, columns=columns, dtype=object)


def sentences(*texts: str) -> str:
    """A caption of those texts that are not empty."""
    return " ".join(filter(None, texts))


def measured_on(run: Run) -> str:
    """How many images of what, with which versions and, where that was chosen, which attacks, for captions."""
    chosen = f", attacks {', '.join(run.manifest['chosen'])} only" if "chosen" in run.manifest else ""
    return f"{len(run.samples)} test images of {run.dataset} ({versions_of(run)}{chosen})"


def versions_of(run: Run) -> str:
    """The versions that numbers depend on, for captions."""
    versions = run.manifest["provenance"]["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("assay", "torch") if name in versions)
