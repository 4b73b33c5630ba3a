"""One trial that is a command: metered as a whole, or by its own windows. Imports no torch.

    cool down → idle → meter exactly the command → idle → read its quality, outside

Runs in a process of its own, which adopts whatever the command starts and ends it; IN.json in, OUT.json out.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TypedDict, Unpack

from pydantic import ValidationError

from energybench.common import machine
from energybench.common.errors import EXIT_CANNOT_WRITE, CannotWrite
from energybench.common.held_folder import HeldFolder
from energybench.common.interrupts import SPREAD_S, is_signal
from energybench.common.quantities import is_figure
from energybench.meter import Meter
from energybench.meter.facts import gpu_facts, keep_trace
from energybench.meter.reading import Reading
from energybench.meter.sensors import open_meters
from energybench.meter.window import Window, refuse_short
from energybench.process import supervise
from energybench.process.output_log import Lines, StreamLogs
from energybench.process.relay import SignalRelay
from energybench.records.record import Flag, Status, Trial, write_json
from energybench.suite.placeholders import fill_words
from energybench.trial.command_place import prepare_place
from energybench.trial.command_quality import NoQuality, QualityReaders
from energybench.trial.command_scale import DeclaredScale
from energybench.trial.command_windows import WindowsRefused, take_windows
from energybench.trial.phases import Phases
from energybench.trial.record_draft import TrialDraft
from energybench.trial.spec import CommandTrialSpec
from energybench.windows.file import VARIABLE, WindowLine, qualities

WHOLE = "the whole command"
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "out of memory", "Cannot allocate memory")
ENDED, REFUSED = "ended", "refused"  # of a trial's environment: the command ended well; what it said cannot be used
KILLED = 128 + signal.SIGKILL  # as a shell tells that its child was killed


def main(in_path: str, out_path: str) -> None:
    """Run the trial that IN.json describes and write its record, whatever happens to it."""
    signal.signal(signal.SIGTERM, _stop)  # whoever started us is gone or was interrupted: leave nothing running
    spec = CommandTrialSpec.read(in_path)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    record = TrialDraft(**spec.header.model_dump(exclude={"started_at"}), started_at=started_at, status="ok")
    try:
        trial(spec, record)
    except CannotWrite as error:
        _unwritten(error)
    except Unusable as unusable:
        record.status, record.reason = unusable.status, unusable.reason
    except Exception as error:
        traceback.print_exc()
        record.status, record.reason = "failed", f"{type(error).__name__}: {error}"
    try:
        write_json(Path(out_path), _storable(record))
    except CannotWrite as error:
        _unwritten(error)


def _storable(record: TrialDraft) -> Trial:
    """The record; without what the command reported of itself where that is more than a record can hold."""
    try:
        return record.finished()
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"what it told of itself cannot be kept: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        record.steps = record.samples = None
        record.flop, record.quality = {}, {}
        record.status, record.reason = "failed", reason[:500]
        return record.finished()


def _unwritten(error: CannotWrite) -> None:
    print(error, file=sys.stderr)
    raise SystemExit(EXIT_CANNOT_WRITE)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class Unusable(Exception):
    """The trial is over and cannot be used, and why."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class MeteredCommand:
    """A command that was metered: what the meters said of it, and how it ended."""

    reading: Reading
    window: Window
    ended: supervise.CommandOutcome | None = None
    reason: str | None = None  # why it could not be started
    last_error: str = ""  # the last line on its stderr
    flags: list[Flag] = field(default_factory=list)


class RunOptions(TypedDict, total=False):
    """Of `supervise.run`, what a metered command may be given."""

    cwd: Path | None
    env: Mapping[str, str] | None
    limit_s: float | None
    discard: bool
    stdout: int | None
    stdin: Path | None
    own_session: bool
    death_signal: signal.Signals
    relay: SignalRelay | None
    tick: Callable[[float], None] | None


def metered(
    argv: Sequence[str],
    meters: Sequence[Meter],
    *,
    hear: Callable[[str, str], None] | None = None,
    log: StreamLogs | None = None,
    **options: Unpack[RunOptions],
) -> MeteredCommand:
    """Run a command with the meters open around exactly it.

    Args:
        hear:    hears each line, with "stdout" or "stderr"
        log:     gets everything that it writes
        options: as `supervise.run` takes them
    """
    window = Window(meters, lambda: None)
    command = MeteredCommand(Reading(wall_s=0.0), window)
    lines = {"stdout": Lines(), "stderr": Lines()}

    def line(stream: str, text: str) -> None:
        if stream == "stderr" and text.strip():
            command.last_error = text.strip()
        if hear:
            hear(stream, text)

    def output(stream: str, chunk: bytes) -> None:
        if log:
            with contextlib.suppress(OSError):  # a full disk: the record will not be written either, and says so
                log.write(stream, chunk)
        for text in lines[stream].feed(chunk):
            line(stream, text)

    window.start()
    try:
        heard = output if hear or log else None
        command.ended = supervise.run(argv, on_end=window.stop, output=heard, **options)
    except OSError as error:
        window.stop()
        command.reason = f"it could not be started: {error.strerror}: {error.filename or argv[0]}"
    finally:
        if log:
            with contextlib.suppress(OSError):
                log.close()
    for stream, last in lines.items():
        for text in last.rest():
            line(stream, text)
    command.reading = refuse_short(window.reading())
    if command.ended and command.ended.left_behind:
        detail = f"{command.ended.left_behind} process{'es' * (command.ended.left_behind != 1)}"
        command.flags.append(Flag(code="left_behind", detail=detail))
    return command


def why_unusable(command: MeteredCommand, limit_s: float | None = None) -> tuple[Status, str] | None:
    """(status, reason) of a command that did not end well."""
    ended, last = command.ended, f": {command.last_error[:300]}" if command.last_error else ""
    if ended is None:
        return "failed", command.reason or "it could not be started"
    if ended.timed_out:
        deaf = "" if ended.obeyed_sigterm else ", and ignored SIGTERM"
        return "timeout", f"it ran past its limit of {limit_s or 0:g} s{deaf}"
    if ended.returncode in (-signal.SIGKILL, KILLED):
        return "out_of_memory", "it was killed by SIGKILL, most often for lack of memory"
    if ended.returncode < 0:
        return "failed", f"it was killed by {signal.Signals(-ended.returncode).name}{last}"
    if ended.returncode:
        lack = any(word in command.last_error for word in OUT_OF_MEMORY)
        return ("out_of_memory" if lack else "failed"), f"it ended with status {ended.returncode}{last}"
    return None


def trial(spec: CommandTrialSpec, record: TrialDraft) -> None:
    """The whole trial: cool down, idle, the command, idle, its quality. Raises Unusable."""
    measure, header = spec.measure, spec.header
    phases = Phases(record.phases, lambda: None)
    record.device = spec.device_name
    meters = open_meters(measure.selection(), spec.device_name)
    record.environment = {
        "load_average": os.getloadavg()[0],
        "gpus": gpu_facts(meters),
        "machine": machine.of_trial(),
        "metered": WHOLE,
    }
    if spec.threads:
        record.environment["threads"] = spec.threads
    if spec.ranks:
        record.environment["ranks"] = spec.ranks
    place = prepare_place(spec)
    argv, told = fill_words(spec.command, place.values), spec.how.told(place.values)
    record.settings = {"workload": spec.workload.settings(), "command": argv, "methods": [], **told}
    sources = spec.workload.quality.sources(spec.metric, spec.also)
    readers = QualityReaders.of(sources, place.folder, place.values, spec.metrics)
    record.flags = phases.cool_down(meters, measure.below_c, measure.cooldown_s)
    phases.idle("idle_before", meters, measure.tick_s)
    logs = _logs(spec)
    command = metered(
        argv,
        meters,
        hear=readers.hear,
        log=logs,
        cwd=place.folder,
        stdin=place.stdin,
        env={
            **environment(header.seed, header.block, header.trial, spec.windows, spec.threads, place.scratch),
            **place.env,
        },
        limit_s=spec.limit_s,
    )
    if command.ended and is_signal(command.ended.returncode):
        time.sleep(SPREAD_S)  # in which the same signal ends us, if it was to all: then it has not failed
    phases.readings["train"] = phases.readings["command"] = command.reading
    phases.idle("idle_after", meters, measure.tick_s)
    record.flags += command.flags
    record.trace = keep_trace(command.window, spec.trace)
    record.memory_resident_b = command.ended.memory_b if command.ended else None
    if unusable := why_unusable(command, spec.limit_s):
        raise Unusable(*unusable)
    record.environment |= {ENDED: "well"} | ({"stream": logs.only} if logs.only else {})
    try:
        windows = take_windows(spec.windows, command.window, phases, record)
    except WindowsRefused as refused:
        record.environment[REFUSED] = "windows"
        raise Unusable("failed", str(refused)) from None
    judge(readers, windows, record, DeclaredScale(spec.metrics.get(spec.metric), spec.range_declared))
    if lost := next((e for e in phases.readings["train"].energy if e.lost), None):
        raise Unusable("invalid", f"sensor lost: {lost.source} {lost.device}: {lost.reason}")


def _logs(spec: CommandTrialSpec) -> StreamLogs:
    """Of what the command prints. Raises CannotWrite."""
    try:
        return StreamLogs(spec.log, None if spec.folder is None else HeldFolder.reopen(spec.folder))
    except OSError as error:
        raise CannotWrite.of(error, spec.log) from None


def environment(
    seed: int, block: int, trial: str, windows: Path, threads: int | None, scratch: Path | None = None
) -> dict[str, str]:
    """What a command is told: ours, and the identity of its trial.

    windows: the file that its windows go into; scratch: a folder that is this trial's alone
    """
    identity = {
        "ENERGYBENCH_SEED": str(seed),
        "ENERGYBENCH_TRIAL": trial,
        "ENERGYBENCH_BLOCK": str(block),
        VARIABLE: str(windows),
    }
    if scratch:
        identity["ENERGYBENCH_SCRATCH"] = str(scratch)
    if threads:
        identity["OMP_NUM_THREADS"] = str(threads)
    return {**os.environ, **identity}


def judge(readers: QualityReaders, windows: list[WindowLine], record: TrialDraft, scale: DeclaredScale) -> None:
    """The command's quality into the record. Raises Unusable where there is none, none that is a figure, or one that
    cannot be in the scale that was declared."""
    try:
        quality = readers.result(windows)
    except NoQuality as missing:
        record.environment[REFUSED] = "quality"
        raise Unusable("failed", str(missing)) from None
    if readers.missing:
        record.environment["no_quality"] = dict(readers.missing)
    deciding = readers.deciding.metric
    for name, value in list(quality.items()):
        if is_figure(value, name):
            continue
        if name == deciding:
            raise Unusable("diverged", f"its {name} is {value}")
        record.environment["no_quality"] = {**record.environment.get("no_quality", {}), name: f"its {name} is {value}"}
        del quality[name]
    if deciding in quality and (doubt := scale.doubt(deciding, quality[deciding], readers.deciding.percent)):
        record.environment[REFUSED] = "quality"
        raise Unusable("failed", doubt)
    told = {k: v for k, v in qualities(windows).items() if v is not None and is_figure(v, k)}
    record.quality = {**quality, **{k: v for k, v in told.items() if k not in quality}}


if __name__ == "__main__":
    main(*sys.argv[1:3])
