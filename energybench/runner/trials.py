"""Trials as processes: what each is handed, where its record goes, and what stands there when it left none."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from energybench.common.errors import CannotWrite
from energybench.common.sealed_files import write_text
from energybench.process import subprocess_call, supervise
from energybench.process.forkserver import ChildOutcome, Launcher
from energybench.records.reader import read
from energybench.records.record import Cell, CountingRun, Trial, write_json
from energybench.records.run_folder import Folder
from energybench.runner.plan_request import Planned
from energybench.runner.progress import Progress
from energybench.runner.schedule import Slot
from energybench.suite.command_tables import fill_words
from energybench.suite.suite import cell_name
from energybench.trial.command_trial import environment

AROUND_S = 60.0  # beyond its limit, for what happens around a command: sensors, idle windows, an end by force


class Trials:
    """Starts them one at a time, each in a process of its own, and waits; in `place` lies what they are handed."""

    def __init__(self, planned: Planned, folder: Folder, launcher: Launcher, place: Path, progress: Progress) -> None:
        self.planned, self.folder, self.launcher, self.place = planned, folder, launcher, place
        self.progress, self.suite = progress, planned.suite

    def run(self, slot: Slot, blocks: int) -> None:
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
            "started_at": now(),
            "device": self.planned.command_device if cell.command else self.planned.device_name,
            "claim": cell.claim.model_dump() if cell.claim else None,
        }
        self.progress.start(f"block {slot.block + 1}/{blocks}", cell.workload, cell.method)
        out = self.folder.records / f"{slot.trial}.json"
        run = self._command if cell.command else self._call
        outcome = run(cell, "trial", header, epochs, slot.trial, out, self.suite.trials.limit)
        if not out.exists():
            write_json(out, Trial.model_validate({**header, **_failure(outcome)}))
        self.progress.finish(read(out, Trial))

    def warm_up(self, slots: list[Slot]) -> None:
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

    def count(self, cell: Cell) -> None:
        name = cell_name(cell.workload, cell.method)
        header = {
            "workload": cell.workload,
            "method": cell.method,
            "role": cell.role,
            "digest": cell.digest,
            "seed": self.suite.trials.seed,
        }
        self.progress.start("counting FLOPs", cell.workload, cell.method)
        out = self.folder.counting_runs / f"{name}.json"
        outcome = self._call(cell, "witness", header, None, f"witness-{name}", out, 3 * self.suite.trials.limit)
        if not out.exists():
            write_json(out, CountingRun.model_validate({**header, **_failure(outcome)}))
        self.progress.finish(read(out, CountingRun))

    def _call(
        self, cell: Cell, mode: str, header: dict[str, Any], epochs: int | None, name: str, out: Path, limit_s: float
    ) -> ChildOutcome:
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
    ) -> ChildOutcome:
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
    def _written(outcome: ChildOutcome, out: Path) -> ChildOutcome:
        if outcome.unwritten:
            raise CannotWrite.of(OSError(None, "its process found the disk full or read-only"), out)
        return outcome


def _failure(outcome: ChildOutcome) -> dict[str, Any]:
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


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
