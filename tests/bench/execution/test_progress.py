"""What happens to cells and studies reaches the bar, the forecast and the list of failures."""

from collections import Counter

import pytest
from planned_study import planned_study

from bench.contracts.work import Cell
from bench.execution.forecast import Task, TimeLeft
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
    """A cell that runs, and one that waits; the bar and the forecast that hear of them. A finished cell took 7 s."""
    monkeypatch.setattr("bench.execution.progress.seconds_of", lambda path: 7.0)
    work, bar = cell(), Recorder()
    tasks = [Task(work.id, "cnn", "pgd", 10), Task("waiting", "cnn", "pgd", 10)]
    time_left = TimeLeft(tasks, [], {}, 1, lambda: 0.0)
    progress = RunProgress(bar, time_left, tmp_path)
    progress.started(work)
    return work, bar, time_left, progress


def test_finished_samples_advance_the_bar_under_the_title_of_their_cell(followed):
    work, bar, _, progress = followed
    progress.advanced(work, 2)
    assert bar.advanced == [(2, "cnn · pgd · L2")]


def test_the_seconds_of_a_finished_cell_are_a_forecast_for_others(followed):
    work, _, time_left, progress = followed
    progress.done(work, Counter())
    assert time_left.seconds() == pytest.approx(7)
    assert progress.failed == {}


def test_a_cell_that_failed_says_nothing_about_others_and_is_listed_by_defense_and_reason(followed):
    work, _, time_left, progress = followed
    progress.done(work, Counter({"timeout": 2}))
    assert time_left.seconds() is None
    assert progress.failed == {("cnn", "timeout"): [work]}


class Plain:
    defense = object()


def test_entries_of_an_attack_with_other_parameters_or_norms_are_other_procedures():
    study = planned_study("lower_bound", defense="cnn", norm="L2", samples=4, batch_size=2)
    works = [cell(), cell(defense="abs"), cell(norm="Linf"), cell(parameters={"steps": 9}), study]
    tasks = tasks_of(works, {"cnn": Plain(), "abs": Plain()})
    assert [task.procedure == tasks[0].procedure for task in tasks] == [True, True, False, False, False]
    assert [task.cost for task in tasks] == [40, 40, 40, 40, 800]
