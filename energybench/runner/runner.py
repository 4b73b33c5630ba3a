"""`energybench run`: a suite goes in, trials run one at a time in processes of their own, a report comes out.

The parent imports no torch and sleeps while a trial runs. What is on disk is always whole: the same command continues.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybench.common.errors import EXIT_INTERRUPTED, EXIT_REGRESSION, EXIT_TRIALS_FAILED, Problem, UsageError, typed
from energybench.common.interrupts import signals_interrupt
from energybench.meter.nvml import held_open
from energybench.process.forkserver import Launcher
from energybench.process.prepared import PreparedInterpreter
from energybench.records.reader import COUNTING_RUNS, RECORDS
from energybench.records.record import Cell, CountingRun, Invocation, Looks, RunFile, Trial
from energybench.records.run_folder import Folder, abandoned, choose, scratch
from energybench.records.run_identity import new_identity
from energybench.runner import busy, schedule
from energybench.runner.expected_time import expected_time
from energybench.runner.foresight import foresight, sentence
from energybench.runner.plan_request import Planned, plan
from energybench.runner.progress import Progress
from energybench.runner.trials import COMMAND, Trials, now
from energybench.runner.what_changed import changes
from energybench.stats.paired import FEWEST_BLOCKS
from energybench.suite.suite import Suite, cell_name
from energybench.trial.command_trial import REFUSED
from energybench.trial.spec import MethodSpec, stack_of
from energybench.verdict.examination import examine

if TYPE_CHECKING:
    from energybench.verdict.figures import Summary

MOST_SHOWN = 3  # files in one message


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
    keep_going: bool = False,
) -> tuple[int, Path]:
    """Run what is missing of a suite and report. Returns the exit code and the run's folder.

    until_decided: up to the suite's `blocks_max`, ending at the first declared look that decides every comparison
    max_s:         ends after the block in progress; the same call continues
    add_blocks:    so many beyond a finished run's: exploratory, in no verdict
    strict:        a requirement of the suite that is left undecided is exit code 4
    keep_going:    on past a command whose quality or windows cannot be used; else the first such trial ends the call
    """
    began = time.monotonic()
    if until_decided and suite.trials.blocks_max is None:
        message = "--until-decided needs the most blocks there may be, declared before the first"
        hint = "add [trials] blocks_max = 20, or --set trials.blocks_max=20"
        raise UsageError(Problem("E203", message, suite.where(("trials",)), hint))
    launcher, watch = Launcher(), busy.Watch()
    prepared = PreparedInterpreter(COMMAND)
    with scratch() as place, signals_interrupt(), held_open(), closing(prepared):
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
            _refuse_foreign_page(folder)
            trials = Trials(planned, folder, launcher, place, progress, prepared)
            runner = _Runner(planned, folder, trials, progress, argv or sys.argv, add_blocks, strict, keep_going)
            return runner.run(None if max_s is None else began + max_s, watch), folder.path


class _Runner:
    def __init__(
        self,
        planned: Planned,
        folder: Folder,
        trials: Trials,
        progress: Progress,
        argv: list[str],
        added: int,
        strict: bool,
        keep_going: bool = False,
    ) -> None:
        self.strict, self.added, self.keep_going = strict, added, keep_going
        self.planned, self.folder, self.trials = planned, folder, trials
        self.progress, self.suite = progress, planned.suite
        self.done, self.counted = folder.trials(), folder.read_counting_runs()  # a damaged one ends it here
        self.run_file = self._open(argv, added)
        self._keep_threads()
        trials.run_identity, trials.order_seed = self.run_file.run_identity, self._order_seed()

    def run(self, deadline: float | None, watch: busy.Watch) -> int:
        """`deadline`: on the monotonic clock; past it no block is begun. `watch`: since the suite was checked."""
        blocks = self.blocks = self.run_file.verdict_blocks + self.added  # an earlier call may have asked for more
        number = self.run_file.invocations[-1].number
        slots = schedule.missing(self.planned.cells, blocks, self._order_seed(), self.done, number)
        counted = {(w.workload, w.method): w.digest for w in self.counted}
        counting_runs = [c for c in self.planned.counting_runs if counted.get((c.workload, c.method)) != c.digest]
        for note in self.planned.notes:
            self.progress.say(f"note: {note}")
        self._warn(watch.disturbed())
        if (seen := foresight(self.planned)) is not None:
            self.progress.say(sentence(seen))
        if self.run_file.looks:
            after = ", ".join(map(str, self.run_file.looks.at))
            self.progress.say(f"looks after {after} blocks; ends at the one that decides every comparison")
        self.progress.begin(
            self.folder.path,
            len(counting_runs) + sum(self.trials.in_turns.count(each) for each in schedule.by_workload(slots)),
            resumed=bool(self.done),
            expected=expected_time(self.planned),
        )
        try:
            for cell in counting_runs:
                self.trials.count(cell)
            if any(cell.command for cell in self.planned.cells):
                self.trials.watch(self._began_ns())
            self.trials.warm_up(slots)
            outcome, finished = self._train(slots, blocks, deadline)
            if finished:
                self._refuse_gaps()
            summary = self._report(outcome, finished)
        except KeyboardInterrupt as interrupt:
            self.folder.save(self._closed("interrupted", finished=self.run_file.finished))
            self.progress.interrupted(self.folder.path, str(interrupt) or "interrupted")
            return EXIT_INTERRUPTED
        self.progress.end(summary, self.folder.report)
        if not finished:
            self.progress.say(f"{outcome}; the same command continues")
        from energybench.verdict import requirements

        code = requirements.exit_code(summary.required, self.strict)
        return EXIT_TRIALS_FAILED if code != EXIT_REGRESSION and failed(self.folder.trials()) else code

    def _train(self, slots: list[schedule.Slot], blocks: int, deadline: float | None) -> tuple[str, bool]:
        """Block by block: how it ended, and whether that is the end of the run."""
        for block in range(blocks):
            in_block = [slot for slot in slots if slot.block == block]
            for of_workload in schedule.by_workload(in_block):
                for trial in self.trials.run(of_workload, blocks):
                    if REFUSED in trial.environment and not self.keep_going:
                        return self._stopped(trial), False
            over = deadline is not None and bool(in_block) and time.monotonic() >= deadline and block < blocks - 1
            if self._decided(block + 1, over):
                break
            if over:
                return f"time is up after {block + 1} of {blocks} blocks", False
            if in_block and block < blocks - 1:
                self.progress.block(self._so_far())
        return "finished", True

    def _refuse_gaps(self) -> None:
        """Before the run is closed as finished: every record that was there or was written is there, every cell has
        one in every block. Raises UsageError E627 otherwise; the same command runs what is missing."""
        trials, counting_runs = self.folder.trials(), self.folder.read_counting_runs()
        there = {f"{RECORDS}/{trial.trial}.json" for trial in trials} | {_counting_name(each) for each in counting_runs}
        had = [f"{RECORDS}/{t.trial}.json" for t in self.done] + [_counting_name(c) for c in self.counted]
        number, seed = self.run_file.invocations[-1].number, self._order_seed()
        blocks = self.run_file.verdict_blocks + self.added
        needed = [
            *(_counting_name(cell) for cell in self.planned.counting_runs),
            *(
                f"{RECORDS}/{slot.trial}.json"
                for slot in schedule.missing(self.planned.cells, blocks, seed, trials, number)
            ),
        ]
        gone = [name for name in dict.fromkeys([*had, *self.trials.written, *needed]) if name not in there]
        if not gone:
            return
        self.folder.save(self._closed("records are missing", finished=self.run_file.finished))
        shown = ", ".join(gone[:MOST_SHOWN]) + (f" and {len(gone) - MOST_SHOWN} more" if gone[MOST_SHOWN:] else "")
        message = f"the run is not finished: {shown} {'is' if len(gone) == 1 else 'are'} not there"
        hint = "put it back if you have it, then type the same command again: it runs what is missing"
        raise UsageError(Problem("E627", message, str(self.folder.path), hint))

    def _stopped(self, trial: Trial) -> str:
        """What is said where a command's quality or windows cannot be used, and would not be in any other trial."""
        self.progress.say("stopped there, so that no other trial runs for nothing; --keep-going goes on all the same")
        if trial.environment[REFUSED] == "quality":
            reread = typed("energybench", "reread", self.folder.path, self.suite.path.name)
            self.progress.say(f"mended in the suite alone, its quality can be read from the logs again: {reread}")
        return "stopped at a trial whose quality or windows cannot be used"

    def _began_ns(self) -> int | None:
        """When an earlier call of this run began; None where there was none."""
        earlier = self.run_file.invocations[:-1]
        return int(datetime.fromisoformat(earlier[0].started_at).timestamp() * 1e9) if earlier else None

    def _report(self, outcome: str, finished: bool) -> Summary:
        """Report, then close: a run without its report is not finished."""
        from energybench.report import pages

        closed = self._closed(outcome, finished=finished or self.run_file.finished)
        summary = self._summary(closed)
        self.folder.check()
        pages.write(summary, self.folder.trials(), self.folder.path, self.folder.held)
        if finished:
            self._refuse_gaps()  # since the pages take their time
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

    def _open(self, argv: list[str], added: int) -> RunFile:
        """run.json with this invocation added, and with the blocks that it adds to a finished run."""
        run = self.folder.run_file() or self._new_run_file()
        if run.finished:
            run = run.model_copy(update={"added": max(run.added, added)})
        number = max((i.number for i in run.invocations), default=-1) + 1
        invocation = Invocation(number=number, argv=[Path(argv[0]).name, *argv[1:]], started_at=now())
        run = run.model_copy(update={"invocations": [*run.invocations, invocation]})
        self.folder.save(run)
        return run

    def _new_run_file(self) -> RunFile:
        suite, planned = self.suite, self.planned
        data = {
            name: known.data.for_record()
            | {"parameters": known.parameters}
            | ({"weights": known.weights.model_dump(mode="json")} if known.weights else {})
            for name, known in planned.workloads.items()
        }
        return RunFile(
            suite=suite.suite,
            about=suite.about,
            run=self.folder.path.name,
            run_identity=new_identity(),
            digest=planned.digest,
            stamp=suite.stamp,
            suite_path=suite.path.name,
            suite_text=suite.text,
            resolved=suite.digest_source(),
            cells=[
                cell.model_copy(update={"stack": [_portable(each) for each in stack_of(cell.stack)]})
                for cell in planned.cells
            ],
            blocks=planned.spec.blocks,
            looks=Looks(at=list(planned.spec.looks)) if planned.spec.looks else None,
            order_seed=schedule.draw_order_seed(),
            machine=planned.machine,
            data=data,
            metrics=planned.result.metrics,
            sources={
                each.name: f"{Path(each.path).name} ({each.origin})"
                for cell in planned.cells
                for each in stack_of(cell.stack)
            }
            | planned.result.sources,
        )

    def _warn(self, disturbed: busy.Busy | None) -> None:
        """Say it now, and keep it, where others use this machine: a report's last line is too late."""
        if disturbed is None:
            return
        for told in disturbed.sentences:
            self.progress.warn(f"this machine is busy: {told}")
        self.progress.warn("only large savings will be seen; wait, or let it measure alone, to see smaller ones")
        machine = {**self.run_file.machine, "busy": disturbed.facts | {"told": list(disturbed.sentences)}}
        self.run_file = self.run_file.model_copy(update={"machine": machine})  # saved with what comes next

    def _keep_threads(self) -> None:
        """A run that is continued computes with as many threads as it began with, whatever would be chosen now."""
        began = self.run_file.machine.get("threads")
        if self.planned.threads is None or began is None or began == self.planned.threads:
            return
        self.planned.threads = began
        self.planned.notes.append(f"threads: {began}, as this run began")

    def _order_seed(self) -> int:
        drawn = self.run_file.order_seed
        return self.suite.trials.seed if drawn is None else drawn

    def _closed(self, outcome: str, finished: bool) -> RunFile:
        """run.json with this invocation ended."""
        last = self.run_file.invocations[-1].model_copy(update={"ended_at": now(), "outcome": outcome})
        invocations = [*self.run_file.invocations[:-1], last]
        return self.run_file.model_copy(update={"invocations": invocations, "finished": finished})

    def _summary(self, run: RunFile) -> Summary:
        from energybench.verdict.summary import summarise

        return summarise(run, self.folder.trials(), self.folder.read_counting_runs())

    def _so_far(self) -> Summary:
        """All blocks that are there, for a glance between looks: no verdict is drawn from it."""
        from energybench.verdict.summary import summarise

        blind = self.run_file.model_copy(
            update={"looks": None, "finished": False, "closed": None, "blocks": self.blocks}
        )
        return summarise(blind, self.folder.trials(), self.folder.read_counting_runs())


def _refuse_foreign_page(folder: Folder) -> None:
    """Before anything runs. Raises CannotWrite E632 where a page of somebody else's has the name of the report."""
    if folder.held.has(folder.report.name):
        from energybench.report import pages

        pages.refuse_foreign_pages(folder.held)


def _counting_name(cell: Cell | CountingRun) -> str:
    """Of its file, from the run's folder."""
    return f"{COUNTING_RUNS}/{cell_name(cell.workload, cell.method)}.json"


def failed(trials: list[Trial]) -> list[Trial]:
    """The trials that failed or that no comparison may use, and that no later invocation has repeated well."""
    unusable = {id(trial) for trial in trials if examine(trial).reason_unusable is not None}
    good = {
        (t.block, t.workload, t.method): t.invocation
        for t in sorted(trials, key=lambda t: t.invocation)
        if id(t) not in unusable
    }
    return [t for t in trials if id(t) in unusable and good.get((t.block, t.workload, t.method), -1) < t.invocation]


def _portable(method: MethodSpec) -> dict[str, Any]:
    """A stack's entry for the record, without the folders of this machine."""
    return method.model_copy(update={"path": Path(method.path).name}).model_dump(mode="json")


def _ask_about_another(suite: Suite, differs: Callable[[RunFile], str], progress: Progress) -> None:
    """Before a new run begins beside one that the same command would have continued, had nothing changed.

    Who sits at a terminal is asked. A job in a queue has nobody to ask: it goes on in a folder of its own, and says so.
    Raises UsageError E623 when the answer is no.
    """
    unfinished = abandoned(suite.suite, suite.stamp)
    if unfinished is None:
        return
    path, run = unfinished
    progress.say(f"note: the unfinished run in {path} stays as it is. Changed since: {differs(run)}")
    if not progress.confirm("Start a new run beside it?"):
        hint = "put back what changed and run again to continue it, or add --new"
        raise UsageError(Problem("E623", "no new run was started beside this one", str(path), hint))
