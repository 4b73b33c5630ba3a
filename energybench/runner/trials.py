"""Trials as processes, alone or in turns: what each is handed, where its record goes, what stands there without one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from energybench.common.errors import CannotWrite
from energybench.process import subprocess_call, supervise
from energybench.process.forkserver import ChildOutcome, Launcher
from energybench.records.reader import read
from energybench.records.record import Budget, Cell, CountingRun, ProcessUse, Status, Trial, Turns, write_json
from energybench.records.run_folder import Folder
from energybench.runner.group import InTurns
from energybench.runner.plan_request import Planned, is_counted_on
from energybench.runner.progress import Progress
from energybench.runner.schedule import Slot
from energybench.suite.command_tables import Value, fill_words
from energybench.suite.suite import cell_name
from energybench.trial.command_trial import environment
from energybench.trial.spec import CommandTrialSpec, Spec, TrialHeader, TrialSpec, stack_of

TRIAL, COUNT = "energybench.trial.trial:main", "energybench.trial.counting_run:main"  # run in the child
AROUND_S = 60.0  # beyond its limit, for what happens around a command: sensors, idle windows, an end by force
COUNTED_SLOWER = 3  # a counting run may take so many times a trial's limit


class Trials:
    """Starts them, each in a process of its own, and waits: one trains at a time. In `place` lies what they are handed.

    Args:
        order_seed: of the run, for the order of turns
    """

    def __init__(
        self, planned: Planned, folder: Folder, launcher: Launcher, place: Path, progress: Progress, order_seed: int = 0
    ) -> None:
        self.planned, self.folder, self.launcher, self.place = planned, folder, launcher, place
        self.progress, self.suite = progress, planned.suite
        self.in_turns = InTurns(self, order_seed)
        self._budgets: dict[tuple[int, str, str], Budget | None] = {}  # by block, workload and method: of its control

    def run(self, slots: Sequence[Slot], blocks: int) -> None:
        """The trials of one workload in one of `blocks`: in turns where they can be, else one after the other.

        Whatever happens to a trial, a record is there afterwards.
        """
        if slots[0].cell.command or self.suite.trials.turns == "off":
            for slot in slots:
                self.run_alone(slot, blocks)
        else:
            self.in_turns.run(list(slots), blocks)

    def run_alone(self, slot: Slot, blocks: int, reason: str | None = None) -> None:
        """A control whose method did not train less is no trial and has no record.

        reason: why it takes no turns, where the suite did not say so
        """
        cell = slot.cell
        if not self.is_due(slot):
            self.progress.expect(-is_counted_on(cell))
            return
        self.progress.expect(not is_counted_on(cell))
        header = self._header(slot)
        self.progress.start(f"block {slot.block + 1}/{blocks}", cell.workload, cell.method)
        out = self.folder.records / f"{slot.trial}.json"
        if cell.command:
            outcome = self._run_command(self._command_spec(cell, header), out)
        else:
            outcome = self._train(TRIAL, self.trial_spec(slot), slot.trial, out, self.suite.trials.limit)
        self.settle(out, header, outcome, Turns(group=slot.group, reason=reason) if reason else None)

    def settle(self, out: Path, header: TrialHeader, outcome: ChildOutcome, shared: Turns | None) -> None:
        """The record of a trial that has ended, with what was seen of it from outside."""
        if not out.exists():
            status, reason = _failure(outcome)
            write_json(out, Trial(**header.model_dump(), status=status, reason=reason, turns=shared))
        else:
            seen: dict[str, object] = {"turns": shared} if shared else {}
            if outcome.wall_s is not None and outcome.cpu_s is not None:
                use = ProcessUse(wall_s=outcome.wall_s, cpu_s=outcome.cpu_s, rested_s=outcome.rested_s)
                seen["process"] = use
            if seen:
                write_json(out, read(out, Trial).model_copy(update=seen))
        trial = read(out, Trial)
        self._budgets[trial.block, trial.workload, trial.method] = trial.budget if trial.trained_less else None
        self.progress.finish(trial)

    def warm_up(self, slots: list[Slot]) -> None:
        """Each workload's own command once, unmetered and no longer than the suite's warm-up: what it reads is then
        in memory for the first trial as for the others."""
        trials = self.suite.trials
        names = dict.fromkeys(slot.cell.workload for slot in slots if slot.cell.command)
        for name in names if trials.warmup.unit == "s" and trials.warmup.count > 0 else ():
            cell = next(c for c in self.planned.cells if c.workload == name and c.role == "baseline")
            values: dict[str, Value] = {"seed": trials.seed, "block": 0, "trial": "warmup"}
            self.progress.start("warming up", name, cell.method)
            with suppress(OSError):  # the trials tell
                supervise.run(
                    fill_words(cell.command, values),
                    cwd=self.planned.spec.base,
                    discard=True,
                    env=environment(trials.seed, 0, "warmup", self.place / "warmup.jsonl", trials.given_threads),
                    limit_s=trials.warmup.count,
                    tick=self.progress.tick,
                )

    def count(self, cell: Cell) -> None:
        """The counting run of a cell; whatever happens to it, a record is there afterwards."""
        name, spec = cell_name(cell.workload, cell.method), self.planned.counting_spec(cell)
        self.progress.start("counting FLOPs", cell.workload, cell.method)
        out = self.folder.counting_runs / f"{name}.json"
        outcome = self._train(COUNT, spec, f"witness-{name}", out, COUNTED_SLOWER * self.suite.trials.limit)
        if not out.exists():
            status, reason = _failure(outcome)
            write_json(out, CountingRun(**spec.header.model_dump(), status=status, reason=reason))
        self.progress.finish(read(out, CountingRun))

    # ── what a trial is handed ────────────────────────────────────────────────────────────────────────────────

    def _header(self, slot: Slot) -> TrialHeader:
        cell, result = slot.cell, self.planned.result
        return TrialHeader(
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
            claim=cell.claim,
        )

    def is_due(self, slot: Slot) -> bool:
        """Whether there is such a trial: of a control only where its method trained less."""
        return not slot.cell.control or self._budget(slot) is not None

    def _budget(self, slot: Slot) -> Budget | None:
        """What a control trains: what the tally of its method paid for, in the same block and invocation. None for any
        other cell, and where the method did not train less."""
        cell = slot.cell
        return None if cell.of is None else self._budgets[slot.block, cell.workload, cell.of]

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
            budget=self._budget(slot),
            ledger=known.ledger,
            balance_flop_b=known.balance_flop_b,
            threads=self.planned.threads,
            device=self.planned.device,
            device_name=self.planned.device_name,
            warmup=self.suite.trials.warmup,
            measure=self.planned.measure,
            trace=self.folder.traces / f"{slot.trial}.csv.gz",
        )

    def _command_spec(self, cell: Cell, header: TrialHeader) -> CommandTrialSpec:
        name = header.trial
        return CommandTrialSpec(
            header=header,
            base=self.planned.spec.base,
            command=tuple(cell.command),
            workload=next(each for _, each in self.planned.spec.commands if each.name == cell.workload),
            metric=self.suite.accept.quality.metric,
            measure=self.planned.measure_commands,
            threads=self.suite.trials.given_threads,
            device_name=self.planned.result.command_device,
            limit_s=self.suite.trials.limit,
            windows=self.place / f"{name}.windows.jsonl",
            trace=self.folder.traces / f"{name}.csv.gz",
            log=self._log(name),
        )

    def _log(self, name: str) -> Path:
        return self.folder.path / "logs" / f"{name}.log"

    # ── its process ───────────────────────────────────────────────────────────────────────────────────────────

    def _train(self, entry: str, spec: Spec, name: str, out: Path, limit_s: float) -> ChildOutcome:
        """A trial or counting run in our own loop."""
        in_path, log = self.place / "cell.in.json", self._log(name)
        spec.write(in_path)
        self._make_places(out, log)
        try:
            outcome = self.launcher.call(entry, in_path, out, log=log, limit_s=limit_s, tick=self.progress.tick)
        finally:
            unless_empty(log)
        return self.written(outcome, out)

    def places(self, trial: str) -> tuple[Path, Path]:
        """Where its record and its log go."""
        out, log = self.folder.records / f"{trial}.json", self._log(trial)
        self._make_places(out, log)
        return out, log

    @staticmethod
    def _make_places(out: Path, log: Path) -> None:
        try:
            log.parent.mkdir(exist_ok=True)
            out.unlink(missing_ok=True)  # a counting run of other settings
        except OSError as error:
            raise CannotWrite.of(error, log) from None

    def _run_command(self, spec: CommandTrialSpec, out: Path) -> ChildOutcome:
        """A trial that is a command, in a process of its own that needs no torch."""
        in_path = self.place / "cell.in.json"
        spec.write(in_path)
        try:
            outcome = subprocess_call.call(
                "energybench.trial.command_trial",
                in_path,
                out,
                tick=self.progress.tick,
                limit_s=spec.limit_s + self.suite.trials.cooldown.longest + AROUND_S,
            )
        finally:
            unless_empty(spec.log)
        return self.written(outcome, out)

    @staticmethod
    def written(outcome: ChildOutcome, out: Path) -> ChildOutcome:
        if outcome.unwritten:
            raise CannotWrite.of(OSError(None, "its process found the disk full or read-only"), out)
        return outcome


def _failure(outcome: ChildOutcome) -> tuple[Status, str]:
    """(status, reason) of a trial that left no record."""
    reason = outcome.reason or "it ended without a record"
    if outcome.timed_out:
        return "timeout", reason
    return ("out_of_memory" if outcome.killed and "KILL" in (outcome.reason or "") else "failed"), reason


def unless_empty(log: Path) -> None:
    with suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
        log.parent.rmdir()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
