"""What is missing of a run is submitted, and nothing else: never a block that is complete, queued or running.

plan                       plans and counts on a node, since a login node may have no card
blocks   afterok:plan      an array, a task for each job's blocks; several where one would be too long
report   afterany:blocks   whatever became of them
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from energybench.cluster import job_script, queue_state
from energybench.cluster.block_commands import Asked
from energybench.cluster.blocks_on_disk import BlocksOnDisk
from energybench.cluster.jobs_file import JOBS, Job, Jobs, new_jobs, read_jobs, write_jobs
from energybench.cluster.queue_state import Task
from energybench.cluster.slurm_calls import NoAnswer, Refused, Slurm, refusal
from energybench.common.errors import CannotWrite, Problem, UsageError, typed
from energybench.common.folder_lock import FolderBusy, FolderLock
from energybench.common.held_folder import HeldFolder
from energybench.common.outputs import RUN_FILE
from energybench.common.sealed_files import write_bytes
from energybench.suite.on_tables import SlurmTable

PLAN = "plan"
AT_WORK = "E684"
TRIES = 3  # of one submission whose answer is lost
MOST_TASKS = 1001  # of an array where the controller does not say; Slurm's own default


@dataclass(frozen=True)
class PlanTrouble:
    """A plan's job that ended without a plan. state: as Slurm has it; lost: whether trying again may help."""

    state: str
    lost: bool


@dataclass
class Submission:
    """Of one run's jobs; every change of the queue is written to FOLDER/jobs.json before it and after it.

    blocks_per_job: in place of the suite's
    """

    asked: Asked
    folder: Path
    table: SlurmTable
    slurm: Slurm
    say: Callable[[str], None]
    blocks_per_job: int | None = None
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = read_jobs(self.folder) or new_jobs("slurm", self.asked.identity)
        if self.jobs.engine != "slurm":
            raise UsageError(self._of_another(f"it was begun on {self.jobs.engine}"))
        if self.jobs.asked != self.asked.identity:
            raise UsageError(self._of_another("it was asked for with other settings"))

    def _of_another(self, how: str) -> Problem:
        message = f"this folder holds the jobs of another run: {how}"
        return Problem("E683", message, str(self.folder), "name another folder with --out, or start anew: --new")

    # ── what is there ─────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> list[Task]:
        """The queue; a job whose number never came back is known from now on, or was never submitted.

        What another command has submitted since is known too. Raises NoAnswer.
        """
        self.jobs = read_jobs(self.folder) or self.jobs
        try:
            tasks = queue_state.ask(self.slurm, self.jobs)
        except Refused as refused:
            raise UsageError(Problem("E681", f"Slurm's squeue refused: {refused}")) from None
        if any(job.id is None for job in self.jobs.submitted):
            numbers = {task.name: task.id for task in tasks}
            known = {
                job.name: job.model_copy(update={"id": job.id or numbers.get(job.name)}) for job in self.jobs.submitted
            }
            kept = {name: job for name, job in known.items() if job.id is not None}
            self._save(
                plan=kept.get(self.jobs.plan.name) if self.jobs.plan else None,
                arrays=[kept[job.name] for job in self.jobs.arrays if job.name in kept],
                report=kept.get(self.jobs.report.name) if self.jobs.report else None,
            )
        return tasks

    def live_blocks(self, tasks: Sequence[Task]) -> set[int]:
        """Those whose job is queued or runs."""
        return {
            block
            for block in range(self.asked.blocks)
            if any(task.live for task in queue_state.of_block(self.jobs, tasks, block))
        }

    @property
    def planned(self) -> bool:
        return (self.folder / RUN_FILE).is_file()

    # ── submitting ────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, tasks: Sequence[Task], blocks: Sequence[int]) -> None:
        """The plan where it is missing, these blocks, and a report after all that is queued.

        Raises UsageError E681 where Slurm refuses a job, E682 where its controller does not answer.
        """
        plan = queue_state.last_of(tasks, self.jobs.plan)
        if not self.planned and not (plan and plan.live):
            self._submit_plan()
            plan = None
        live = [task for task in tasks if task.live]
        before = self._after_plan(plan)
        running = sum(any(task.name == job.name for job in self.jobs.arrays) for task in live)
        per_job = self.blocks_per_job or self.table.blocks_per_job
        groups = [list(blocks[first : first + per_job]) for first in range(0, len(blocks), per_job)]
        longest = self._longest_array() if groups else MOST_TASKS
        waited_for = [job for job in self.jobs.arrays if any(task.name == job.name for task in live)]
        for first in range(0, len(groups), longest):
            array = self._submit_array(groups[first : first + longest], before, running)
            waited_for.append(array)
            if self.table.at_once is not None:  # the next one's limit is of its own: it waits for this one
                before = [f"afterany:{array.id}"]
            running = 0
        if waited_for and (groups or not self._is_live(self.jobs.report, tasks)):
            self._submit_report(waited_for, tasks)

    @staticmethod
    def _is_live(job: Job | None, tasks: Sequence[Task]) -> bool:
        found = queue_state.last_of(tasks, job)
        return found is not None and found.live

    def _after_plan(self, plan: Task | None) -> list[str]:
        """The dependency on the plan's job, for as long as there is no plan."""
        if self.planned or self.jobs.plan is None:
            return []
        return [f"afterok:{plan.id if plan else self.jobs.plan.id}"]

    def _submit_plan(self) -> None:
        name = self._name("plan")
        self._save(plan=Job(name=name))
        script = job_script.plan_script(self.asked, self.folder, self.table.time)
        options = [*self._common(name, "plan.log"), *self._wanted()]
        number = self._sbatch(name, "plan.sh", script, options)
        self._save(plan=Job(name=name, id=number))

    def _submit_array(self, groups: list[list[int]], before: Sequence[str], running: int) -> Job:
        name = self._name("blocks")
        job = Job(name=name, tasks=groups)
        others = self.jobs.arrays
        cancelled = [block for block in self.jobs.cancelled if all(block not in group for group in groups)]
        self._save(arrays=[*others, job])
        script = job_script.blocks_script(self.asked, self.folder, groups, self.table.time)
        most = self.table.at_once
        limit = "" if most is None else f"%{max(1, most - running)}"
        options = [f"--array=0-{len(groups) - 1}{limit}", *self._common(name, f"{self.jobs.serial}-%a.log")]
        options += self._wanted()
        if before:
            options += [f"--dependency={','.join(before)}", "--kill-on-invalid-dep=yes"]
        number = self._sbatch(name, f"blocks-{self.jobs.serial}.sh", script, options)
        job = job.model_copy(update={"id": number})
        self._save(arrays=[*others, job], cancelled=cancelled)
        return job

    def _submit_report(self, arrays: Sequence[Job], tasks: Sequence[Task]) -> None:
        """Where Slurm takes no such job, as in a partition of cards alone, the command that waits reports."""
        earlier = queue_state.last_of(tasks, self.jobs.report)
        name = self._name("report")
        self._save(report=Job(name=name))
        after = ":".join(str(job.id) for job in arrays)
        options = [*self._common(name, "report.log"), *self._options(self.table.partition, None, None, False)]
        options += [f"--dependency=afterany:{after}"]
        try:
            number = self._sbatch(name, "report.sh", job_script.report_script(self.folder), options)
        except UsageError as error:
            self._save(report=None)
            report = typed("energybench", "report", self.folder)
            self.say(f"note: no job will report, {error.problems[0].message}; to report: {report}")
            return
        self._save(report=Job(name=name, id=number))
        if earlier is not None and earlier.live:  # it would report before these
            with suppress(Refused, NoAnswer):
                self.slurm.call(["scancel", str(earlier.id)])

    # ── one submission ────────────────────────────────────────────────────────────────────────────────────────────

    def _sbatch(self, name: str, file: str, script: str, options: Sequence[str]) -> int:
        """The job's number. Where no answer comes the queue is asked whether it arrived.

        Raises UsageError E681, E682.
        """
        path = self.folder / JOBS / file
        write_bytes(path, os.fsencode(script))
        for _ in range(TRIES):
            try:
                answer = self.slurm.call(["sbatch", *options, str(path)], may_repeat=False)
                if (number := re.match(r"(\d+)", answer.strip().splitlines()[-1] if answer.strip() else "")) is None:
                    raise UsageError(Problem("E681", f"sbatch gave no number of a job: {answer.strip()[:200]!r}"))
                return int(number[1])
            except Refused as refused:
                self._forget(name)
                raise refusal(str(refused), self._where, self.table.partition, self.slurm.partitions()) from None
            except NoAnswer:
                try:
                    self.slurm.sleep(2.0)
                    found = queue_state.parse(
                        self.slurm.call(
                            ["squeue", "--noheader", "--states=all", f"--name={name}", f"--format={queue_state.FORMAT}"]
                        )
                    )
                except (Refused, NoAnswer) as silence:
                    raise UsageError(no_answer(silence, self.slurm.patience_s)) from None
                if arrived := [task for task in found if task.name == name]:
                    return arrived[0].id
        raise UsageError(no_answer(NoAnswer("a submission got no answer, and is not in the queue"), 0.0))

    def _forget(self, name: str) -> None:
        """A job that was refused."""
        self._save(
            plan=None if self.jobs.plan and self.jobs.plan.name == name else self.jobs.plan,
            arrays=[job for job in self.jobs.arrays if job.name != name],
            report=None if self.jobs.report and self.jobs.report.name == name else self.jobs.report,
        )

    def _common(self, name: str, log: str) -> list[str]:
        """What every job of ours needs, whatever the suite says."""
        return [
            "--parsable",
            f"--job-name={name}",
            "--nodes=1",
            "--ntasks=1",
            "--requeue",
            "--open-mode=append",
            f"--signal=B:TERM@{job_script.lead_s(self.table.time)}",
            f"--output={log_pattern(self.folder / JOBS, log)}",
        ]

    def _wanted(self) -> list[str]:
        """What the suite asks of a job that computes."""
        return self._options(self.table.partition, self.table.gres, self.table.cpus, self.table.exclusive)

    def _options(self, partition: str | None, gres: str | None, cpus: int | None, exclusive: bool) -> list[str]:
        given = {"partition": partition, "gres": gres, "cpus-per-task": cpus}
        options = [f"--{name}={value}" for name, value in given.items() if value is not None]
        if self.table.time is not None:
            options.append(f"--time={math.ceil(self.table.time / 60)}")
        return [*options, *(["--exclusive"] if exclusive else []), *self.table.extra]

    def _longest_array(self) -> int:
        """So many tasks; indices go up to one less than MaxArraySize."""
        told = self.slurm.setting("MaxArraySize") or ""
        return max(1, int(told) if told.isdecimal() and int(told) else MOST_TASKS)

    def _where(self, key: str) -> str:
        return self.asked.suite.where(("on", "slurm", key) if key else ("on", "slurm"))

    def _name(self, what: str) -> str:
        """Of the next job."""
        self._save(serial=self.jobs.serial + 1)
        return self.jobs.job_name(self.asked.suite.suite, f"{what}-{self.jobs.serial}")

    def _save(self, **changes: object) -> None:
        self.jobs = self.jobs.model_copy(update=changes)
        write_jobs(self.folder, self.jobs)

    # ── what became of jobs ───────────────────────────────────────────────────────────────────────────────────────

    def lost(self, tasks: Sequence[Task], disk: BlocksOnDisk, most: int) -> list[int]:
        """Blocks that are missing although their job has ended, and that may be submitted again by itself: not those
        that the user cancelled, whose command was refused, or that were submitted again `most` times."""
        live = self.live_blocks(tasks)
        lost = []
        for block in disk.missing:
            found = queue_state.of_block(self.jobs, tasks, block)
            if block in live or block in self.jobs.cancelled:
                continue
            if found and found[-1].state == "CANCELLED":
                self._save(cancelled=sorted({*self.jobs.cancelled, block}))
                continue
            why = (job_script.notes(self.folder, block) or ["killed"])[-1]
            if why in ("time", "lost") or why.startswith("refused") or self.jobs.again.get(str(block), 0) >= most:
                continue
            lost.append(block)
        return lost

    def release(self, tasks: Sequence[Task], most: int) -> list[Task]:
        """Those that Slurm holds because their launch failed, as after a node came back: they wait for nothing. Each
        `most` times; what a person holds stays held."""
        released = []
        for task in tasks:
            name = f"held {task.number}"
            if task.launch_failed and self.jobs.again.get(name, 0) < most:
                try:
                    self.slurm.call(["scontrol", "release", task.number])
                except (Refused, NoAnswer):
                    continue
                self._count_again(name)
                released.append(task)
        return released

    def submit_again(self, blocks: Sequence[int]) -> list[int]:
        """Blocks whose jobs were lost, but for those that another command has submitted meanwhile. Returns them.

        Raises NoAnswer, UsageError as `submit`.
        """
        tasks = self.look()
        live = self.live_blocks(tasks)
        left = [block for block in blocks if block not in live]
        if left:
            self._count_again(*map(str, left))
            self.submit(tasks, left)
        return left

    def plan_again(self, blocks: Sequence[int]) -> None:
        """A plan that was lost, and what waited for it. Raises as `submit_again`."""
        tasks = self.look()
        if self.planned or self._is_live(self.jobs.plan, tasks):
            return
        self._count_again(PLAN)
        for job in (*self.jobs.arrays, self.jobs.report):
            if job is not None and self._is_live(job, tasks):  # it waits for what will never be
                with suppress(Refused):
                    self.slurm.call(["scancel", str(job.id)])
        self.submit([], blocks)

    def _count_again(self, *names: str) -> None:
        self._save(again=self.jobs.again | {name: self.jobs.again.get(name, 0) + 1 for name in names})

    def begin_counting_again(self) -> None:
        """Somebody asks: what was lost may be lost as often as at first."""
        if self.jobs.again:
            self._save(again={})

    def plan_trouble(self, tasks: Sequence[Task], most: int) -> PlanTrouble | None:
        """What became of a plan's job that ended without a plan; None while there is hope, or a plan."""
        plan = queue_state.last_of(tasks, self.jobs.plan)
        if self.jobs.plan is None or self.planned or (plan is not None and plan.live):
            return None
        state = "" if plan is None else plan.state
        why = (job_script.notes_of(self.folder, PLAN) or ["killed"])[-1]
        if why.startswith("refused") or state == "CANCELLED" or self.jobs.again.get(PLAN, 0) >= most:
            return PlanTrouble(state.lower(), lost=False)
        return PlanTrouble(state.lower(), lost=True)

    def told(self) -> None:
        self._save(told=True)


def no_answer(why: Exception, patience_s: float) -> Problem:
    waited = f" for {patience_s / 60:.0f} min" if patience_s >= 60 else ""
    hint = "jobs that are queued go on; the same command later submits what is missing, and nothing twice"
    return Problem("E682", f"the Slurm controller did not answer{waited}: {why}", hint=hint)


def log_pattern(folder: Path, name: str) -> str:
    """A file below `folder` for sbatch's --output, which replaces %a by a task's index and %% by %, but nothing once
    there is a backslash, which it takes for an escape: then all tasks write to one file."""
    if "\\" in str(folder):
        return str(folder / name.replace("-%a", "")).replace("\\", "\\\\")
    return f"{str(folder).replace('%', '%%')}/{name}"


def log_of(folder: Path, serial: int, index: int) -> Path:
    """Where `log_pattern` leads the output of a task of an array."""
    return folder / (f"{serial}.log" if "\\" in str(folder) else f"{serial}-{index}.log")


@contextmanager
def submitting(folder: Path) -> Iterator[None]:
    """Only one command at a time submits a run's jobs. Raises UsageError E684 while another does; E620."""
    place = folder / JOBS
    try:
        place.mkdir(parents=True, exist_ok=True)
        held = HeldFolder(place)
    except OSError as error:
        raise CannotWrite.of(error, place) from None
    with held:
        try:
            lock = FolderLock(held)
        except FolderBusy as busy:
            who = f": {busy.holder.shown}" if busy.holder else ""
            hint = busy.hint or "wait for it; the same command then shows what is queued"
            message = f"another energybench is submitting the jobs of this run{who}"
            raise UsageError(Problem(AT_WORK, message, str(folder), hint)) from None
        except OSError as error:
            raise CannotWrite.of(error, place) from None
        try:
            yield
        finally:
            lock.free()
