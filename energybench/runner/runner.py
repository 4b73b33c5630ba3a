"""`energybench run`: a suite goes in, trials run one at a time in processes of their own, a report comes out.

The parent imports no torch and sleeps while a trial runs. What is on disk is always whole: the same command continues.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Set
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from energybench.common.errors import (
    EXIT_FINE,
    EXIT_INTERRUPTED,
    EXIT_REGRESSION,
    EXIT_TRIALS_FAILED,
    AtWork,
    Problem,
    UsageError,
    typed,
)
from energybench.common.hosts import host
from energybench.common.interrupts import signals_interrupt
from energybench.meter.nvml import held_open
from energybench.meter.shared_node import node_claimed
from energybench.process.forkserver import Launcher
from energybench.process.prepared import PreparedInterpreter
from energybench.records.growing import GrowingRecords
from energybench.records.reader import COUNTING_RUNS, RECORDS
from energybench.records.record import FINISHED, Cell, CountingRun, Invocation, Looks, RunFile, Trial
from energybench.records.run_folder import Folder, choose
from energybench.records.scratch_folder import scratch
from energybench.runner import busy, schedule
from energybench.runner.card_knobs import refuse_cards
from energybench.runner.expected_time import expected_time
from energybench.runner.foresight import foresight, sentence
from energybench.runner.launched import refuse_ranks
from energybench.runner.new_run import ask_about_another, new_run_file, refuse_foreign_page
from energybench.runner.placement import set_superseded_apart
from energybench.runner.plan_request import Planned, plan
from energybench.runner.progress import Progress
from energybench.runner.shard import Shard, command_of_block, refuse_sharded
from energybench.runner.trials import COMMAND, Trials, now
from energybench.runner.what_changed import changes
from energybench.stats.paired import FEWEST_BLOCKS
from energybench.suite.suite import Suite, cell_name
from energybench.trial.command_trial import REFUSED
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
    blocks: tuple[int, ...] = (),
    plan_only: bool = False,
) -> tuple[int, Path]:
    """Run what is missing of a suite and report. Returns the exit code and the run's folder.

    until_decided: up to the suite's `blocks_max`, ending at the first declared look that decides every comparison
    max_s:         ends after the block in progress; the same call continues
    add_blocks:    so many beyond a finished run's: exploratory, in no verdict
    strict:        a requirement of the suite that is left undecided is exit code 4
    keep_going:    on past a command whose quality or windows cannot be used; else the first such trial ends the call
    blocks:        from 0: these alone, in `out`, by the plan in the folder above its folder `shards`; no report
    plan_only:     the plan and the counting runs, for others to run the blocks by; nothing is trained
    """
    began = time.monotonic()
    refuse_ranks()
    if until_decided and suite.trials.blocks_max is None:
        message = "--until-decided needs the most blocks there may be, declared before the first"
        hint = "add [trials] blocks_max = 20, or --set trials.blocks_max=20"
        raise UsageError(Problem("E203", message, suite.where(("trials",)), hint))
    shard = Shard.opened(suite, blocks, out) if blocks and out is not None else None
    launcher, watch = Launcher(), busy.Watch()
    prepared = PreparedInterpreter(COMMAND)
    metered = suite.measure.energy != "off" and not plan_only
    with scratch() as place, signals_interrupt(), held_open(), closing(prepared), node_claimed(metered):
        if suite.trains:
            launcher.warm()
        progress.say(f"checking {suite.path.name}: {'methods, models, data' if suite.trains else 'commands'}")
        planned = plan(
            suite,
            launcher,
            place,
            device=device,
            until_decided=until_decided or (shard is not None and shard.until_decided),
            added=add_blocks,
            metered_elsewhere=plan_only,
        )
        if not plan_only:
            refuse_cards(planned)
        differs = partial(changes, planned=planned)
        if shard is not None:
            folder = shard.folder(planned, differs)
        else:
            folder = choose(suite.suite, planned.digest, out, fresh, add_blocks > 0, progress.say, differs, plan_only)
        if out is None and not fresh and not folder.path.exists():
            ask_about_another(suite, differs, progress)
        with folder.lock(AtWork if shard or plan_only else UsageError) as lock:
            if lock.taken_over is not None:
                progress.say(f"note: the lock of a run that has ended was taken over: {lock.taken_over.shown}")
            if shard is not None:
                shard.admit(folder, planned, differs)
            else:
                folder.admit(planned.digest, differs, finished=add_blocks > 0 or plan_only)  # nobody came between
            trials = Trials(planned, folder, launcher, place, progress, prepared, shard.home if shard else None)
            runner = _Runner(planned, folder, trials, progress, argv or sys.argv, add_blocks, strict, keep_going, shard)
            if plan_only:
                return runner.plan(), folder.path
            if shard is None:
                refuse_sharded(folder.path)
                refuse_foreign_page(folder)
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
        shard: Shard | None = None,
    ) -> None:
        self.strict, self.added, self.keep_going, self.shard = strict, added, keep_going, shard
        self.planned, self.folder, self.trials = planned, folder, trials
        self.progress, self.suite, self.argv = progress, planned.suite, argv
        self.records = trials.records = GrowingRecords(folder)  # a damaged one ends it here

    def begin(self) -> None:
        """This invocation, in run.json."""
        from energybench.verdict.glance import Glance

        self.run_file = self._open(self.argv, self.added)
        self.glance = Glance(self.run_file)
        self._keep_threads()
        self.trials.run_identity, self.trials.order_seed = self.run_file.run_identity, self._order_seed()

    def plan(self) -> int:
        """run.json and the counting runs, unless they are there."""
        run, home = self.folder.run_file(), self.folder.path
        left = self._uncounted()
        if run is None or left:
            self.begin()
            for note in self.planned.notes:
                self.progress.say(f"note: {note}")
            self.progress.begin(home, len(left), resumed=run is not None, expected=None)
            try:
                for cell in left:
                    self.trials.count(cell)
            except KeyboardInterrupt as interrupt:
                return self._interrupted(interrupt)
            run = self._closed("planned", finished=self.run_file.finished)
            self.folder.save(run)
        self.progress.planned(home, command_of_block(self.argv, home), run.blocks, self.planned.device)
        return EXIT_FINE

    def _uncounted(self) -> list[Cell]:
        counted = {(w.workload, w.method): w.digest for w in self.records.counting_runs}
        return [c for c in self.planned.counting_runs if counted.get((c.workload, c.method)) != c.digest]

    def run(self, deadline: float | None, watch: busy.Watch) -> int:
        """`deadline`: on the monotonic clock; past it no block is begun. `watch`: since the suite was checked."""
        if self.shard is not None:
            there = self.folder.run_file()
            if there is not None and self.shard.is_complete(there, self.planned, self.records.trials):
                self.progress.say(f"{self.shard.told}: complete already in {self.folder.path}; nothing is repeated")
                return EXIT_TRIALS_FAILED if failed(self.records.trials) else EXIT_FINE
        self.begin()
        if self.shard is not None:
            self.shard.take_counts(self.folder)
            self.records.read_all()
        blocks = self.blocks = self.run_file.verdict_blocks + self.added  # an earlier call may have asked for more
        number = self.run_file.invocations[-1].number
        seed = self._order_seed()
        if set_superseded_apart(self.planned, self.folder, self._mine(), seed, self.records.trials, self.progress.say):
            self.records.read_all()
        slots = schedule.missing(self.planned.cells, self._mine(), seed, self.records.trials, number)
        counting_runs = self._uncounted()
        for note in self.planned.notes:
            self.progress.say(f"note: {note}")
        self._warn(watch.disturbed())
        if (seen := foresight(self.planned)) is not None:
            self.progress.say(sentence(seen))
        if self.run_file.looks and self.shard is None:
            after = ", ".join(map(str, self.run_file.looks.at))
            self.progress.say(f"looks after {after} blocks; ends at the one that decides every comparison")
        self.progress.begin(
            self.folder.path,
            len(counting_runs) + sum(self.trials.in_turns.count(each) for each in schedule.by_workload(slots)),
            resumed=bool(self.records.trials),
            expected=expected_time(self.planned) if self.shard is None else None,
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
            if self.shard is not None:
                self.folder.save(self._closed(outcome, finished=False))  # the run is, when all shards are there
                self.progress.say(f"{self.shard.told}: {outcome}, in {self.folder.path}")
                return EXIT_TRIALS_FAILED if failed(self.records.trials) else EXIT_FINE
            summary = self._report(outcome, finished)
        except KeyboardInterrupt as interrupt:
            return self._interrupted(interrupt)
        self.progress.end(summary, self.folder.report)
        if not finished:
            self.progress.say(f"{outcome}; the same command continues")
        from energybench.verdict import requirements

        code = requirements.exit_code(summary.required, self.strict)
        return EXIT_TRIALS_FAILED if code != EXIT_REGRESSION and failed(self.records.trials) else code

    def _interrupted(self, interrupt: KeyboardInterrupt) -> int:
        self.folder.save(self._closed("interrupted", finished=self.run_file.finished))
        self.progress.interrupted(self.folder.path, str(interrupt) or "interrupted")
        return EXIT_INTERRUPTED

    def _mine(self) -> list[int]:
        """The blocks that are run in this folder, from 0."""
        return list(range(self.run_file.verdict_blocks + self.added)) if self.shard is None else [*self.shard.blocks]

    def _train(self, slots: list[schedule.Slot], blocks: int, deadline: float | None) -> tuple[str, bool]:
        """Block by block: how it ended, and whether that is the end of the run."""
        by_block: dict[int, list[schedule.Slot]] = {}
        for slot in slots:
            by_block.setdefault(slot.block, []).append(slot)
        for block in self._mine():
            in_block = by_block.get(block, [])
            for of_workload in schedule.by_workload(in_block):
                for trial in self.trials.run(of_workload, blocks):
                    if REFUSED in trial.environment and not self.keep_going:
                        return self._stopped(trial), False
            if self.shard is not None:
                continue  # only who reads all shards looks
            self.records.look_around()
            self.glance.block(block, self.records.of_block(block))
            over = deadline is not None and bool(in_block) and time.monotonic() >= deadline and block < blocks - 1
            if self._decided(block + 1, over):
                break
            if over:
                return f"time is up after {block + 1} of {blocks} blocks", False
            if in_block and block < blocks - 1:
                self.progress.block(self.glance, self.blocks)
        return FINISHED, True

    def _refuse_gaps(self) -> None:
        """Before the run is closed as finished everything is read again: every record that was there or was written is
        there, every cell has one in every block. Raises UsageError E627 otherwise; the same command runs what is
        missing."""
        had = self.records.names
        self.records.read_all()
        number, seed = self.run_file.invocations[-1].number, self._order_seed()
        missing = schedule.missing(self.planned.cells, self._mine(), seed, self.records.trials, number)
        needed = [
            *(_counting_name(cell) for cell in self.planned.counting_runs),
            *(f"{RECORDS}/{slot.trial}.json" for slot in missing),
        ]
        self._refuse_gone(had.union(needed) - self.records.names)

    def _refuse_gone(self, names: Set[str]) -> None:
        """Raises UsageError E627 where there is any, once run.json says so."""
        if not names:
            return
        gone = sorted(names)
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
        """When an earlier call of this run began; None where there was none by the clock of this host."""
        earlier = [each for each in self.run_file.invocations[:-1] if each.host in (None, host())]
        return int(datetime.fromisoformat(earlier[0].started_at).timestamp() * 1e9) if earlier else None

    def _report(self, outcome: str, finished: bool) -> Summary:
        """Report, then close: a run without its report is not finished."""
        from energybench.report import pages

        closed = self._closed(outcome, finished=finished or self.run_file.finished)
        summary = self._summary(closed)
        self.folder.check()
        pages.write(summary, self.records.trials, self.folder.path, self.folder.held)
        if finished:
            self._refuse_gone(self.records.names - self.records.listed())  # since the pages take their time
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
        run = self.folder.run_file()
        if run is None:
            run = new_run_file(self.planned, self.folder.path.name)
            run = run if self.shard is None else self.shard.run_file(run)
        if run.finished:
            run = run.model_copy(update={"added": max(run.added, added)})
        number = max((i.number for i in run.invocations), default=-1) + 1
        invocation = Invocation(number=number, argv=[Path(argv[0]).name, *argv[1:]], started_at=now(), host=host())
        run = run.model_copy(update={"invocations": [*run.invocations, invocation]})
        self.folder.save(run)
        return run

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

        return summarise(run, self.records.trials, self.records.counting_runs)


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
