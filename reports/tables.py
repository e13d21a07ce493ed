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

from bench.norms import Norm
from reports.masking import Doubt, cell_doubts, defense_doubts, evidence
from reports.runs import AttackRow, Run
from reports.statistics import (
    accuracy_at,
    accuracy_interval,
    clean_accuracy,
    local_optimality,
    median_distance,
    median_interval,
    smallest_adversarials,
)

CLEAN = "clean"
"""Label of the row of accuracies without attack."""
NORM_LABELS: dict[Norm, str] = {"L0": "L0", "L2": "L2", "Linf": "L∞"}
_COSTS = {
    "forwards": "forward passes",
    "backwards": "backward passes",
    "inner_steps": "steps of an optimisation inside the defense",
}
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
        f"on {measured_on(run)}. A median of ∞: none found for at least half of the images. "
        f"The last row takes each image's smallest adversarial over all attacks."
    )
    return Table(
        name=f"summary_{norm}",
        title=f"{NORM_LABELS[norm]}: median distance / accuracy at ε = {run.threshold(norm):g}",
        caption=caption,
        frame=laid_out("attack", run.defenses, rows),
        quantities=(
            Quantity("median", DECIMALS[norm]),
            accuracy_quantity(run),
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
        frame=laid_out(str(table.frame.index.name), columns, rows),
    )


def strength_table(run: Run, norm: Norm) -> Table:
    """How strong each attack is, how sure that is, and what it costs: the numbers of `summary_table` with the median's
    interval, and passes and seconds per attacked image."""
    together = all_attacks(norm)
    summary: dict[Any, dict[Any, Cell]] = summary_table(run, norm).frame.to_dict("index")
    smallest = smallest_adversarials(run.records, norm).assign(forwards=np.nan, seconds=np.nan)
    rows = {
        row.label: [
            _with_intervals_and_cost(
                summary[row.label][defense],
                _records(run, row, defense),
                norm,
                run.threshold(norm) if row.epsilon is None else row.epsilon,
            )
            for defense in run.defenses
        ]
        for row in run.attack_rows(norm)
    }
    rows[together] = [
        _with_intervals_and_cost(
            summary[together][defense], smallest[smallest["defense"] == defense], norm, run.threshold(norm)
        )
        for defense in run.defenses
    ]
    return Table(
        name=f"strength_{norm}",
        title=f"{NORM_LABELS[norm]}: strength and cost of the attacks",
        caption=(
            f"Median {NORM_LABELS[norm]} distance / accuracy at ε = {run.threshold(norm):g} / mean forward plus "
            f"backward passes / mean seconds per attacked image, on {measured_on(run)}; in brackets 95 % confidence "
            "intervals (between order statistics; Wilson's). Seconds depend on the machine and on what else it does."
        ),
        frame=laid_out("attack", run.defenses, rows),
        quantities=(
            Quantity("median", DECIMALS[norm], interval=True),
            replace(accuracy_quantity(run), interval=True),
            Quantity("passes"),
            Quantity("seconds", 2),
        ),
        rules=(len(rows) - 1,),
    )


def ranking_table(run: Run, norm: Norm) -> Table | None:
    """The minimal attacks of a norm, strongest first: how near each comes to the best adversarials known of each
    defense (AttackBench's local optimality), on average over the defenses (global), and what it costs. None where there
    are none."""
    smallest = smallest_adversarials(run.records, norm)
    best = {name: own.set_index("sample")["distance"] for name, own in smallest.groupby("defense")}
    rows: dict[str, list[Cell]] = {}
    for row in run.attack_rows(norm):
        if row.epsilon is not None or not row.cells:
            continue
        shown, local, costs = [], [], []
        for defense in run.defenses:
            records = _records(run, row, defense)
            if isinstance(records, Cell):
                shown.append(records)
                continue
            distances = records.set_index("sample")[norm.lower()]
            optimality = local_optimality(distances, best[defense].reindex(distances.index))
            shown.append(Cell(text="unknown") if np.isnan(optimality) else Cell((optimality,)))
            local.append(optimality)
            costs.append(passes_and_seconds(records))
        known = [value for value in local if not np.isnan(value)]
        gap = () if len(known) == len(run.defenses) else (f"over {len(known)} of {len(run.defenses)} defenses",)
        mean = Cell(text="unknown")
        if known:
            passes, seconds = (float(np.nanmean(values)) for values in zip(*costs, strict=True))
            mean = Cell((float(np.mean(known)), passes, seconds), notes=gap)
        rows[row.label] = [mean, *shown]
    if not rows:
        return None
    order = sorted(rows, key=lambda label: -(rows[label][0].values or (-1.0,))[0])
    columns = ["all defenses", *run.defenses]
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
            f"on {measured_on(run)}."
        ),
        frame=laid_out("attack", run.defenses, rows),
        quantities=tuple(map(Quantity, _COSTS)),
    )


def defenses_table(run: Run) -> Table:
    """What each defense is."""
    columns: dict[str, dict[str, str]] = {"randomised": {}, "parameters": {}, "citation": {}}
    for entry in run.manifest["defenses"]:
        columns["randomised"][entry["name"]] = "yes" if entry["randomized"] else "no"
        columns["parameters"][entry["name"]] = _parameters(entry.get("parameters", {}))
        columns["citation"][entry["name"]] = entry["citation"]
    filled = [column for column, texts in columns.items() if any(texts.values())]
    rows = {name: [Cell(text=columns[column][name]) for column in filled] for name in run.defenses}
    return Table(
        name="defenses",
        title="Defenses",
        caption="Defenses of this run. Randomised ones are judged over many draws.",
        frame=laid_out("defense", filled, rows),
        prose=tuple(column for column in ("parameters", "citation") if column in filled),
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


def accuracy_quantity(run: Run) -> Quantity:
    """An accuracy, in as many digits as the samples allow."""
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
    doubts = signs_of(cell_doubts(run, row, defense))
    if row.epsilon is not None:
        return Cell((np.nan, accuracy_at(distances, row.epsilon)), doubts=doubts)
    return Cell((median_distance(distances), accuracy_at(distances, run.threshold(norm))), doubts=doubts)


def _all_cell(run: Run, norm: Norm, attacks: list[AttackRow], defense: str, distances: pd.Series | None) -> Cell:
    """The per-sample minimum, with a footnote that names the attacks which could not take part in full."""
    gaps = gaps_of(run, norm, attacks, defense)
    notes = (f"incomplete: {'; '.join(gaps)}",) if gaps else ()
    if distances is None:
        return Cell(text="not run yet", notes=notes) if gaps else Cell(text="—", notes=("no attack applies",))
    unknown = int(distances.isna().sum())
    if unknown:
        return Cell(text=f"unknown ({unknown}/{len(distances)})", notes=notes)
    median = median_distance(distances) if minimised(run, norm, defense) else np.nan
    doubts = signs_of(defense_doubts(run, norm, defense))
    return Cell((median, accuracy_at(distances, run.threshold(norm))), notes=notes, doubts=doubts)


def minimised(run: Run, norm: Norm, defense: str) -> bool:
    """True if a minimal attack ran on the defense: adversarials of bounded ones lie near their epsilon and alone say
    nothing about the smallest."""
    return any(row.epsilon is None and defense in row.cells for row in run.attack_rows(norm))


def signs_of(doubts: list[Doubt]) -> tuple[str, ...]:
    """What was seen, for footnotes."""
    return tuple(doubt.sign for doubt in doubts)


def _with_intervals_and_cost(cell: Cell, records: pd.DataFrame | Cell, norm: Norm, epsilon: float) -> Cell:
    """A cell that says median and accuracy, with their intervals, and mean passes and seconds behind them."""
    if isinstance(records, Cell) or not cell.values:
        return cell
    median, accuracy = cell.values
    distances = records[norm.lower()]
    of_median = (np.nan, np.nan) if np.isnan(median) else median_interval(distances)
    of_accuracy = accuracy_interval(distances, epsilon)
    costs = passes_and_seconds(records)
    return replace(cell, values=(median, *of_median, accuracy, *of_accuracy, *costs))


def passes_and_seconds(records: pd.DataFrame) -> tuple[float, float]:
    """Mean passes and seconds of the images that were attacked; NaN where none was."""
    attacked = records[~records["status"].isin(["clean_error", "failed"])]
    return float((attacked["forwards"] + attacked["backwards"]).mean()), float(attacked["seconds"].mean())


def gaps_of(run: Run, norm: Norm, attacks: list[AttackRow], defense: str) -> list[str]:
    """The attacks on a defense whose cell has not run or holds samples without a valid result."""
    gaps = []
    for row in attacks:
        if defense in row.cells:
            records = run.cell_records(row.cells[defense])
            problem = "not run yet" if records is None else _invalid(records, norm)
            gaps += [f"{row.label} {problem}"] if problem else []
    return gaps


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


def laid_out(heading: str, columns: list[str], rows: Mapping[str, list[Cell]]) -> pd.DataFrame:
    """A table's frame, from its rows by label."""
    index = pd.Index(list(rows), name=heading)
    return pd.DataFrame(list(rows.values()), index=index, columns=columns, dtype=object)


def measured_on(run: Run) -> str:
    """How many images of what, with which versions and, where that was chosen, which attacks, for captions."""
    chosen = f", attacks {', '.join(run.manifest['chosen'])} only" if "chosen" in run.manifest else ""
    return f"{len(run.samples)} test images of {run.dataset} ({versions_of(run)}{chosen})"


def versions_of(run: Run) -> str:
    """The versions that numbers depend on, for captions."""
    versions = run.manifest["provenance"]["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("assay", "torch") if name in versions)
