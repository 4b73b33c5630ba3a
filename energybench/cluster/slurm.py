"""`energybench run SUITE --on slurm`: from a suite on a login node to one report.

    choose or make the run's folder           run_folder_choice.py
    submit what is missing                    submission.py: plan → array of blocks → report
    wait: the queue's state beside the records'; blocks whose job was lost are submitted again
    report                                    from the records of all blocks

Whoever ends the wait (Ctrl-C, a closed terminal) ends no job: the same command waits again, and submits what is
missing. Nothing here imports torch, and no card is looked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from energybench.cluster import job_script, queue_state
from energybench.cluster.block_commands import Asked
from energybench.cluster.blocks_on_disk import BlocksOnDisk
from energybench.cluster.jobs_file import JOBS
from energybench.cluster.live_line import LiveLine
from energybench.cluster.queue_state import Task
from energybench.cluster.run_folder_choice import choose
from energybench.cluster.slurm_calls import NoAnswer, Slurm, refuse_without_slurm
from energybench.cluster.submission import AT_WORK, PLAN, PlanTrouble, Submission, log_of, no_answer, submitting
from energybench.common.errors import EXIT_FINE, EXIT_INTERRUPTED, EXIT_TRIALS_FAILED, Problem, UsageError, typed
from energybench.records.shards import ranges
from energybench.suite.on_tables import SlurmTable

MOST_AGAIN = 3  # submissions of a block whose job was lost, beyond the first
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 20.0  # between two looks at the queue
LOG_LINES = 15  # of a job that failed


@dataclass
class Waited:
    """How the jobs ended. code: EXIT_FINE where every block is complete."""

    code: int
    folder: Path
    disk: BlocksOnDisk


def run_on_slurm(
    asked: Asked,
    *,
    out: Path | None,
    fresh: bool,
    blocks_per_job: int | None,
    submit_only: bool,
    line: LiveLine,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Waited, Submission | None]:
    """Submit what is missing, and wait for it. The submission where everything was waited for, to say that its report
    was shown.

    Raises UsageError E680 to E685; EnergybenchError of a folder or a file that cannot be used.
    """
    table = slurm_table(asked)
    refuse_without_slurm()
    folder = choose(asked, "slurm", out, fresh, line.say)
    disk = BlocksOnDisk(folder, asked.blocks)
    slurm = Slurm(line.warn, sleep=sleep)
    with submitting(folder):
        submission = Submission(asked, folder, table, slurm, line.say, blocks_per_job)
        _submit_missing(submission, disk, line)
    if submit_only:
        line.say("the same command without --submit-only waits for them and reports")
        return Waited(EXIT_FINE, folder, disk), None
    try:
        return _wait(submission, disk, line, sleep), submission
    except KeyboardInterrupt as interrupt:
        _left(submission, interrupt, line)
        return Waited(EXIT_INTERRUPTED, folder, disk), None


def slurm_table(asked: Asked) -> SlurmTable:
    """Raises UsageError E685 where the suite says nothing of Slurm."""
    table = asked.suite.on.slurm if asked.suite.on else None
    if table is None:
        hint = 'add [on] slurm = { partition = "gpu", gres = "gpu:1", cpus = 8, time = "4 h" }; docs/cluster.md'
        place = asked.suite.where(("on",)) if asked.suite.on else str(asked.suite.path)
        raise UsageError(Problem("E685", "the suite does not say what to ask of Slurm", place, hint))
    return table


def _submit_missing(submission: Submission, disk: BlocksOnDisk, line: LiveLine) -> None:
    """What is neither complete nor in the queue is submitted."""
    try:
        tasks = submission.look()
    except NoAnswer as silence:
        raise UsageError(no_answer(silence, submission.slurm.patience_s)) from None
    disk.look()
    live = submission.live_blocks(tasks)
    missing = [block for block in disk.missing if block not in live]
    began = bool(submission.jobs.submitted)
    if began:
        submission.begin_counting_again()
        line.say(f"continuing in {submission.folder}: {disk}; {queue_state.sentence(tasks, submission.jobs)}")
    if missing:
        submission.submit(tasks, missing)
        ids = ", ".join(str(job.id) for job in submission.jobs.submitted if job.id and not _known(job.name, tasks))
        what = f"{len(missing)} of {asked_blocks(disk)}" if began else asked_blocks(disk)
        line.say(f"{what} submitted as job {ids}; writing to {submission.folder}")


def asked_blocks(disk: BlocksOnDisk) -> str:
    return f"{disk.blocks} block{'s' * (disk.blocks != 1)}"


def _known(name: str, tasks: Sequence[Task]) -> bool:
    return any(task.name == name for task in tasks)


def _wait(submission: Submission, disk: BlocksOnDisk, line: LiveLine, sleep: Callable[[float], None]) -> Waited:
    """Until every block is complete and the report's job has ended, or nothing is left that could complete them."""
    pause_s, before, suspected = FIRST_PAUSE_S, "", set[object]()
    while True:
        try:
            tasks = submission.look()
            disk.look()
            trouble = submission.plan_trouble(tasks, MOST_AGAIN)
            # What is seen at two looks: a queue is between two states, and the disk of a network is late.
            seen: set[object] = {trouble} if trouble else {*submission.lost(tasks, disk, MOST_AGAIN)}
            certain, suspected = seen & suspected, seen
            if trouble in certain:
                if trouble is not None and not trouble.lost:
                    raise UsageError(_failed_plan(submission, trouble))
                certain = {PLAN}
            if certain and _again(submission, disk, certain, line):
                suspected = set()
                continue
            if released := submission.release(tasks, MOST_AGAIN):
                numbers = " ".join(task.number for task in released)
                line.warn(f"Slurm held {numbers} because a launch had failed; released")
        except NoAnswer as silence:
            raise UsageError(no_answer(silence, submission.slurm.patience_s)) from None
        live = [task for task in tasks if task.live]
        said = f"{disk} · {queue_state.sentence(live, submission.jobs)}"
        line.show(said, last=not live and not suspected)
        if not live and not suspected:
            line.clear()
            return Waited(_left_undone(submission, disk, line), submission.folder, disk)
        pause_s = FIRST_PAUSE_S if said != before or suspected else min(LONGEST_PAUSE_S, 1.5 * pause_s)
        before = said
        sleep(pause_s)


def _again(submission: Submission, disk: BlocksOnDisk, lost: set[object], line: LiveLine) -> bool:
    """Submit what was lost. Whether it was: another command may be doing so. Raises NoAnswer, UsageError E681, E682."""
    try:
        with submitting(submission.folder):
            if PLAN in lost:
                submission.plan_again(disk.missing)
                line.warn("the job that plans the run was lost; submitted again")
            elif blocks := submission.submit_again([block for block in disk.missing if block in lost]):
                line.warn(f"the job of {_blocks(blocks)} was lost; submitted again")
    except UsageError as error:
        if error.problems[0].code != AT_WORK:
            raise
        return False
    return True


def _failed_plan(submission: Submission, trouble: PlanTrouble) -> Problem:
    """E686: the plan's job ended without a plan."""
    state = f" ({trouble.state})" if trouble.state else ""
    log = submission.folder / JOBS / "plan.log"
    return Problem("E686", f"the job that plans the run ended without a plan{state}{_end_of(log)}", str(log))


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ", and left no log"
    shown = [f"  {line}" for line in lines[-LOG_LINES:] if line.strip()]
    return "\n".join([":", *shown]) if shown else ", and wrote nothing"


def _left_undone(submission: Submission, disk: BlocksOnDisk, line: LiveLine) -> int:
    """Says what became of blocks that are not complete; the exit code that stands for it."""
    if not disk.missing:
        return EXIT_FINE
    code = EXIT_INTERRUPTED
    by_reason: dict[str, list[int]] = {}
    for block in disk.missing:
        last = (job_script.notes(submission.folder, block) or ["killed"])[-1]
        by_reason.setdefault("cancelled" if block in submission.jobs.cancelled else last, []).append(block)
    for reason, blocks in by_reason.items():
        line.warn(f"not complete: {_blocks(blocks)}: {_meaning(reason)}")
        if reason == "time" or reason.startswith("refused"):
            code = EXIT_TRIALS_FAILED
    line.say(
        f"{typed('tail', *_logs(submission, disk.missing[:1]))} shows why; the same command submits what is missing"
    )
    return code


def _meaning(reason: str) -> str:
    kind, _, code = reason.partition(":")
    return {
        "cancelled": "its job was cancelled",
        "time": "nothing new of it ended within the time of its job; it needs more: [on] slurm.time",
        "refused": f"its command ended with {code}; its log says why",
        "elsewhere": "another process works on it",
    }.get(kind, "its jobs were lost")


def _logs(submission: Submission, blocks: Sequence[int]) -> list[Path]:
    """The newest log of each block."""
    folder, newest = submission.folder / JOBS, dict[int, Path]()
    for job in submission.jobs.arrays:
        for index, task in enumerate(job.tasks):
            newest |= {block: log_of(folder, int(job.name.rpartition("-")[2]), index) for block in task}
    return [newest.get(block, folder / "plan.log") for block in blocks]


def _blocks(blocks: Sequence[int]) -> str:
    """ "block 4", "blocks 1-2,6", as people count them."""
    return f"block{'s' * (len(blocks) != 1)} {ranges(blocks)}"


def _left(submission: Submission, interrupt: KeyboardInterrupt, line: LiveLine) -> None:
    ids = list(dict.fromkeys(str(job.id) for job in submission.jobs.submitted if job.id))
    line.warn(f"{str(interrupt) or 'interrupted'}; the jobs go on, and the same command waits for them again")
    line.say(f"to look: squeue --jobs={','.join(ids)}; to end them: scancel {' '.join(ids)}")
