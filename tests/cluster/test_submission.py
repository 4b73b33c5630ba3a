"""What is submitted and what is not, held against a queue in memory that answers as Slurm's commands do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.cluster import blocks_on_disk, slurm_calls
from energybench.cluster.block_commands import Asked
from energybench.cluster.blocks_on_disk import BlocksOnDisk
from energybench.cluster.jobs_file import read_jobs
from energybench.cluster.run_folder_choice import choose
from energybench.cluster.slurm_calls import NoAnswer, Refused, Slurm, refusal
from energybench.cluster.submission import Submission, log_of, log_pattern, submitting
from energybench.common.errors import UsageError
from energybench.suite.on_tables import SlurmTable
from energybench.suite.suite import load

BLOCKS = 7
SUITE = """
schema = 1
suite = "nap"
trials = {{ blocks = {blocks} }}
[on]
slurm = {{ {slurm} }}
[[workload]]
name = "w"
command = "true"
quality = "none"
[[method]]
name = "m"
command = "true"
"""


class Queue(Slurm):
    """Slurm's commands. `states`: (name, index) → state. `fail`: called with the words of each, may raise."""

    def __init__(self) -> None:
        super().__init__(sleep=lambda _: None)
        self.states: dict[tuple[str, int | None], str] = {}
        self.ids: dict[str, int] = {}
        self.submitted: list[list[str]] = []
        self.fail: Callable[[Sequence[str]], None] = lambda _: None
        self.longest_array = 1001

    def call(self, words: Sequence[str], *, may_repeat: bool = True) -> str:
        self.fail(words)
        return {"sbatch": self._sbatch, "squeue": self._squeue, "scancel": self._scancel}.get(
            words[0], lambda _: f"MaxArraySize = {self.longest_array}"
        )(words)

    def _sbatch(self, words: Sequence[str]) -> str:
        self.submitted.append(list(words))
        name = self.option(words, "job-name")
        self.ids[name] = len(self.ids) + 1
        if array := self.option(words, "array"):
            last = int(re.fullmatch(r"0-(\d+)(%\d+)?", array)[1])  # type: ignore[index]
            self.states |= {(name, index): "PENDING" for index in range(last + 1)}
        else:
            self.states[name, None] = "PENDING"
        return f"{self.ids[name]};here\n"

    def _squeue(self, words: Sequence[str]) -> str:
        names = self.option(words, "name").split(",")
        return "\n".join(
            f"{name}|{self.ids[name]}|{'N/A' if index is None else index}|{state}||None"
            for (name, index), state in self.states.items()
            if name in names
        )

    def _scancel(self, words: Sequence[str]) -> str:
        for key in self.states:
            if str(self.ids[key[0]]) == words[1]:
                self.states[key] = "CANCELLED"
        return ""

    @staticmethod
    def option(words: Sequence[str], name: str) -> str:
        return next((word.partition("=")[2] for word in words if word.startswith(f"--{name}=")), "")

    def names(self, what: str) -> list[str]:
        return [name for name in self.ids if f"-{what}-" in name]


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Blocks that are complete on disk."""
    blocks = set[int]()
    monkeypatch.setattr(blocks_on_disk, "is_complete", lambda _, block: block in blocks)
    return blocks


def submission(place: Path, queue: Queue, slurm: str = 'partition = "gpu"', blocks: int = BLOCKS) -> Submission:
    place.mkdir(exist_ok=True)
    (place / "nap.toml").write_text(SUITE.format(slurm=slurm, blocks=blocks))
    asked = Asked(load(place / "nap.toml"))
    table = asked.suite.on.slurm if asked.suite.on else None
    assert isinstance(table, SlurmTable)
    return Submission(asked, place / "run", table, queue, lambda _: None)


def again(place: Path, queue: Queue, slurm: str = 'partition = "gpu"') -> list[int]:
    """The same command once more: what it submits."""
    each = submission(place, queue, slurm)
    disk = BlocksOnDisk(each.folder, BLOCKS)
    tasks = each.look()
    disk.look()
    live = each.live_blocks(tasks)
    missing = [block for block in disk.missing if block not in live]
    if missing:
        each.submit(tasks, missing)
    return missing


def test_a_plan_an_array_that_waits_for_it_and_a_report_that_waits_for_the_array(
    tmp_path: Path, queue: Queue, complete: set[int]
) -> None:
    slurm = 'partition = "gpu", gres = "gpu:a100:1", cpus = 8, time = "90 s", exclusive = true, at_once = 3'
    assert again(tmp_path, queue, f'{slurm}, extra = ["--account=physics"]') == list(range(BLOCKS))
    plan, array, report = queue.submitted
    for words in (plan, array):
        assert {"--partition=gpu", "--gres=gpu:a100:1", "--cpus-per-task=8", "--time=2", "--exclusive"} <= {*words}
    for words in queue.submitted:
        assert {"--parsable", "--requeue", "--open-mode=append", "--account=physics", "--signal=B:TERM@22"} <= {*words}
    assert {"--array=0-6%3", "--dependency=afterok:1", "--kill-on-invalid-dep=yes"} <= {*array}
    assert {"--dependency=afterany:2", "--partition=gpu"} <= {*report}
    assert not [word for word in report if "gres" in word or "exclusive" in word]
    assert not [word for word in plan if word.startswith(("--array", "--dependency"))]


def test_what_a_suite_leaves_out_is_left_to_the_cluster(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    again(tmp_path, queue, "")
    for words in queue.submitted:
        assert not [w for w in words if re.match("--(partition|gres|cpus-per-task|time|exclusive)", w)]


def test_nothing_is_submitted_twice_by_the_same_command(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    again(tmp_path, queue)
    assert again(tmp_path, queue) == []
    assert len(queue.submitted) == 3


def test_only_what_is_neither_complete_nor_queued_comes_again(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    again(tmp_path, queue)
    (tmp_path / "run" / "run.json").write_text("{}")  # planned
    (array,) = queue.names("blocks")
    states = ["COMPLETED", "RUNNING", "FAILED", "CANCELLED", "PENDING", "NODE_FAIL", "COMPLETED"]
    queue.states |= {(array, index): state for index, state in enumerate(states)}
    complete |= {0, 2}
    assert again(tmp_path, queue) == [3, 5, 6]
    words = queue.submitted[-2]
    assert "--array=0-2" in words
    assert not [word for word in words if "dependency" in word]  # there is a plan
    assert "--dependency=afterany:2:4" in queue.submitted[-1]  # what runs yet, and the new ones
    old, new = queue.names("report")
    assert queue.states[old, None] == "CANCELLED"  # it would have reported before them
    assert queue.states[new, None] == "PENDING"


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_whatever_becomes_of_jobs_a_block_is_never_submitted_while_one_of_its_jobs_lives(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place, queue, complete = tmp_path_factory.mktemp("any"), Queue(), set[int]()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(blocks_on_disk, "is_complete", lambda _, block: block in complete)
        per_job = data.draw(st.integers(1, 3))
        queue.longest_array = data.draw(st.sampled_from([1, 2, 1001]))
        for _ in range(data.draw(st.integers(1, 4))):
            before = dict(queue.states)
            missing = again(place, queue, f"blocks_per_job = {per_job}")
            jobs = read_jobs(place / "run")
            assert jobs is not None
            assert not set(missing) & complete
            for block in missing:
                alive = [
                    (job.name, index)
                    for job in jobs.arrays
                    for index, task in enumerate(job.tasks)
                    if block in task and before.get((job.name, index)) in ("PENDING", "RUNNING")
                ]
                assert not alive
            left = set(range(BLOCKS)) - complete
            for block in left:  # and each has one afterwards
                found = [
                    queue.states[job.name, index]
                    for job in jobs.arrays
                    for index, task in enumerate(job.tasks)
                    if block in task
                ]
                assert sum(state in ("PENDING", "RUNNING") for state in found) == 1
            for key in queue.states:
                end = st.sampled_from(["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"])
                if queue.states[key] in ("PENDING", "RUNNING"):
                    queue.states[key] = data.draw(end)
            complete |= data.draw(st.sets(st.integers(0, BLOCKS - 1)))


def test_a_submission_whose_answer_is_lost_is_found_in_the_queue(
    tmp_path: Path, queue: Queue, complete: set[int]
) -> None:
    lost = iter([True])

    def answer(words: Sequence[str]) -> None:
        if words[0] == "sbatch" and any("--array" in word for word in words) and next(lost, False):
            queue._sbatch(words)
            raise NoAnswer("socket timed out")

    queue.fail = answer
    again(tmp_path, queue)
    assert len(queue.submitted) == 3
    assert again(tmp_path, queue) == []


def test_a_command_that_is_killed_between_a_submission_and_its_note_submits_nothing_twice(
    tmp_path: Path, queue: Queue, complete: set[int]
) -> None:
    def die(words: Sequence[str]) -> None:
        if words[0] == "sbatch" and any("--array" in word for word in words):
            queue._sbatch(words)
            raise KeyboardInterrupt

    queue.fail = die
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, queue)
    queue.fail = lambda _: None
    assert again(tmp_path, queue) == []
    assert [job.id for job in read_jobs(tmp_path / "run").arrays] == [2]  # type: ignore[union-attr]


def test_a_submission_that_never_arrived_is_made_again(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    def away(words: Sequence[str]) -> None:
        if words[0] == "sbatch":
            raise KeyboardInterrupt

    queue.fail = away
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, queue)
    queue.fail = lambda _: None
    assert again(tmp_path, queue) == list(range(BLOCKS))


def test_more_tasks_than_an_array_may_have_become_several_and_at_once_holds_for_all(
    tmp_path: Path, queue: Queue, complete: set[int]
) -> None:
    queue.longest_array = 3
    again(tmp_path, queue, "at_once = 2")
    arrays = [words for words in queue.submitted if queue.option(words, "array")]
    assert [queue.option(words, "array") for words in arrays] == ["0-2%2", "0-2%2", "0-0%2"]
    assert [queue.option(words, "dependency") for words in arrays] == ["afterok:1", "afterany:2", "afterany:3"]
    assert queue.option(queue.submitted[-1], "dependency") == "afterany:2:3:4"


def test_blocks_that_share_a_job_share_a_task(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    again(tmp_path, queue, "blocks_per_job = 3")
    jobs = read_jobs(tmp_path / "run")
    assert jobs is not None
    assert jobs.arrays[0].tasks == [[0, 1, 2], [3, 4, 5], [6]]
    assert "tasks=('1 2 3' '4 5 6' 7)" in (tmp_path / "run/jobs/blocks-2.sh").read_text()


def test_a_report_that_slurm_does_not_take_stops_nothing(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    def refuse(words: Sequence[str]) -> None:
        if words[0] == "sbatch" and "-report-" in queue.option(words, "job-name"):
            raise Refused("this partition is for cards alone")

    queue.fail = refuse
    assert again(tmp_path, queue) == list(range(BLOCKS))
    assert read_jobs(tmp_path / "run").report is None  # type: ignore[union-attr]


def test_what_slurm_refuses_is_told_at_its_key_and_forgotten(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    def refuse(words: Sequence[str]) -> None:
        if words[0] == "sbatch":
            raise Refused("Batch job submission failed: Invalid partition name specified")

    queue.fail = refuse
    with pytest.raises(UsageError, match=r"E681.*nap\.toml:6:") as refused:
        again(tmp_path, queue)
    assert "Invalid partition name" in str(refused.value)
    assert read_jobs(tmp_path / "run").submitted == []  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "key", "hint"),
    [
        ("Invalid partition name specified", "partition", "did you mean 'gpu'?"),
        ("Invalid generic resource (gres) specification", "gres", "sinfo"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "time", "longest time"),
        ("Invalid account or account/partition combination specified", "partition", "gpu"),
        ("More processors requested than permitted", "", "sinfo"),
        ("Unable to allocate resources: Job violates accounting/QOS policy", "", "--account="),
    ],
)
def test_a_refusal_names_the_key_that_it_is_about(said: str, key: str, hint: str) -> None:
    (problem,) = refusal(said, lambda key: f"at {key}", "gpus", ["gpu", "long"]).problems
    assert problem.where == f"at {key}"
    assert hint in problem.hint


def test_a_controller_that_is_away_for_a_while_is_waited_for_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    away = "squeue: error: Unable to contact slurm controller (connect failure)"
    answers, told = iter([(1, "", away), (1, "", away), (0, "yes", "")]), list[str]()
    monkeypatch.setattr(slurm_calls, "_run", lambda _: next(answers))
    assert Slurm(told.append, sleep=lambda _: None).call(["squeue"]) == "yes"
    assert [text.startswith("the Slurm controller does not answer") for text in told] == [True, False]
    monkeypatch.setattr(slurm_calls, "_run", lambda _: (1, "", away))
    with pytest.raises(NoAnswer):
        Slurm(patience_s=0.0, sleep=lambda _: None).call(["squeue"])


def test_a_submission_without_an_answer_is_not_simply_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    monkeypatch.setattr(slurm_calls, "_run", lambda _: (calls.append(1), (1, "", "Socket timed out"))[1])
    with pytest.raises(NoAnswer):
        Slurm(sleep=lambda _: None).call(["sbatch"], may_repeat=False)
    assert len(calls) == 1


def test_two_commands_do_not_submit_the_same_run_at_once(tmp_path: Path) -> None:
    with submitting(tmp_path), pytest.raises(UsageError, match="E684"), submitting(tmp_path):
        pass
    with submitting(tmp_path):
        pass


@pytest.mark.parametrize(
    ("folder", "pattern", "log"),
    [
        ("/a/it's", "/a/it's/2-%a.log", "/a/it's/2-5.log"),
        ("/a/100 %j", "/a/100 %%j/2-%a.log", "/a/100 %j/2-5.log"),
        ("/a/b\\c %a", "/a/b\\\\c %a/2.log", "/a/b\\c %a/2.log"),
    ],
)
def test_where_logs_go_whatever_the_folder_is_called(folder: str, pattern: str, log: str) -> None:
    assert log_pattern(Path(folder), "2-%a.log") == pattern
    assert log_of(Path(folder), 2, 5) == Path(log)


def test_the_same_command_finds_its_run_until_its_report_was_shown(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch, complete: set[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = submission(tmp_path, queue)
    folder = choose(first.asked, "slurm", None, False, lambda _: None)
    each = Submission(first.asked, folder, first.table, queue, lambda _: None)
    with submitting(folder):
        each.submit([], [0])
    assert choose(first.asked, "slurm", None, False, lambda _: None) == folder
    assert choose(first.asked, "ray", None, False, lambda _: None) != folder
    assert choose(first.asked, "slurm", None, True, lambda _: None) != folder
    other = Asked(first.asked.suite, ("--keep-going",))
    assert choose(other, "slurm", None, False, lambda _: None) != folder
    partition = submission(tmp_path, queue, 'partition = "another"').asked
    assert choose(partition, "slurm", None, False, lambda _: None) == folder  # [on] is no setting of the run
    each.told()
    assert choose(first.asked, "slurm", None, False, lambda _: None) != folder


def test_a_folder_of_another_run_is_refused(tmp_path: Path, queue: Queue, complete: set[int]) -> None:
    again(tmp_path, queue)
    asked = Asked(submission(tmp_path, queue).asked.suite, ("--quick",))
    with pytest.raises(UsageError, match="E683"):
        Submission(asked, tmp_path / "run", SlurmTable(), queue, lambda _: None)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="E683"):
        choose(asked, "slurm", tmp_path / "plain", False, lambda _: None)


def test_what_is_lost_comes_again_by_itself_but_not_what_was_cancelled_refused_or_lost_too_often(
    tmp_path: Path, queue: Queue, complete: set[int]
) -> None:
    again(tmp_path, queue)
    (array,) = queue.names("blocks")
    queue.states |= {(array, index): "FAILED" for index in range(BLOCKS)}
    queue.states[array, 1] = "CANCELLED"
    (tmp_path / "run/jobs/b3.ended").write_text("refused:2 0 2_2\n")  # block 2
    (tmp_path / "run/jobs/b4.ended").write_text("time 0 2_3\n")
    (tmp_path / "run/jobs/b5.ended").write_text("refused:2 0 2_4\nelsewhere 1 2_4\n")
    complete.add(0)
    each = submission(tmp_path, queue)
    disk = BlocksOnDisk(each.folder, BLOCKS)
    disk.look()
    tasks = each.look()
    assert each.lost(tasks, disk, 2) == [4, 5, 6]
    assert each.jobs.cancelled == [1]
    for _ in range(2):
        assert each.submit_again([4]) == [4]
        assert each.submit_again([4]) == []  # it is queued
        queue.states |= dict.fromkeys(queue.states, "FAILED")
    assert each.lost(each.look(), disk, 2) == [5, 6]


def test_a_plan_that_was_lost_is_made_again_with_all_that_waited_for_it_but_not_one_that_was_refused(
    tmp_path: Path, queue: Queue, complete: set[int]
) -> None:
    again(tmp_path, queue)
    each = submission(tmp_path, queue)
    assert each.plan_trouble(each.look(), 1) is None
    (plan,), (array,), (report,) = queue.names("plan"), queue.names("blocks"), queue.names("report")
    queue.states[plan, None] = "FAILED"
    trouble = each.plan_trouble(each.look(), 1)
    assert trouble is not None
    assert trouble.lost
    each.plan_again(range(BLOCKS))
    assert {queue.states[array, index] for index in range(BLOCKS)} == {queue.states[report, None]} == {"CANCELLED"}
    assert [queue.states[key] for key in queue.states if key[0] in (queue.names("plan")[1], queue.names("blocks")[1])]
    assert "--dependency=afterok:4" in queue.submitted[-2]
    assert each.plan_trouble(each.look(), 1) is None
    queue.states[queue.names("plan")[1], None] = "FAILED"
    (tmp_path / "run/jobs/plan.ended").write_text("interrupted 0 4\nrefused:2 0 4\n")
    trouble = each.plan_trouble(each.look(), 9)
    assert trouble is not None
    assert not trouble.lost


def test_what_slurm_holds_after_a_failed_launch_is_released_a_few_times(
    tmp_path: Path, queue: Queue, complete: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    again(tmp_path, queue)
    each = submission(tmp_path, queue)
    from energybench.cluster.queue_state import Task

    held = Task(queue.names("blocks")[0], 2, 3, "PENDING", "", "launch failed requeued held")
    by_hand = Task(queue.names("blocks")[0], 2, 4, "PENDING", "", "JobHeldUser")
    released = list[str]()
    queue.fail = lambda words: released.append(" ".join(words))
    for _ in range(5):
        each.release([held, by_hand], 2)
    assert released == ["scontrol release 2_3"] * 2
