"""squeue's lines, read; as Slurm 22.05 prints them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.cluster.jobs_file import Job, Jobs
from energybench.cluster.queue_state import Task, last_of, of_block, parse, sentence

PLAN = Job(name="eb-nap-a-plan-1", id=1)
FIRST = Job(name="eb-nap-a-blocks-2", id=2, tasks=[[0], [1, 2], [3]])
SECOND = Job(name="eb-nap-a-blocks-4", id=8, tasks=[[3]])
REPORT = Job(name="eb-nap-a-report-3", id=3)
JOBS = Jobs(engine="slurm", asked="x", token="a", serial=4, plan=PLAN, arrays=[FIRST, SECOND], report=REPORT)


def test_each_line_is_a_task() -> None:
    text = """
eb-nap-a-plan-1|1|N/A|COMPLETED|n1|None
eb-nap-a-blocks-2|2|0|RUNNING|n2|None
eb-nap-a-blocks-2|2|1|PENDING||launch failed requeued held
"""
    assert parse(text) == [
        Task("eb-nap-a-plan-1", 1, None, "COMPLETED", "n1", "None"),
        Task("eb-nap-a-blocks-2", 2, 0, "RUNNING", "n2", "None"),
        Task("eb-nap-a-blocks-2", 2, 1, "PENDING", "", "launch failed requeued held"),
    ]


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("5", [5]),
        ("[0-2,7]", [0, 1, 2, 7]),
        ("[0-6:3%2]", [0, 3, 6]),
        ("[4%1]", [4]),
        ("N/A", [None]),
        ("0,1,...", [None]),
    ],
)
def test_tasks_that_wait_together_are_taken_apart(text: str, indices: list[int | None]) -> None:
    assert [task.index for task in parse(f"name|2|{text}|PENDING||Resources")] == indices


@given(st.text())
def test_whatever_is_no_line_of_squeue_is_left_out(text: str) -> None:
    for task in parse(text):
        assert task.id >= 0


def test_a_reason_may_hold_any_sign() -> None:
    (task,) = parse("name|2|0|PENDING||(ReqNodeNotAvail, UnavailableNodes:n[1-2]|x)")
    assert task.reason == "ReqNodeNotAvail, UnavailableNodes:n[1-2]|x"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "RESV_DEL_HOLD", "WHATEVER_COMES"])
def test_a_state_that_is_not_known_to_be_an_end_is_alive_so_that_nothing_is_submitted_beside_it(state: str) -> None:
    assert Task("name", 2, 0, state).live


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_an_end_is_one(state: str) -> None:
    assert not Task("name", 2, 0, state).live


def test_a_block_is_found_in_every_submission_of_it_the_newest_last() -> None:
    tasks = [Task(SECOND.name, 8, 0, "PENDING"), Task(FIRST.name, 2, 2, "FAILED"), Task(FIRST.name, 2, 1, "RUNNING")]
    assert [task.id for task in of_block(JOBS, tasks, 3)] == [2, 8]
    assert [task.index for task in of_block(JOBS, tasks, 2)] == [1]
    assert of_block(JOBS, tasks, 0) == []


def test_an_array_that_slurm_has_not_cut_up_yet_holds_all_its_blocks() -> None:
    tasks = [Task(FIRST.name, 2, None, "PENDING")]
    assert all(of_block(JOBS, tasks, block) for block in range(4))


def test_numbers_of_jobs_may_come_again_where_a_controller_lost_its_memory_but_names_do_not() -> None:
    tasks = [Task("somebody-else", 2, 0, "RUNNING")]
    assert of_block(JOBS, tasks, 0) == []
    assert last_of(tasks, PLAN) is None


@pytest.mark.parametrize(
    ("reason", "held", "launch_failed"),
    [
        ("launch failed requeued held", True, True),
        ("JobHeldUser", True, False),
        ("JobHeldAdmin", True, False),
        ("Resources", False, False),
        ("BeginTime", False, False),
    ],
)
def test_what_slurm_holds_after_a_launch_that_failed_is_told_from_what_a_person_holds(
    reason: str, held: bool, launch_failed: bool
) -> None:
    task = Task(FIRST.name, 2, 0, "PENDING", "", reason)
    assert (task.held, task.launch_failed) == (held, launch_failed)


def test_the_queue_in_a_sentence() -> None:
    tasks = [
        Task(FIRST.name, 2, 0, "RUNNING", "n2"),
        Task(FIRST.name, 2, 1, "PENDING", "", "Resources"),
        Task(SECOND.name, 8, 0, "PENDING", "", "JobHeldUser"),
        Task(REPORT.name, 3, None, "PENDING", "", "Dependency"),
    ]
    assert sentence(tasks, JOBS) == "1 running on n2; 1 waiting (Resources); 1 held: scontrol release 8_0"
    assert sentence(tasks[3:], JOBS) == "the report is queued"
    assert sentence([Task(PLAN.name, 1, None, "RUNNING", "n1")], JOBS) == "planning on n1"
    assert sentence([Task(FIRST.name, 2, 0, "COMPLETED", "n1")], JOBS) == "no job is queued"
