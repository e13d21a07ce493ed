"""Runners are chosen by name, or by the number of processes that could have work."""

import pytest
import torch

from bench.contracts.errors import UserError
from bench.execution.execute import process_count
from bench.execution.process import run_processes
from bench.execution.runners import RUNNERS, check_runner, chosen_runner, runner_names
from bench.execution.serial import run_serial


def test_a_user_may_choose_each_runner_or_leave_the_choice():
    assert runner_names() == ["auto", "process", "serial"]
    for name in runner_names():
        check_runner(name)


@pytest.mark.parametrize(
    ("name", "processes", "expected"),
    [
        ("auto", 1, run_serial),
        ("auto", 2, run_processes),
        ("serial", 2, run_serial),
        ("process", 1, run_processes),
    ],
)
def test_auto_starts_processes_only_for_more_than_one(name, processes, expected):
    assert chosen_runner(name, processes) is expected


def test_an_unknown_runner_is_refused_with_a_suggestion():
    message = r"--runner: unknown runner 'seriel'; did you mean 'serial'\? Allowed: auto, process, serial"
    with pytest.raises(UserError, match=message):
        check_runner("seriel", "--runner")
    with pytest.raises(UserError, match="unknown runner 'seriel'"):
        process_count(None, "seriel", torch.device("cpu"))


@pytest.mark.parametrize("name", RUNNERS.names())
def test_only_a_parallel_runner_has_more_than_one_process(name):
    parallel = RUNNERS.get(name).card.parallel
    assert process_count(3, name, torch.device("cpu")) == (3 if parallel else 1)
