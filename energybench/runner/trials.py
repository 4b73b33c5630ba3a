"""Trials as processes, alone or in turns: what each is handed, where its record goes, what stands there without one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from energybench.common.errors import CannotWrite, UsageError
from energybench.common.safe_read import list_folder
from energybench.process import subprocess_call, supervise
from energybench.process.card_keeper import UNSET, Held
from energybench.process.forkserver import Child, ChildOutcome, Launcher
from energybench.process.prepared import PreparedInterpreter
from energybench.records.growing import GrowingRecords
from energybench.records.reader import COUNTING_RUNS, RECORDS, read
from energybench.records.record import Budget, Cell, CountingRun, Flag, ProcessUse, Status, Trial, Turns
from energybench.records.run_folder import Folder, remove_if_empty
from energybench.runner import watched_files
from energybench.runner.card_knobs import cards_set, kept
from energybench.runner.command_ranks import ranks_of
from energybench.runner.group import InTurns
from energybench.runner.placement import placement
from energybench.runner.plan_request import Planned, is_counted_on
from energybench.runner.progress import Progress
from energybench.runner.schedule import Slot
from energybench.runner.watched_files import WatchedFiles
from energybench.suite.command_tables import COPY, CommandWorkloadTable, RunTable
from energybench.suite.placeholders import Value, fill_words
from energybench.suite.suite import cell_name
from energybench.trial.command_place import place_in
from energybench.trial.command_trial import environment
from energybench.trial.spec import CommandTrialSpec, Spec, TrialHeader, TrialSpec, stack_of

TRIAL, COUNT = "energybench.trial.trial:main", "energybench.trial.counting_run:main"  # run in the child
AROUND_S = 60.0  # beyond its limit, for what happens around a command: sensors, idle windows, an end by force
COMMAND = "energybench.trial.command_trial"
COUNTED_SLOWER = 3  # a counting run may take so many times a trial's limit


class Trials:
    """Starts them, each in a process of its own, and waits: one trains at a time. In `place` lies what they are handed.

    home: of the whole run, where `folder` is a part of it
    order_seed: of the run, for the order of turns
    """

    def __init__(
        self,
        planned: Planned,
        folder: Folder,
        launcher: Launcher,
        place: Path,
        progress: Progress,
        prepared: PreparedInterpreter | None = None,
        home: Path | None = None,
    ) -> None:
        self.planned, self.folder, self.launcher, self.place = planned, folder, launcher, place
        self.progress, self.suite, self.prepared, self.home = progress, planned.suite, prepared, home
        self.run_identity: str | None = None  # as run.json says, once it is there
        self.records: GrowingRecords | None = None  # of the run, where somebody follows it
        self.watched: WatchedFiles | None = None
        self.order_seed, self.placement = 0, placement()
        self.in_turns = InTurns(self)
        self._budgets: dict[tuple[int, str, str], Budget | None] = {}  # by block, workload and method: of its control

    def run(self, slots: Sequence[Slot], blocks: int) -> Iterator[Trial]:
        """The trials of one workload in one of `blocks`: in turns where they can be, else one after the other, each
        begun when the one before it was taken.

        Whatever happens to a trial, a record is there afterwards. Raises CannotWrite E620, E612, E626 where none can be
        kept: then the trial has not failed.
        """
        if slots[0].cell.command or self.suite.trials.turns == "off":
            for slot in slots:
                if trial := self.run_alone(slot, blocks):
                    yield trial
        else:
            self.in_turns.run(slots, blocks)

    def run_alone(self, slot: Slot, blocks: int, reason: str | None = None) -> Trial | None:
        """A control whose method did not train less is no trial and has no record: None.

        reason: why it takes no turns, where the suite did not say so
        """
        cell = slot.cell
        if not self.is_due(slot):
            self.progress.expect(-is_counted_on(cell))
            return None
        self.progress.expect(not is_counted_on(cell))
        header = self._header(slot)
        self.progress.start(f"block {slot.block + 1}/{blocks}", cell.workload, cell.method)
        out = self.place / f"{slot.trial}.json"
        found: list[str] = []
        cards = UNSET
        if cell.command:
            found = self.watched.found() if self.watched else []
            outcome = self._run_command(self._command_spec(cell, header), out)
        else:
            with cards_set(self.planned, cell, self.progress) as cards:
                outcome = ChildOutcome(0.0, reason=cards.problem)
                if not cards.problem:
                    outcome = self._train(TRIAL, self.trial_spec(slot), slot.trial, out, self.suite.trials.limit)
        turns = Turns(group=slot.group, reason=reason) if reason else None
        return self.settle(out, header, outcome, turns, found, cards)

    def settle(
        self,
        out: Path,
        header: TrialHeader,
        outcome: ChildOutcome,
        shared: Turns | None,
        found: Sequence[str] = (),
        cards: Held = UNSET,
    ) -> Trial:
        """Keep the record of a trial that has ended, with what was seen of it from outside.

        found: files that others had left for it
        cards: what was set of them while it ran
        """
        if not out.exists():
            status, reason = self._failure(outcome)
            record = Trial(**header.model_dump(), status=status, reason=reason, turns=shared)
        else:
            record = read(out, Trial)
            if outcome.wall_s is not None and outcome.cpu_s is not None:  # what was seen from outside
                use = ProcessUse(wall_s=outcome.wall_s, cpu_s=outcome.cpu_s, rested_s=outcome.rested_s)
                record = record.model_copy(update={"process": use})
            record = kept(record.model_copy(update={"turns": shared}), cards)
            self._adopt()
        if found:
            flag = Flag(code="files_found", detail=watched_files.shown([*found]))
            record = record.model_copy(update={"flags": [*record.flags, flag]})
        self._keep(f"{RECORDS}/{header.trial}.json", record, out)
        self._budgets[record.block, record.workload, record.method] = record.budget if record.trained_less else None
        return record

    def _keep(self, name: str, record: Trial | CountingRun, out: Path) -> None:
        """A record into the run's folder, once it is whole."""
        if self.records is None:
            self.folder.write_record(name, record)
        else:
            self.records.write(name, record)
        out.unlink(missing_ok=True)
        self.progress.finish(record)

    def _adopt(self) -> None:
        """What a trial left beside its record: its power trace, its methods' tensors."""
        for part in ("traces", "state"):
            for file in list_folder(self.place / part):
                self.folder.held.adopt(f"{part}/{file.name}", file)

    def watch(self, since_ns: int | None) -> None:
        """From now on look between trials for files that one leaves and another finds.

        since_ns: when an earlier call of the same run began
        """
        spec = self.planned.spec
        folders = [spec.base]
        for cell in (cell for cell in self.planned.cells if cell.command and not cell.skipped):
            cwd = self._how(cell).cwd
            if cwd and cwd != COPY and os.path.isdir(spec.base / cwd):
                folders.append(spec.base / cwd)
        self.watched = WatchedFiles(folders, [self.home or self.folder.path, self.place], since_ns)
        if self.watched.too_many:
            self.progress.say(
                f"note: {spec.base} holds more than {watched_files.MOST_FILES:,} files, so files that trials leave for "
                "each other are not looked for"
            )

    def warm_up(self, slots: list[Slot]) -> None:
        """Each workload's own command once, unmetered and no longer than the suite's warm-up: what it reads is then
        in memory for the first trial as for the others."""
        trials = self.suite.trials
        names = dict.fromkeys(slot.cell.workload for slot in slots if slot.cell.command)
        for name in names if trials.warmup.unit == "s" and trials.warmup.count > 0 else ():
            cell = next(c for c in self.planned.cells if c.workload == name and c.role == "baseline")
            self.progress.start("warming up", name, cell.method)
            header = self._header(Slot(cell, 0, 0, 0)).model_copy(update={"trial": "warmup"})
            spec = self._command_spec(cell, header)
            with suppress(OSError):  # the trials tell
                place = place_in(spec, self._own("warmup"), seed=trials.seed, block=0, trial="warmup")
                supervise.run(
                    fill_words(cell.command, place.values),
                    cwd=place.folder,
                    stdin=place.stdin,
                    discard=True,
                    env={
                        **environment(trials.seed, 0, "warmup", spec.windows, trials.given_threads, place.scratch),
                        **place.env,
                    },
                    limit_s=trials.warmup.count,
                    tick=self.progress.tick,
                )
            self._leave(spec)

    def count(self, cell: Cell) -> None:
        """The counting run of a cell; whatever happens to it, a record is there afterwards."""
        name, spec = cell_name(cell.workload, cell.method), self.planned.counting_spec(cell)
        header = spec.header.model_copy(update={"run_identity": self.run_identity})
        spec = spec.model_copy(update={"header": header})
        self.progress.start("counting FLOPs", cell.workload, cell.method)
        out = self.place / f"witness-{name}.json"
        outcome = self._train(COUNT, spec, f"witness-{name}", out, COUNTED_SLOWER * self.suite.trials.limit)
        if not out.exists():
            status, reason = self._failure(outcome)
            record = CountingRun(**header.model_dump(), status=status, reason=reason)
        else:
            record = read(out, CountingRun)
        self._keep(f"{COUNTING_RUNS}/{name}.json", record, out)

    # ── what a trial is handed ────────────────────────────────────────────────────────────────────────────────

    def _header(self, slot: Slot) -> TrialHeader:
        cell, result = slot.cell, self.planned.result
        return TrialHeader(
            run_identity=self.run_identity,
            trial=slot.trial,
            workload=cell.workload,
            method=cell.method,
            role=cell.role,
            of=cell.of,
            block=slot.block,
            seed=self.suite.trials.seed + slot.block,
            invocation=slot.invocation,
            position=slot.position,
            digest=cell.digest,
            started_at=now(),
            device=result.command_device if cell.command else result.device_name,
            placement=self.placement,
            claim=cell.claim,
        )

    def is_due(self, slot: Slot) -> bool:
        """Whether there is such a trial: of a control only where its method trained less."""
        return not slot.cell.control or self._budget(slot) is not None

    def _budget(self, slot: Slot) -> Budget | None:
        """What a control trains: what the tally of its method paid for, in the same block and invocation. None for any
        other cell, and where the method did not train less."""
        cell = slot.cell
        return None if cell.of is None else self._budgets.get((slot.block, cell.workload, cell.of))

    def trial_spec(self, slot: Slot) -> TrialSpec:
        cell, header = slot.cell, self._header(slot)
        workload, known = self.planned.workload(cell.workload)
        return TrialSpec(
            header=header,
            base=self.planned.spec.base,
            workload=workload,
            data=known.data,
            stack=stack_of(cell.stack),
            seed=header.seed,
            weights=known.weights,
            budget=self._budget(slot),
            ledger=known.ledger,
            balance_flop_b=known.balance_flop_b,
            threads=self.planned.threads,
            device=self.planned.device,
            device_name=self.planned.device_name,
            world=self.suite.trials.devices,
            warmup=self.suite.trials.warmup,
            measure=self.planned.measure,
            trace=self.place / "traces" / f"{slot.trial}.csv.gz",
        )

    def _command_spec(self, cell: Cell, header: TrialHeader) -> CommandTrialSpec:
        name = header.trial
        workload = self._workload(cell)
        quality = self.suite.quality_of(workload)
        return CommandTrialSpec(
            header=header,
            base=self.planned.spec.base,
            command=tuple(cell.command),
            workload=workload,
            how=self._how(cell),
            metric=quality.metric,
            also=quality.also,
            metrics=self.planned.result.metrics.get(cell.workload, {}),
            range_declared=quality.range is not None,
            ranks=ranks_of(cell.command),
            measure=self.planned.measure_commands,
            threads=self.suite.trials.given_threads,
            device_name=self.planned.result.command_device,
            limit_s=self.suite.trials.limit,
            windows=self.place / f"{name}.windows.jsonl",
            trace=self.place / "traces" / f"{name}.csv.gz",
            log=self._log(name),
            folder=self.folder.held.identity,
            own=self._own(name),
            not_copied=(self.folder.path.absolute(),),
        )

    def _workload(self, cell: Cell) -> CommandWorkloadTable:
        return next(each for _, each in self.planned.spec.commands if each.name == cell.workload)

    def _how(self, cell: Cell) -> RunTable:
        spec = self.planned.spec
        variant = next((each for each in spec.variants if each.label == cell.method), None)
        return spec.how(self._workload(cell), variant if cell.role == "method" else None)

    def _own(self, name: str) -> Path:
        """A folder for what is this trial's alone."""
        return self.place / f"{name}.own"

    def _log(self, name: str) -> Path:
        return Path(self.folder.held.identity.path) / "logs" / f"{name}.log"

    # ── its process ───────────────────────────────────────────────────────────────────────────────────────────

    def _train(self, entry: str, spec: Spec, name: str, out: Path, limit_s: float) -> ChildOutcome:
        """A trial or counting run in our own loop."""
        in_path, log = self.place / "cell.in.json", self._log(name)
        spec.write(in_path)
        self._make_log(name)
        try:
            outcome = self.launcher.call(
                entry, in_path, out, log=log, folder=self.folder.held.identity, limit_s=limit_s, tick=self.progress.tick
            )
        finally:
            self.unless_empty(name)
        return self.ended(outcome, out)

    def start(self, spec: TrialSpec, in_path: Path) -> tuple[Child, Path]:
        """A trial that takes turns, and where it writes its record. Whoever asks sees to it that it ends."""
        name = spec.header.trial
        out = self.place / f"{name}.json"
        spec.write(in_path)
        self._make_log(name)
        identity = self.folder.held.identity
        return self.launcher.start(TRIAL, in_path, out, log=self._log(name), folder=identity, conversing=True), out

    def _make_log(self, name: str) -> None:
        """Raises CannotWrite: the child appends to it too, and what is wrong is told here."""
        self._refuse_what_cannot_be_written()
        os.close(self.folder.held.append(f"logs/{name}.log"))

    def _run_command(self, spec: CommandTrialSpec, out: Path) -> ChildOutcome:
        """A trial that is a command, in a process of its own that needs no torch."""
        in_path = self.place / "cell.in.json"
        spec.write(in_path)
        self._refuse_what_cannot_be_written()
        try:
            outcome = subprocess_call.call(
                COMMAND,
                in_path,
                out,
                tick=self.progress.tick,
                limit_s=spec.limit_s + self.suite.trials.cooldown.longest + AROUND_S,
                prepared=self.prepared,
            )
        finally:
            self.unless_empty(spec.log.stem)
            self._leave(spec)
        return self.ended(outcome, out)

    def _leave(self, spec: CommandTrialSpec) -> None:
        """Remove what was a trial's alone, and note what it has left in the suite's folder."""
        if self.watched:
            name, block = spec.header.trial, spec.header.block
            values: dict[str, Value] = {"seed": spec.header.seed, "block": block, "trial": name}
            folder, paths = spec.base / (spec.how.cwd or ""), spec.workload.quality.paths
            self.watched.after(name, allowed=[folder / path for path in fill_words(paths, values)])
        shutil.rmtree(self._own(spec.header.trial), ignore_errors=True)

    def _refuse_what_cannot_be_written(self) -> None:
        """Raises CannotWrite E626 where the folder is gone, E612 where a part of it is a link by now."""
        self.folder.check()
        self.folder.refuse_links(writing=True)

    def ended(self, outcome: ChildOutcome, out: Path) -> ChildOutcome:
        """The same. Raises CannotWrite where the process could not write its record."""
        if outcome.unwritten:
            self._refuse_what_cannot_be_written()
            raise CannotWrite.of(OSError(None, "its process found the disk full or read-only"), out)
        return outcome

    def _failure(self, outcome: ChildOutcome) -> tuple[Status, str]:
        """(status, reason) of a trial that left no record. Raises CannotWrite where that was no fault of its own."""
        if not self.place.exists():
            raise CannotWrite.of(OSError(None, "the folder for temporary files was removed"), self.place)
        reason = outcome.reason or "it ended without a record"
        if outcome.timed_out:
            return "timeout", reason
        return ("out_of_memory" if outcome.killed and "KILL" in (outcome.reason or "") else "failed"), reason

    def unless_empty(self, name: str) -> None:
        """Remove the log of a trial that said nothing."""
        with suppress(OSError, UsageError):
            remove_if_empty(self.folder.held, f"logs/{name}.log")
            self.folder.held.remove_empty_folder("logs")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
