"""What Slurm says of a run's jobs, from squeue alone: a cluster without an accounting database has no sacct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from energybench.cluster.jobs_file import Job, Jobs
from energybench.cluster.slurm_calls import Slurm

FORMAT = "%j|%F|%K|%T|%N|%r"
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"}
    | {"TIMEOUT", "LAUNCH_FAILED", "RECONFIG_FAIL"}
)
RUNNING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
NOT_WORTH_TELLING = frozenset({"None", "Priority", "JobArrayTaskLimit", "Dependency", "BeginTime", ""})


@dataclass(frozen=True)
class Task:
    """One job of the queue, or one task of an array.

    index: of a task in its array; None: it is no array, or not yet cut into tasks
    """

    name: str
    id: int
    index: int | None
    state: str
    node: str = ""
    reason: str = ""

    @property
    def live(self) -> bool:
        """Whether it runs, or will. A state that we do not know is one: nothing is submitted beside it."""
        return self.state not in ENDED

    @property
    def number(self) -> str:
        """As Slurm's commands take it."""
        return f"{self.id}" if self.index is None else f"{self.id}_{self.index}"

    @property
    def launch_failed(self) -> bool:
        """Whether Slurm holds it because it could not be started where it was sent to."""
        return self.held and "launch failed" in self.reason.lower().replace("_", " ")

    @property
    def held(self) -> bool:
        return self.live and "held" in self.reason.lower()


def parse(text: str) -> list[Task]:
    """squeue's lines as FORMAT has them; what is no such line is left out."""
    tasks = []
    for line in text.splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) != 6 or not fields[1].isdecimal():
            continue
        name, number, index, state, node, reason = fields
        for each in _indices(index):
            tasks.append(Task(name, int(number), each, state.upper(), node, reason.strip("() ")))
    return tasks


def _indices(text: str) -> list[int | None]:
    """ "3" → [3]; "2-4,7%2" → [2, 3, 4, 7], as tasks that wait together are shown; "N/A" → [None]."""
    ranges = text.strip("[]").partition("%")[0]
    found: list[int | None] = []
    for part in ranges.split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return [None]
        found += range(int(first), int(last or first) + 1, int(step) if step.isdecimal() and int(step) else 1)
    return found


def ask(slurm: Slurm, jobs: Jobs) -> list[Task]:
    """Every job of this run that the queue knows, by name; those too that ended in the last minutes.

    Raises NoAnswer, Refused.
    """
    names = [job.name for job in jobs.submitted]
    if not names:
        return []
    words = ["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(names)}", f"--format={FORMAT}"]
    return [task for task in parse(slurm.call(words)) if task.name in names]


def of_block(jobs: Jobs, tasks: Iterable[Task], block: int) -> list[Task]:
    """The tasks whose work a block is, the newest submission last."""
    found = []
    order = {job.name: number for number, job in enumerate(jobs.arrays)}
    for task in tasks:
        job = next((job for job in jobs.arrays if job.name == task.name), None)
        if job is None:
            continue
        mine = job.tasks if task.index is None else job.tasks[task.index : task.index + 1]
        if any(block in blocks for blocks in mine):
            found.append(task)
    return sorted(found, key=lambda task: (order[task.name], task.live))


def last_of(tasks: Sequence[Task], job: Job | None) -> Task | None:
    """The state of a job that is no array; None where the queue does not know it."""
    found = [task for task in tasks if job is not None and task.name == job.name]
    return max(found, key=lambda task: (task.live, task.id), default=None)


def sentence(tasks: Iterable[Task], jobs: Jobs) -> str:
    """ "3 running on n1, n2; 17 waiting (Resources); 1 held"; of the live ones, the plan and the report by name."""
    live = [task for task in tasks if task.live]
    words = []
    if (plan := last_of(live, jobs.plan)) is not None:
        words.append(f"planning on {plan.node}" if plan.state in RUNNING and plan.node else "plan waiting")
    of_blocks = [task for task in live if any(task.name == job.name for job in jobs.arrays)]
    words += _of_blocks(of_blocks)
    if not words and last_of(live, jobs.report) is not None:
        words.append("the report is queued")
    return "; ".join(words) or "no job is queued"


def _of_blocks(live: Sequence[Task]) -> list[str]:
    held = [task for task in live if task.held]
    running = [task for task in live if task.state in RUNNING and task not in held]
    waiting = [task for task in live if task not in running and task not in held]
    nodes = sorted({task.node for task in running if task.node})
    reasons = [reason for reason, _ in Counter(task.reason for task in waiting).most_common()]
    reasons = [reason for reason in reasons if reason not in NOT_WORTH_TELLING]
    words = []
    if running:
        where = f" on {', '.join(nodes[:4])}{' …' if nodes[4:] else ''}" if nodes else ""
        words.append(f"{len(running)} running{where}")
    if waiting:
        words.append(f"{len(waiting)} waiting{f' ({reasons[0]})' if reasons else ''}")
    if held:
        words.append(f"{len(held)} held: scontrol release {' '.join(task.number for task in held[:4])}")
    return words
