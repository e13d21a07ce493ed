"""The time left of a run is near the truth from its first tenth on, also of a run that is resumed half-way.

The clock is simulated. The seconds are the processor's, from a real run of the matrix ``digits`` on a loaded machine.
``seconds.csv`` has 248 of its 256 cells and studies, some of the randomized defenses with more steps than the matrix
has now.
"""

import csv
import heapq
from pathlib import Path

import pytest

from bench.execution.forecast import SCOUTS, Schedule, Task, scouts, seconds_per_cost

RATIO, SECONDS = 1.5, 15
"""The bound: a forecast is wrong by at most this factor, or by at most this many seconds."""


def real_run():
    """The tasks of a real run, and their seconds by id."""
    with (Path(__file__).parent / "seconds.csv").open() as file:
        rows = list(csv.DictReader(file))
    tasks = [Task(str(i), row["defense"], row["procedure"], float(row["cost"])) for i, row in enumerate(rows)]
    return tasks, {task.id: float(row["seconds"]) for task, row in zip(tasks, rows, strict=True)}


def forecasts(tasks, seconds, processes, done=()):
    """Runs tasks under a simulated clock: pairs of the forecast and the truth, each second from the first tenth on."""
    known = [task for task in tasks if task.id in done]
    left = [task for task in tasks if task.id not in done]
    now = 0.0
    schedule = Schedule(left, known, {task.id: seconds[task.id] for task in known}, processes, lambda: now)
    running, said = [], []
    while True:
        while len(running) < processes and (task := next(schedule, None)) is not None:
            schedule.started(task.id)
            heapq.heappush(running, (now + seconds[task.id], task.id))
        if not running:
            break
        if not said or now >= said[-1][0] + 1:
            said.append((now, schedule.seconds_left()))
        end, id = running[0]
        if end > now + 1:
            now += 1
        else:
            now = heapq.heappop(running)[0]
            schedule.finished(id, seconds[id])
    return [(left, now - at) for at, left in said if at >= now / 10]


def outside(pairs):
    """The forecasts that break the bound, with the truth."""
    return [
        (left, truth)
        for left, truth in pairs
        if abs(left - truth) > SECONDS and not truth / RATIO <= left <= truth * RATIO
    ]


@pytest.mark.parametrize("factor", [0.5, 1])
def test_from_the_first_tenth_on_the_time_left_is_near_the_truth(factor):
    tasks, seconds = real_run()
    assert outside(forecasts(tasks, {id: factor * value for id, value in seconds.items()}, 2)) == []


@pytest.mark.parametrize("factor", [0.5, 1])
@pytest.mark.parametrize("chunks", [4, 25])
def test_so_it_is_when_cells_run_in_chunks(chunks, factor):
    tasks, seconds = real_run()
    parts = [Task(f"{i} {t.id}", t.defense, t.procedure, t.cost / chunks) for t in tasks for i in range(chunks)]
    own = {part.id: factor * seconds[part.id.split()[1]] / chunks for part in parts}
    assert outside(forecasts(parts, own, 2)) == []


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_so_it_is_when_a_run_is_resumed(share):
    tasks, seconds = real_run()
    done = [task.id for task in Schedule(tasks)][: int(share * len(tasks))]
    assert outside(forecasts(tasks, seconds, 2, done)) == []


def grid(defenses, procedures):
    """Tasks whose maximum costs are all the same, and seconds that are products of two factors."""
    tasks = [Task(f"{d} {p}", d, p, 100) for d in defenses for p in procedures]
    return tasks, {task.id: defenses[task.defense] * procedures[task.procedure] for task in tasks}


def test_seconds_are_predicted_as_a_product_of_two_factors():
    attacks = {"fgm": 1, "bim": 1, "pgd": 2, "mim": 2, "ddn": 2, "boundary": 3}
    tasks, seconds = grid({"cnn": 1, "adv_linf": 1, "abs": 20}, attacks)
    unknown = [("abs", "pgd"), ("abs", "boundary")]
    measured = {task.kind: seconds[task.id] / task.cost for task in tasks if task.kind not in unknown}
    predicted = seconds_per_cost({task.kind: task.cost for task in tasks}, measured)
    assert 100 * predicted["abs", "pgd"] == pytest.approx(40, rel=0.3)
    assert 100 * predicted["abs", "boundary"] == pytest.approx(60, rel=0.3)
    assert all(predicted[kind] == value for kind, value in measured.items())


def many(defenses=8, procedures=20):
    """Tasks of which the later defenses and the later procedures cost more."""
    return [Task(f"{d} {p}", f"d{d}", f"p{p}", 100.0**d * (p + 1)) for d in range(defenses) for p in range(procedures)]


def test_the_cheapest_of_each_procedure_and_some_of_each_defense_run_first_then_the_costliest():
    tasks = many()
    order = list(Schedule(tasks))
    cheapest = [f"0 {p}" for p in range(20)] + [f"{d} {p}" for d in range(1, 8) for p in range(SCOUTS)]
    assert [task.id for task in order[: len(cheapest)]] == cheapest
    rest = [task.cost for task in order[len(cheapest) :]]
    assert rest == sorted(rest, reverse=True)
    assert sorted(order, key=tasks.index) == tasks


def test_one_chunk_of_a_cell_is_a_scout():
    tasks = [Task(f"{task.id} {i}", task.defense, task.procedure, task.cost) for task in many() for i in range(3)]
    assert {task.id for task in scouts(tasks)} == {f"{task.id} 0" for task in scouts(many())}


def test_the_longest_by_what_was_measured_runs_next():
    """The dearest attack by its budget ends early; the chunks of the other one take longer, so they come first."""
    tasks = [Task(f"{p} {i}", "cnn", p, cost) for p, cost in (("boundary", 900), ("ddn", 100)) for i in range(3)]
    schedule = Schedule(tasks)
    assert [next(schedule).id, next(schedule).id] == ["ddn 0", "boundary 0"]
    schedule.finished("boundary 0", 2.0)
    schedule.finished("ddn 0", 7.0)
    assert [task.procedure for task in schedule] == ["ddn", "ddn", "boundary", "boundary"]


def test_what_is_done_needs_no_scouts():
    tasks = many()
    order = list(Schedule(tasks))
    assert scouts(order[60:], order[:60]) == []


def test_a_procedure_of_a_single_defense_says_nothing_about_the_defense():
    tasks = [*many(), Task("own", "d7", "own", 1)]
    assert sum(task.defense == "d7" for task in scouts(tasks)) == SCOUTS + 1


def test_in_a_small_matrix_the_costliest_run_first():
    costs = [task.cost for task in Schedule(many(3, 4))]
    assert costs == sorted(costs, reverse=True)


def test_nothing_is_forecast_before_a_task_is_done_and_nothing_is_left_at_the_end():
    schedule = Schedule([Task("a", "cnn", "pgd", 1)], processes=2, clock=lambda: 0.0)
    assert schedule.seconds_left() is None
    schedule.started(next(schedule).id)
    assert schedule.seconds_left() is None
    schedule.finished("a", 3.0)
    assert schedule.seconds_left() == 0


def test_a_task_that_is_half_done_needs_as_long_again():
    clock = iter([0.0, 10.0, 12.0])
    tasks = [Task("a", "cnn", "pgd", 1), Task("b", "cnn", "bim", 1)]
    schedule = Schedule(tasks[:1], tasks[1:], {"b": 1.0}, clock=lambda: next(clock))
    schedule.started(next(schedule).id)
    schedule.advanced("a", 0.5)
    assert schedule.seconds_left() == 8


def test_the_longest_task_bounds_the_time_left_whatever_the_number_of_processes():
    tasks, seconds = grid({"cnn": 1}, {"fgm": 1, "boundary": 60})
    again = [Task(f"{task.id} again", *task.kind, task.cost) for task in tasks]
    schedule = Schedule(again, tasks, seconds, 16, lambda: 0.0)
    assert schedule.seconds_left() == pytest.approx(60)


def test_a_failure_says_nothing_about_other_tasks():
    tasks, _ = grid({"cnn": 1}, {"fgm": 1, "bim": 1})
    schedule = Schedule(tasks[:1], tasks[1:], {"cnn bim": 4.0}, clock=lambda: 0.0)
    before = schedule.seconds_left()
    schedule.started(next(schedule).id)
    schedule.finished("cnn fgm", None)
    assert before == pytest.approx(4)
    assert schedule.seconds_left() == 0
