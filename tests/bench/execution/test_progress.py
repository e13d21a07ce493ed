"""What happens to cells and studies reaches the bar, the forecast and the list of failures."""

from collections import Counter

import pytest
from planned_study import planned_study

from bench.contracts.work import Cell
from bench.execution.forecast import Schedule, Task
from bench.execution.progress import RunProgress, tasks_of


class Recorder:
    def __init__(self):
        self.advanced = []

    def advance(self, amount=1, note=""):
        self.advanced.append((amount, note))


def cell(**changes):
    given = {
        "dataset": "digits",
        "defense": "cnn",
        "attack": "pgd",
        "function": "pgd",
        "norm": "L2",
        "epsilon": None,
        "access": "gradient",
        "parameters": {"steps": 5},
        "budget": 10,
        "seed": 0,
        "samples": 4,
        "chunk": 2,
        "batch_size": 2,
        "timeout": None,
        "state": {},
    }
    return Cell(**{**given, **changes})


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """The two chunks of a cell, of which the first runs; the bar and the schedule that hear of them. Each takes 7 s."""
    monkeypatch.setattr("bench.execution.progress.seconds_of", lambda path: 7.0)
    chunks, bar = cell().shards(["a", "b", "c", "d"]), Recorder()
    schedule = Schedule([Task(chunk.id, "cnn", "pgd", 10) for chunk in chunks], clock=lambda: 0.0)
    progress = RunProgress(bar, schedule, tmp_path)
    assert next(schedule).id == chunks[0].id
    progress.started(chunks[0])
    return chunks, bar, schedule, progress


def test_finished_samples_advance_the_bar_under_the_title_of_their_cell(followed):
    chunks, bar, _, progress = followed
    progress.done(chunks[0], Counter())
    assert bar.advanced == [(2, "cnn · pgd · L2")]


def test_samples_that_were_shown_are_not_shown_again(followed):
    chunks, bar, _, progress = followed
    progress.advanced(chunks[0], 1)
    progress.done(chunks[0], Counter())
    assert [amount for amount, _ in bar.advanced] == [1, 1]


def test_the_seconds_of_a_finished_chunk_are_a_forecast_for_others(followed):
    chunks, _, schedule, progress = followed
    progress.done(chunks[0], Counter())
    assert schedule.seconds_left() == pytest.approx(7)
    assert progress.failed == {}


def test_a_chunk_that_failed_says_nothing_about_others_and_its_cell_is_listed_once(followed):
    chunks, _, schedule, progress = followed
    progress.done(chunks[0], Counter({"timeout": 2}))
    assert schedule.seconds_left() is None
    progress.done(chunks[1], Counter({"timeout": 2}))
    assert progress.failed == {("cnn", "timeout"): [cell()]}


class Plain:
    defense = object()


def test_entries_of_an_attack_with_other_parameters_or_norms_are_other_procedures():
    study = planned_study("lower_bound", defense="cnn", norm="L2", samples=4, batch_size=2)
    works = [cell(), cell(defense="abs"), cell(norm="Linf"), cell(parameters={"steps": 9}), study]
    shards = [work.shards(["a", "b", "c", "d"])[0] for work in works]
    tasks = tasks_of(shards, {"cnn": Plain(), "abs": Plain()})
    assert [task.procedure == tasks[0].procedure for task in tasks] == [True, True, False, False, False]
    assert [task.cost for task in tasks] == [20, 20, 20, 20, 800]
