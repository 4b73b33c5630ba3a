"""`energybench run`: a suite goes in, trials run one at a time in processes of their own, a report comes out.

The parent imports no torch and sleeps while a trial runs. What is on disk is always whole: the same command continues.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from energybench import schedule
from energybench.errors import (
    EXIT_FINE,
    EXIT_INTERRUPTED,
    EXIT_TRIALS_FAILED,
)
from energybench.folder import Folder, choose, scratch
from energybench.launch import Launcher, Outcome
from energybench.meter.nvml import held_open
from energybench.planned import Planned, plan
from energybench.progress import Progress
from energybench.record import Cell, Invocation, RunFile, Trial, Witness, read, write_json, write_text
from energybench.suite import Suite, slug


def run(suite: Suite, *, out: Path | None = None, fresh: bool = False, device: str | None = None,
        argv: list[str] | None = None, progress: Progress) -> tuple[int, Path]:  # fmt: skip
    """Run what is missing of a suite and report. Returns the exit code and the run's folder."""
    launcher = Launcher()
    launcher.warm()
    with scratch() as place, _terminate_as_interrupt(), held_open():
        progress.say(f"checking {suite.path.name}: methods, models, data")
        planned = plan(suite, launcher, place, device=device)
        folder = choose(suite.suite, planned.digest, out, fresh)
        with folder.lock():
            code = _Runner(planned, folder, launcher, place, progress, argv or sys.argv).run()
            return code, folder.path


class _Runner:
    def __init__(self, planned: Planned, folder: Folder, launcher: Launcher, place: Path, progress: Progress,
                 argv: list[str]) -> None:  # fmt: skip
        self.planned, self.folder, self.launcher, self.place = planned, folder, launcher, place
        self.progress, self.suite = progress, planned.suite
        self.run_file = self._open(argv)

    def run(self) -> int:
        blocks = self.suite.trials.blocks
        number = self.run_file.invocations[-1].number
        done = self.folder.trials()
        slots = schedule.missing(self.planned.cells, blocks, self.suite.trials.seed, done, number)
        witnessed = {(w.workload, w.method): w.digest for w in self.folder.witnessed()}
        witnesses = [c for c in self.planned.witnesses if witnessed.get((c.workload, c.method)) != c.digest]
        for note in self.planned.notes:
            self.progress.say(f"note: {note}")
        self.progress.begin(self.folder.path, len(witnesses) + len(slots), resumed=bool(done),
                            expected_s=self.planned.expected_s())  # fmt: skip
        try:
            for cell in witnesses:
                self._witness(cell)
            for block in range(blocks):
                here = [slot for slot in slots if slot.block == block]
                for slot in here:
                    self._trial(slot)
                if here and block < blocks - 1:
                    self.progress.block(self._summary())
        except KeyboardInterrupt:
            self.folder.save(self._closed("interrupted", finished=False))
            self.progress.interrupted(self.folder.path)
            return EXIT_INTERRUPTED
        from energybench.report.markdown import markdown

        self.run_file = self._closed("finished", finished=True)
        summary = self._summary()
        write_text(self.folder.report, markdown(summary))
        self.folder.save(self.run_file)  # last: a run without its report is not finished
        self.progress.end(summary, self.folder.report)
        return EXIT_TRIALS_FAILED if _failed(self.folder.trials()) else EXIT_FINE

    def _trial(self, slot: schedule.Slot) -> None:
        cell = slot.cell
        epochs = cell.epochs[slot.block] if cell.epochs else None
        header = {
            "trial": slot.trial, "workload": cell.workload, "method": cell.method, "role": cell.role, "of": cell.of,
            "block": slot.block, "seed": self.suite.trials.seed + slot.block, "invocation": slot.invocation,
            "position": slot.position, "digest": cell.digest, "started_at": _now(),
            "claim": cell.claim.model_dump() if cell.claim else None,
        }  # fmt: skip
        self.progress.start(f"block {slot.block + 1}/{self.suite.trials.blocks}", cell.workload, cell.method)
        out = self.folder.records / f"{slot.trial}.json"
        outcome = self._call(cell, "trial", header, epochs, slot.trial, out, self.suite.trials.limit)
        if not out.exists():
            write_json(out, Trial.model_validate({**header, **_failure(outcome)}))
        self.progress.finish(read(out, Trial))

    def _witness(self, cell: Cell) -> None:
        name = f"{slug(cell.workload)}.{slug(cell.method)}"
        header = {"workload": cell.workload, "method": cell.method, "role": cell.role, "digest": cell.digest,
                  "seed": self.suite.trials.seed}  # fmt: skip
        self.progress.start("counting FLOPs", cell.workload, cell.method)
        out = self.folder.witnesses / f"{name}.json"
        outcome = self._call(
            cell, "witness", header, None, f"witness-{name}", out, 3 * self.suite.trials.limit
        )
        if not out.exists():
            write_json(out, Witness.model_validate({**header, **_failure(outcome)}))
        self.progress.finish(read(out, Witness))

    def _call(self, cell: Cell, mode: str, header: dict[str, Any], epochs: int | None, name: str, out: Path,
              limit_s: float) -> Outcome:  # fmt: skip
        spec = self.planned.spec
        workload = next(w for w in spec["workloads"] if w["name"] == cell.workload)
        known = self.planned.workloads[cell.workload]
        in_path = self.place / "cell.in.json"
        in_path.write_text(json.dumps({
            "mode": mode, "header": header, "base": spec["base"], "epochs": epochs, "stack": cell.stack,
            "workload": {key: value for key, value in workload.items() if key != "where"},
            "data": known["data"], "ledger": known["ledger"], "warmup": spec["warmup"],
            "measure": self.planned.measure, "threads": spec["threads"], "device": self.planned.device,
            "device_name": self.planned.device_name, "trace": str(self.folder.traces / f"{name}.csv.gz"),
        }), encoding="utf-8")  # fmt: skip
        log = self.folder.path / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        out.unlink(missing_ok=True)  # a witness of other settings
        try:
            return self.launcher.call("energybench.cell:main", in_path, out, log=log, limit_s=limit_s,
                                      tick=self.progress.tick)  # fmt: skip
        finally:
            with suppress(OSError):
                if not log.stat().st_size:
                    log.unlink()
                log.parent.rmdir()

    def _open(self, argv: list[str]) -> RunFile:
        """run.json with this invocation added."""
        run = self.folder.run_file() or self._new_run_file()
        number = max((i.number for i in run.invocations), default=-1) + 1
        invocation = Invocation(number=number, argv=[Path(argv[0]).name, *argv[1:]], started_at=_now())
        run = run.model_copy(update={"invocations": [*run.invocations, invocation]})
        self.folder.save(run)
        return run

    def _new_run_file(self) -> RunFile:
        suite, planned = self.suite, self.planned
        data = {name: {key: value for key, value in found["data"].items() if key != "file"}
                | {"parameters": found["parameters"]} for name, found in planned.workloads.items()}  # fmt: skip
        return RunFile(
            suite=suite.suite, about=suite.about, run=self.folder.path.name, digest=planned.digest, stamp=suite.stamp,
            suite_path=suite.path.name, suite_text=suite.text, resolved=suite.digest_source(),
            cells=[cell.model_copy(update={"stack": [_portable(s) for s in cell.stack]}) for cell in planned.cells],
            blocks=suite.trials.blocks, machine=planned.machine, data=data,
            sources={s["name"]: f"{Path(s['path']).name} ({s['origin']})" for c in planned.cells for s in c.stack},
        )  # fmt: skip

    def _closed(self, outcome: str, finished: bool) -> RunFile:
        """run.json with this invocation ended."""
        last = self.run_file.invocations[-1].model_copy(update={"ended_at": _now(), "outcome": outcome})
        invocations = [*self.run_file.invocations[:-1], last]
        return self.run_file.model_copy(update={"invocations": invocations, "finished": finished})

    def _summary(self) -> Any:
        from energybench.report.summary import summarise

        return summarise(self.run_file, self.folder.trials(), self.folder.witnessed())


def _failed(trials: list[Trial]) -> list[Trial]:
    """The trials that failed, whenever, and that no later invocation has repeated well."""
    good = {(t.block, t.workload, t.method): t.invocation for t in sorted(trials, key=lambda t: t.invocation)
            if t.status == "ok"}  # fmt: skip
    return [t for t in trials
            if t.status != "ok" and good.get((t.block, t.workload, t.method), -1) < t.invocation]  # fmt: skip


def _failure(outcome: Outcome) -> dict[str, Any]:
    status = (
        "timeout"
        if outcome.timed_out
        else "out_of_memory"
        if outcome.killed and "KILL" in (outcome.reason or "")
        else "failed"
    )
    return {"status": status, "reason": outcome.reason or "it ended without a record"}


def _portable(method: dict[str, Any]) -> dict[str, Any]:
    """A stack's entry without the folders of this machine."""
    return method | {"path": Path(method["path"]).name}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM ends a run as Ctrl-C does: whole files, exit 130."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
