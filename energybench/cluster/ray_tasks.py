"""`energybench run SUITE --on ray`: the same blocks as tasks of a Ray cluster.

A task runs the command of one block as its child. Where its node or its process is lost, Ray starts it again, elsewhere
if need be; the block goes on, or begins anew on another device. Tasks live as long as this command: Ctrl-C cancels
them, and the same command goes on. Ray is imported when it is used: pip install "energybench[ray]".
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energybench.cluster import ray_work
from energybench.cluster.block_commands import Asked, BlockEnd, block_words, plan_words
from energybench.cluster.blocks_on_disk import BlocksOnDisk
from energybench.cluster.jobs_file import JOBS, new_jobs, read_jobs, write_jobs
from energybench.cluster.live_line import LiveLine
from energybench.cluster.run_folder_choice import choose
from energybench.cluster.submission import submitting
from energybench.common.errors import EXIT_FINE, EXIT_INTERRUPTED, EXIT_TRIALS_FAILED, Problem, UsageError
from energybench.common.outputs import RUN_FILE
from energybench.records.shards import named
from energybench.suite.on_tables import RayTable

LOOK_S = 2.0  # between two looks at the records
CANCELLED_S, AGAIN_S = 90.0, 3.0  # for tasks to end their commands, and between two times that they are told to


def run_on_ray(asked: Asked, *, out: Path | None, fresh: bool, line: LiveLine) -> tuple[int, Path]:
    """Run what is missing. Returns EXIT_FINE where every block is complete, and the run's folder.

    Raises UsageError E680, E683 to E687.
    """
    table = ray_table(asked)
    ray = _ray()
    folder = choose(asked, "ray", out, fresh, line.say)
    with submitting(folder):
        jobs = read_jobs(folder) or new_jobs("ray", asked.identity)
        if jobs.asked != asked.identity or jobs.engine != "ray":
            message = "this folder holds the jobs of another run"
            raise UsageError(Problem("E683", message, str(folder), "name another folder with --out, or --new"))
        write_jobs(folder, jobs)
        disk = BlocksOnDisk(folder, asked.blocks)
        try:
            _connect(ray, table, asked)
            code = _Tasks(ray, table, asked, disk, line).run()
        except KeyboardInterrupt as interrupt:
            line.warn(f"{str(interrupt) or 'interrupted'}; {disk}. The same command continues.")
            return EXIT_INTERRUPTED, folder
        finally:
            ray.shutdown()
        if code == EXIT_FINE:
            write_jobs(folder, jobs.model_copy(update={"told": True}))
        return code, folder


def ray_table(asked: Asked) -> RayTable:
    """Raises UsageError E685 where the suite says nothing of Ray."""
    table = asked.suite.on.ray if asked.suite.on else None
    if table is None:
        place = asked.suite.where(("on",)) if asked.suite.on else str(asked.suite.path)
        hint = "add [on] ray = { gpus = 1, cpus = 8 }; docs/cluster.md"
        raise UsageError(Problem("E685", "the suite does not say what to ask of Ray", place, hint))
    return table


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of each start
    try:
        import ray
    except ImportError:
        hint = 'pip install "energybench[ray]", on every node'
        raise UsageError(Problem("E680", "Ray is not installed here", hint=hint)) from None
    return ray


def _connect(ray: Any, table: RayTable, asked: Asked) -> None:
    """To the cluster, or to one of this machine alone. Raises UsageError E687 where there is none at the address."""
    try:
        ray.init(address=table.address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        said = " ".join(str(error).split())[:300]
        hint = "start one with: ray start --head; or leave out address for one on this machine"
        place = asked.suite.where(("on", "ray", "address"))
        raise UsageError(Problem("E687", f"no Ray cluster can be reached: {said}", place, hint)) from None
    there = ray.cluster_resources()
    for name, needed in (("GPU", table.gpus), ("CPU", table.cpus)):
        if needed > there.get(name, 0):
            message = f"a task needs {needed} {name}, and the whole cluster has {there.get(name, 0):g}"
            hint = f"it would wait for ever: lower [on] ray.{name.lower()}s, or add a node"
            raise UsageError(Problem("E687", message, asked.suite.where(("on", "ray", f"{name.lower()}s")), hint))


class _Tasks:
    """The plan, then the blocks. `ray`: the module."""

    def __init__(self, ray: Any, table: RayTable, asked: Asked, disk: BlocksOnDisk, line: LiveLine) -> None:
        self.ray, self.table, self.asked, self.disk, self.line = ray, table, asked, disk, line
        self.folder, self.place = disk.folder, str(Path.cwd())
        options = {"num_cpus": table.cpus, "num_gpus": table.gpus, "max_retries": table.retries}
        self.job = str(ray.get_runtime_context().get_job_id())
        self.task = ray.remote(ray_work.work).options(**options, retry_exceptions=[ray_work.Lost])
        self.under_way: dict[Any, str] = {}
        self.failed: dict[str, str] = {}

    def run(self) -> int:
        if not (self.folder / RUN_FILE).is_file():
            self.line.say(f"planning and counting on the cluster; writing to {self.folder}")
            self._run_all([("plan", plan_words(self.asked, self.folder))])
            if self.failed or not (self.folder / RUN_FILE).is_file():
                log = self._log("plan")
                why = self.failed.get("plan", "without a plan")
                raise UsageError(Problem("E686", f"the task that plans the run ended {why}", str(log), f"tail {log}"))
        self.disk.look()
        missing = self.disk.missing
        self.line.say(f"{self.disk}; {len(missing)} to run in {self.folder}")
        self._run_all([(named([block]), block_words(self.asked, self.folder, block)) for block in missing])
        self.disk.look()
        for part, why in self.failed.items():
            self.line.warn(f"{part} ended {why}: {self._log(part)}")
        return EXIT_TRIALS_FAILED if self.failed or self.disk.missing else EXIT_FINE

    def _run_all(self, parts: Sequence[tuple[str, list[str]]]) -> None:
        waiting = list(parts)
        most = self.table.at_once or len(waiting)
        try:
            while waiting or self.under_way:
                while waiting and len(self.under_way) < most:
                    part, words = waiting.pop(0)
                    log, token = str(self._log(part)), secrets.token_hex(8)
                    self.under_way[self.task.remote(words, self.place, log, token, self.job)] = part
                done, _ = self.ray.wait(list(self.under_way), timeout=LOOK_S)
                for each in done:
                    self._end(each)
                self.disk.look()
                self.line.show(f"{self.disk} · {len(self.under_way)} tasks submitted, {len(waiting)} to come")
        except BaseException:
            self._cancel()
            raise
        finally:
            self.line.clear()

    def _end(self, task: Any) -> None:
        part = self.under_way.pop(task)
        try:
            code = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            self.failed[part] = f"by {type(error).__name__} after {self.table.retries} retries"
            return
        if code not in (BlockEnd.COMPLETE, BlockEnd.FAILED):
            self.failed[part] = f"with {code}"

    def _cancel(self) -> None:
        """Softly, so that each command ends whole and its records stay; what does not end in time is ended by force."""
        until = time.monotonic() + CANCELLED_S
        while self.under_way and time.monotonic() < until:
            for task in self.under_way:  # again and again: one that is just started anew hears the first too early
                self.ray.cancel(task, force=False)
            _, left = self.ray.wait(list(self.under_way), num_returns=len(self.under_way), timeout=AGAIN_S)
            self.under_way = {task: self.under_way[task] for task in left}
        for task in self.under_way:
            self.ray.cancel(task, force=True)
        self.under_way.clear()

    def _log(self, part: str) -> Path:
        return self.folder / JOBS / f"{part}.log"
