"""`energybench run`: a suite goes in, trials run one at a time in processes of their own, a report comes out.

The parent imports no torch and sleeps while a trial runs. What is on disk is always whole: the same command continues.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from energybench.common.errors import (
    EXIT_INTERRUPTED,
    EXIT_REGRESSION,
    EXIT_TRIALS_FAILED,
    CannotWrite,
    Problem,
    UsageError,
)
from energybench.common.sealed_files import write_text
from energybench.meter.nvml import held_open
from energybench.process import subprocess_call, supervise
from energybench.process.forkserver import Launcher, Outcome
from energybench.records.reader import read
from energybench.records.record import Cell, Invocation, Looks, RunFile, Trial, Witness, write_json
from energybench.records.run_folder import Folder, abandoned, choose, scratch
from energybench.runner import schedule
from energybench.runner.plan_request import Planned, plan
from energybench.runner.progress import Progress
from energybench.runner.what_changed import changes
from energybench.stats.paired import FEWEST_BLOCKS
from energybench.suite.command_tables import fill_words
from energybench.suite.suite import Suite, cell_name
from energybench.trial.command_trial import environment

AROUND_S = 60.0  # beyond its limit, for what happens around a command: sensors, idle windows, an end by force


def run(
    suite: Suite,
    *,
    out: Path | None = None,
    fresh: bool = False,
    device: str | None = None,
    argv: list[str] | None = None,
    progress: Progress,
    until_decided: bool = False,
    max_s: float | None = None,
    add_blocks: int = 0,
    strict: bool = False,
) -> tuple[int, Path]:
    """Run what is missing of a suite and report. Returns the exit code and the run's folder.

    until_decided: up to the suite's `blocks_max`, ending at the first declared look that decides every comparison
    max_s:         ends after the block in progress; the same call continues
    add_blocks:    so many beyond a finished run's: exploratory, in no verdict
    strict:        a requirement of the suite that is left undecided is exit code 4
    """
    began = time.monotonic()
    if until_decided and suite.trials.blocks_max is None:
        message = "--until-decided needs the most blocks there may be, declared before the first"
        hint = "add [trials] blocks_max = 20, or --set trials.blocks_max=20"
        raise UsageError(Problem("E203", message, suite.where(("trials",)), hint))
    launcher = Launcher()
    with scratch() as place, _terminate_as_interrupt(), held_open():
        if suite.trains:
            launcher.warm()
        progress.say(f"checking {suite.path.name}: {'methods, models, data' if suite.trains else 'commands'}")
        planned = plan(suite, launcher, place, device=device, until_decided=until_decided, added=add_blocks)
        differs = partial(changes, planned=planned)
        folder = choose(suite.suite, planned.digest, out, fresh, add_blocks > 0, progress.say, differs)
        if out is None and not fresh and not folder.path.exists():
            _ask_about_another(suite, differs, progress)
        with folder.lock():
            folder.admit(planned.digest, differs, finished=add_blocks > 0)  # nobody came between
            runner = _Runner(planned, folder, launcher, place, progress, argv or sys.argv, add_blocks, strict)
            return runner.run(None if max_s is None else began + max_s), folder.path


class _Runner:
    def __init__(
        self,
        planned: Planned,
        folder: Folder,
        launcher: Launcher,
        place: Path,
        progress: Progress,
        argv: list[str],
        added: int,
        strict: bool,
    ) -> None:
        self.strict, self.added = strict, added
        self.planned, self.folder, self.launcher, self.place = planned, folder, launcher, place
        self.progress, self.suite = progress, planned.suite
        self.done, self.counted = folder.trials(), folder.witnessed()  # a damaged one ends it here
        self.run_file = self._open(argv, added)

    def run(self, deadline: float | None) -> int:
        """`deadline`: on the monotonic clock; past it no block is begun."""
        blocks = self.blocks = self.run_file.counted + self.added  # an earlier call may have asked for more
        number = self.run_file.invocations[-1].number
        slots = schedule.missing(self.planned.cells, blocks, self.suite.trials.seed, self.done, number)
        witnessed = {(w.workload, w.method): w.digest for w in self.counted}
        witnesses = [c for c in self.planned.witnesses if witnessed.get((c.workload, c.method)) != c.digest]
        for note in self.planned.notes:
            self.progress.say(f"note: {note}")
        if self.run_file.looks:
            after = ", ".join(map(str, self.run_file.looks.at))
            self.progress.say(f"looks after {after} blocks; ends at the one that decides every comparison")
        self.progress.begin(
            self.folder.path, len(witnesses) + len(slots), resumed=bool(self.done), expected_s=self.planned.expected_s()
        )
        try:
            for cell in witnesses:
                self._witness(cell)
            self._warm_up(slots)
            outcome, finished = self._train(slots, blocks, deadline)
            summary = self._report(outcome, finished)
        except KeyboardInterrupt:
            self.folder.save(self._closed("interrupted", finished=self.run_file.finished))
            self.progress.interrupted(self.folder.path)
            return EXIT_INTERRUPTED
        self.progress.end(summary, self.folder.report)
        if not finished:
            self.progress.say(f"{outcome}; the same command continues")
        from energybench.verdict import requirements

        code = requirements.exit_code(summary.required, self.strict)
        return EXIT_TRIALS_FAILED if code != EXIT_REGRESSION and _failed(self.folder.trials()) else code

    def _train(self, slots: list[schedule.Slot], blocks: int, deadline: float | None) -> tuple[str, bool]:
        """Block by block: how it ended, and whether that is the end of the run."""
        for block in range(blocks):
            here = [slot for slot in slots if slot.block == block]
            for slot in here:
                self._trial(slot)
            over = deadline is not None and bool(here) and time.monotonic() >= deadline and block < blocks - 1
            if self._decided(block + 1, over):
                break
            if over:
                return f"time is up after {block + 1} of {blocks} blocks", False
            if here and block < blocks - 1:
                self.progress.block(self._so_far())
        return "finished", True

    def _report(self, outcome: str, finished: bool) -> Any:
        """Report, then close: a run without its report is not finished."""
        from energybench.report import pages

        closed = self._closed(outcome, finished=finished or self.run_file.finished)
        summary = self._summary(closed)
        pages.write(summary, self.folder.trials(), self.folder.path)
        self.folder.save(closed)
        self.run_file = closed
        return summary

    def _decided(self, blocks: int, over: bool) -> bool:
        """Take the look that was declared after so many blocks, or that the end of the time asks for, once.

        True: every comparison is decided, and the run is closed. Only a run that declared looks may end so.
        """
        run = self.run_file
        looks = run.looks or Looks(at=[run.blocks])
        due = blocks in looks.at or (over and blocks >= FEWEST_BLOCKS)
        if run.finished or not due or blocks in looks.taken or (run.looks is None and not over):
            return False
        looked = run.model_copy(update={"looks": looks.model_copy(update={"taken": [*looks.taken, blocks]})})
        from energybench.verdict.interim_notes import undecided

        left = undecided(self._summary(looked))  # one that is interrupted here was not taken
        decided = run.looks is not None and not left and blocks < run.blocks
        self.run_file = looked.model_copy(update={"closed": blocks}) if decided else looked
        self.folder.save(self.run_file)  # the look and what it decided at once: it is never taken twice
        open_ = f"{len(left)} comparison{'s' * (len(left) != 1)} undecided" if left else "every comparison is decided"
        self.progress.say(f"look after {blocks} blocks: {open_}")
        return decided

    def _trial(self, slot: schedule.Slot) -> None:
        cell = slot.cell
        epochs = cell.epochs[slot.block] if cell.epochs else None
        header = {
            "trial": slot.trial,
            "workload": cell.workload,
            "method": cell.method,
            "role": cell.role,
            "of": cell.of,
            "block": slot.block,
            "seed": self.suite.trials.seed + slot.block,
            "invocation": slot.invocation,
            "position": slot.position,
            "digest": cell.digest,
            "started_at": _now(),
            "device": self.planned.command_device if cell.command else self.planned.device_name,
            "claim": cell.claim.model_dump() if cell.claim else None,
        }
        self.progress.start(f"block {slot.block + 1}/{self.blocks}", cell.workload, cell.method)
        out = self.folder.records / f"{slot.trial}.json"
        run = self._command if cell.command else self._call
        outcome = run(cell, "trial", header, epochs, slot.trial, out, self.suite.trials.limit)
        if not out.exists():
            write_json(out, Trial.model_validate({**header, **_failure(outcome)}))
        self.progress.finish(read(out, Trial))

    def _warm_up(self, slots: list[schedule.Slot]) -> None:
        """Each workload's own command once, unmetered and no longer than the suite's warm-up: what it reads is then
        in memory for the first trial as for the others."""
        spec = self.planned.spec
        amount, seed = spec["warmup"], self.suite.trials.seed
        names = dict.fromkeys(slot.cell.workload for slot in slots if slot.cell.command)
        for name in names if amount["unit"] == "s" and amount["count"] > 0 else ():
            cell = next(c for c in self.planned.cells if c.workload == name and c.role == "baseline")
            header: dict[str, Any] = {"seed": seed, "block": 0, "trial": "warmup"}
            self.progress.start("warming up", name, cell.method)
            with suppress(OSError):  # the trials tell
                supervise.run(
                    fill_words(cell.command, header),
                    cwd=Path(spec["base"]),
                    discard=True,
                    env=environment(header, self.place / "warmup.jsonl", spec["threads"]),
                    limit_s=amount["count"],
                    tick=self.progress.tick,
                )

    def _witness(self, cell: Cell) -> None:
        name = cell_name(cell.workload, cell.method)
        header = {
            "workload": cell.workload,
            "method": cell.method,
            "role": cell.role,
            "digest": cell.digest,
            "seed": self.suite.trials.seed,
        }
        self.progress.start("counting FLOPs", cell.workload, cell.method)
        out = self.folder.witnesses / f"{name}.json"
        outcome = self._call(cell, "witness", header, None, f"witness-{name}", out, 3 * self.suite.trials.limit)
        if not out.exists():
            write_json(out, Witness.model_validate({**header, **_failure(outcome)}))
        self.progress.finish(read(out, Witness))

    def _call(
        self, cell: Cell, mode: str, header: dict[str, Any], epochs: int | None, name: str, out: Path, limit_s: float
    ) -> Outcome:
        spec = self.planned.spec
        workload = next(w for w in spec["workloads"] if w["name"] == cell.workload)
        known = self.planned.workloads[cell.workload]
        in_path = self.place / "cell.in.json"
        write_text(
            in_path,
            json.dumps(
                {
                    "mode": mode,
                    "header": header,
                    "base": spec["base"],
                    "epochs": epochs,
                    "stack": cell.stack,
                    "workload": {key: value for key, value in workload.items() if key != "where"},
                    "data": known["data"],
                    "ledger": known["ledger"],
                    "balance_flop_b": known.get("balance_flop_b"),
                    "warmup": spec["warmup"],
                    "measure": self.planned.measure,
                    "threads": spec["threads"],
                    "device": self.planned.device,
                    "device_name": self.planned.device_name,
                    "trace": str(self.folder.traces / f"{name}.csv.gz"),
                }
            ),
        )
        log = self.folder.path / "logs" / f"{name}.log"
        try:
            log.parent.mkdir(exist_ok=True)
            out.unlink(missing_ok=True)  # a witness of other settings
        except OSError as error:
            raise CannotWrite.of(error, log) from None
        try:
            outcome = self.launcher.call(
                "energybench.trial.trial:main", in_path, out, log=log, limit_s=limit_s, tick=self.progress.tick
            )
        finally:
            _unless_empty(log)
        return self._written(outcome, out)

    def _command(
        self, cell: Cell, mode: str, header: dict[str, Any], epochs: int | None, name: str, out: Path, limit_s: float
    ) -> Outcome:
        """A trial that is a command, in a process of its own that needs no torch."""
        spec = self.planned.spec
        workload = next(w for w in spec["commands"] if w["name"] == cell.workload)
        in_path, log = self.place / "cell.in.json", self.folder.path / "logs" / f"{name}.log"
        write_text(
            in_path,
            json.dumps(
                {
                    "mode": "command",
                    "header": header,
                    "base": spec["base"],
                    "command": cell.command,
                    "workload": {key: value for key, value in workload.items() if key != "where"},
                    "metric": spec["metric"],
                    "measure": self.planned.measure_commands,
                    "threads": spec["threads"],
                    "device_name": self.planned.command_device,
                    "limit_s": limit_s,
                    "windows": str(self.place / f"{name}.windows.jsonl"),
                    "trace": str(self.folder.traces / f"{name}.csv.gz"),
                    "log": str(log),
                }
            ),
        )
        try:
            outcome = subprocess_call.call(
                "energybench.trial.command_trial",
                in_path,
                out,
                tick=self.progress.tick,
                limit_s=limit_s + spec["cooldown"]["longest"] + AROUND_S,
            )
        finally:
            _unless_empty(log)
        return self._written(outcome, out)

    @staticmethod
    def _written(outcome: Outcome, out: Path) -> Outcome:
        if outcome.unwritten:
            raise CannotWrite.of(OSError(None, "its process found the disk full or read-only"), out)
        return outcome

    def _open(self, argv: list[str], added: int) -> RunFile:
        """run.json with this invocation added, and with the blocks that it adds to a finished run."""
        run = self.folder.run_file() or self._new_run_file()
        if run.finished:
            run = run.model_copy(update={"added": max(run.added, added)})
        number = max((i.number for i in run.invocations), default=-1) + 1
        invocation = Invocation(number=number, argv=[Path(argv[0]).name, *argv[1:]], started_at=_now())
        run = run.model_copy(update={"invocations": [*run.invocations, invocation]})
        self.folder.save(run)
        return run

    def _new_run_file(self) -> RunFile:
        suite, planned = self.suite, self.planned
        data = {
            name: {key: value for key, value in found["data"].items() if key != "file"}
            | {"parameters": found["parameters"]}
            for name, found in planned.workloads.items()
            if found["data"]
        }
        return RunFile(
            suite=suite.suite,
            about=suite.about,
            run=self.folder.path.name,
            digest=planned.digest,
            stamp=suite.stamp,
            suite_path=suite.path.name,
            suite_text=suite.text,
            resolved=suite.digest_source(),
            cells=[cell.model_copy(update={"stack": [_portable(s) for s in cell.stack]}) for cell in planned.cells],
            blocks=planned.blocks,
            looks=Looks(at=planned.looks) if planned.looks else None,
            machine=planned.machine,
            data=data,
            sources={s["name"]: f"{Path(s['path']).name} ({s['origin']})" for c in planned.cells for s in c.stack}
            | planned.sources,
        )

    def _closed(self, outcome: str, finished: bool) -> RunFile:
        """run.json with this invocation ended."""
        last = self.run_file.invocations[-1].model_copy(update={"ended_at": _now(), "outcome": outcome})
        invocations = [*self.run_file.invocations[:-1], last]
        return self.run_file.model_copy(update={"invocations": invocations, "finished": finished})

    def _summary(self, run: RunFile) -> Any:
        from energybench.verdict.summary import summarise

        return summarise(run, self.folder.trials(), self.folder.witnessed())

    def _so_far(self) -> Any:
        """All blocks that are there, for a glance between looks: no verdict is drawn from it."""
        from energybench.verdict.summary import summarise

        blind = self.run_file.model_copy(
            update={"looks": None, "finished": False, "closed": None, "blocks": self.blocks}
        )
        return summarise(blind, self.folder.trials(), self.folder.witnessed())


def _failed(trials: list[Trial]) -> list[Trial]:
    """The trials that failed, whenever, and that no later invocation has repeated well."""
    good = {
        (t.block, t.workload, t.method): t.invocation
        for t in sorted(trials, key=lambda t: t.invocation)
        if t.status == "ok"
    }
    return [t for t in trials if t.status != "ok" and good.get((t.block, t.workload, t.method), -1) < t.invocation]


def _failure(outcome: Outcome) -> dict[str, Any]:
    status = (
        "timeout"
        if outcome.timed_out
        else "out_of_memory"
        if outcome.killed and "KILL" in (outcome.reason or "")
        else "failed"
    )
    return {"status": status, "reason": outcome.reason or "it ended without a record"}


def _unless_empty(log: Path) -> None:
    with suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
        log.parent.rmdir()


def _portable(method: dict[str, Any]) -> dict[str, Any]:
    """A stack's entry without the folders of this machine."""
    return method | {"path": Path(method["path"]).name}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ask_about_another(suite: Suite, differs: Callable[[RunFile], str], progress: Progress) -> None:
    """Before a new run begins beside one that the same command would have continued, had nothing changed.

    Who sits at a terminal is asked. A job in a queue has nobody to ask: it goes on in a folder of its own, and says so.
    Raises UsageError E623 when the answer is no.
    """
    found = abandoned(suite.suite, suite.stamp)
    if found is None:
        return
    path, run = found
    progress.say(f"note: the unfinished run in {path} stays as it is. Changed since: {differs(run)}")
    if not progress.confirm("Start a new run beside it?"):
        hint = "put back what changed and run again to continue it, or add --new"
        raise UsageError(Problem("E623", "no new run was started beside this one", str(path), hint))


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM or a closed terminal ends a run as Ctrl-C does: whole files, exit 130."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
