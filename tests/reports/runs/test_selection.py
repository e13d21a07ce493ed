"""Parts of a run, and runs put together."""

import numpy as np
import pytest
from reading import table_of, values
from synthetic_runs import INF, RunMaker, every_status, replaced, studied

from bench.contracts.errors import UserError
from reports.report import FORMATS, write_run_report
from reports.runs.selection import combined, selected
from reports.tables.cells import BLANK


def made(defense, attack, distances, images=None, **options):
    maker = RunMaker([defense], len(distances), **options)
    maker.attack(attack, ["L2"])
    maker.cell(defense, attack, "L2", distances)
    return maker.make(images)


def test_a_norm_and_an_attack_can_be_chosen():
    run = selected(every_status(), ["L2"], ["pgd"])
    assert run.norms == ["L2"]
    assert list(table_of(run, "summary", "L2").frame.index) == ["clean", "pgd", "All L2 attacks"]
    assert "attacks pgd, pgd:bounded only" in table_of(run, "summary", "L2").caption
    assert set(run.records["attack"]) == {"pgd"}


def test_the_worst_case_is_that_of_the_attacks_chosen():
    maker = RunMaker(["cnn"], 2)
    for name, distance in (("pgd", 2.0), ("ddn", 1.0)):
        maker.attack(name, ["L2"])
        maker.cell("cnn", name, "L2", [distance] * 2)
    assert table_of(maker.make(), "summary", "L2").frame.loc["All L2 attacks", "cnn"].values["median"].value == 1
    chosen = selected(maker.make(), attacks=["pgd"])
    assert table_of(chosen, "summary", "L2").frame.loc["All L2 attacks", "cnn"].values["median"].value == 2


@pytest.mark.parametrize(("norms", "attacks"), [(["L9"], None), (None, ["pdg"])])
def test_what_is_not_there_cannot_be_chosen(norms, attacks):
    with pytest.raises(UserError, match=r"unknown norm 'L9'|did you mean 'pgd'"):
        selected(every_status(), norms, attacks)


def test_runs_on_the_same_images_are_one():
    first, second = made("cnn", "pgd", [1.0, INF]), made("abs", "ddn", [2.0, 2.0])
    run = combined([first, second, first])
    table = table_of(run, "summary", "L2")
    assert list(table.frame) == ["cnn", "abs"]
    assert list(table.frame.index) == ["clean", "pgd", "ddn", "All L2 attacks"]
    assert table.frame.loc["ddn", "abs"].values["median"].value == 2
    assert table.frame.loc["ddn", "cnn"] == BLANK
    assert len(run.records) == 4


@pytest.mark.parametrize("more", ["unrolled", "optimizes"])
def test_a_run_from_before_a_defense_offered_more_fits(more):
    old, new = made("cnn", "pgd", [1.0, INF]), made("cnn", "ddn", [2.0, 2.0])
    offering = tuple(defense.model_copy(update={more: True}) for defense in new.manifest.defenses)
    new = replaced(new, defenses=offering)
    assert len(combined([old, new]).records) == 4


def test_studies_are_put_together_too():
    run = combined([made("mine", "pgd", [1.0] * 4), studied()])
    assert set(run.study_records("lower_bound")["defense"]) == {"cnn", "nearest_neighbour", "abs"}


def test_runs_that_do_not_fit_are_refused():
    run = made("cnn", "pgd", [1.0, 1.0])
    for other, message in (
        (made("abs", "pgd", [1.0, 1.0], dataset="mnist"), "different datasets: synthetic and mnist"),
        (made("abs", "pgd", [1.0]), r"different images \(2 and 1 samples\)"),
        (made("abs", "pgd", [1.0, 1.0], np.ones((2, 1, 2, 2), np.float32)), "different images"),
        (made("abs", "pgd", [1.0, 1.0], thresholds={"L2": 9.0}), "different thresholds in L2: 1.5 and 9"),
    ):
        with pytest.raises(UserError, match=message):
            combined([run, other])
    again = made("cnn", "pgd", [1.0, 1.0])
    again = replaced(again, cells=tuple(cell.model_copy(update={"id": "other"}) for cell in again.manifest.cells))
    with pytest.raises(UserError, match="cnn · pgd · L2 in two ways"):
        combined([run, again])


def test_only_the_formats_asked_for_are_written(tmp_path):
    assert write_run_report(every_status(), tmp_path / "a", formats=["tex"]) == tmp_path / "a"
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".tex"}
    page = write_run_report(every_status(), tmp_path / "b", formats=["html", "md"]).read_text()
    assert ".md" in page
    assert ".csv" not in page
    with pytest.raises(UserError, match="unknown format 'pdf'"):
        write_run_report(every_status(), tmp_path / "c", formats=["pdf"])
    with pytest.raises(UserError, match="unknown defense 'x'"):
        write_run_report(every_status(), tmp_path / "c", baseline="x")
    assert set(FORMATS) == {"csv", "md", "tex", "figures", "html"}


def test_a_baseline_is_what_the_others_are_measured_by():
    """Ten images: the median is 1 more, the accuracy 9 in 10 more; nine discordant pairs: p = 2 / 512."""
    maker = RunMaker(["cnn", "abs", "mine"], 10)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [1.0] * 10)
    maker.cell("abs", "pgd", "L2", [1.0] + [2.0] * 9)
    maker.cell("mine", "pgd", "L2", [INF] * 10)
    table = table_of(maker.make(), "baseline", "L2", baseline="cnn")
    shown = table.frame.loc["abs", "minus cnn"]
    assert values(shown) == pytest.approx({"median": 1, "accuracy": 0.9, "p": 2 / 512, "adjusted p": 2 / 512})
    assert shown.significant
    assert table.frame.loc["mine", "minus cnn"].values["median"] == (INF, INF, INF)
