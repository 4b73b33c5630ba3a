"""One trial that is a command: metered as a whole, or by its own windows. Imports no torch.

    cool down → idle → meter exactly the command → idle → read its quality, outside

Runs in a process of its own, which adopts whatever the command starts and ends it; IN.json in, OUT.json out.
"""

from __future__ import annotations

import contextlib
import math
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

from energybench.common.errors import EXIT_CANNOT_WRITE, CannotWrite, EnergybenchError
from energybench.common.held_folder import HeldFolder
from energybench.common.interrupts import SPREAD_S, is_signal
from energybench.common.quantities import is_figure
from energybench.meter import Meter
from energybench.meter.facts import gpu_facts, keep_trace
from energybench.meter.reading import Reading
from energybench.meter.sensors import open_meters
from energybench.meter.window import Window, refuse_short
from energybench.process import supervise
from energybench.process.output_log import Lines, Log
from energybench.process.relay import SignalRelay
from energybench.records.record import Flag, Status, Trial, write_json
from energybench.suite.command_tables import Value, fill_words
from energybench.trial.command_quality import NoQuality, QualityReader, further
from energybench.trial.phases import Phases
from energybench.trial.record_draft import TrialDraft
from energybench.trial.spec import CommandTrialSpec
from energybench.windows.file import VARIABLE, WindowLine, of_training, qualities, read_windows, summed, training

WHOLE = "the whole command"
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "out of memory", "Cannot allocate memory")
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
    own_session: bool
    death_signal: signal.Signals
    relay: SignalRelay | None
    tick: Callable[[float], None] | None


def metered(
    argv: Sequence[str],
    meters: Sequence[Meter],
    *,
    hear: Callable[[str, str], None] | None = None,
    log: Log | None = None,
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
                log.write(chunk)
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
    record.environment = {"load_average": os.getloadavg()[0], "gpus": gpu_facts(meters), "metered": WHOLE}
    if spec.threads:
        record.environment["threads"] = spec.threads
    values: dict[str, Value] = {"seed": header.seed, "block": header.block, "trial": header.trial}
    argv = fill_words(spec.command, values)
    record.settings = {"workload": spec.workload.settings(), "command": argv, "methods": []}
    reader = QualityReader(spec.workload.quality, spec.metric, spec.base, values)
    others = [QualityReader(further(spec.workload.quality), name, spec.base, values) for name in spec.also]

    def hear(stream: str, line: str) -> None:
        for each in (reader, *others):
            each.hear(stream, line)

    record.flags = phases.cool_down(meters, measure.below_c, measure.cooldown_s)
    phases.idle("idle_before", meters, measure.tick_s)
    command = metered(
        argv,
        meters,
        hear=hear,
        log=_log(spec),
        cwd=spec.base,
        env=environment(header.seed, header.block, header.trial, spec.windows, spec.threads),
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
    windows = _windows(spec.windows, phases, record)
    _judge(reader, others, windows, record)
    if lost := next((e for e in phases.readings["train"].energy if e.lost), None):
        raise Unusable("invalid", f"sensor lost: {lost.source} {lost.device}: {lost.reason}")


def _log(spec: CommandTrialSpec) -> Log:
    """Of what the command prints. Raises CannotWrite."""
    try:
        if spec.folder is None:
            return Log(spec.log)
        with HeldFolder.reopen(spec.folder) as folder:
            return Log(spec.log, folder)
    except OSError as error:
        raise CannotWrite.of(error, spec.log) from None


def environment(seed: int, block: int, trial: str, windows: Path, threads: int | None) -> dict[str, str]:
    """What a command is told: ours, and the identity of its trial. windows: the file that its windows go into."""
    identity = {
        "ENERGYBENCH_SEED": str(seed),
        "ENERGYBENCH_TRIAL": trial,
        "ENERGYBENCH_BLOCK": str(block),
        VARIABLE: str(windows),
    }
    if threads:
        identity["OMP_NUM_THREADS"] = str(threads)
    return {**os.environ, **identity}


def _windows(path: Path, phases: Phases, record: TrialDraft) -> list[WindowLine]:
    """What the script measured itself, into the record: its training takes the whole command's place.

    Raises Unusable for a window that an error ended, and for a file that holds something else.
    """
    try:
        lines = read_windows(path)
    except EnergybenchError as error:
        raise Unusable("failed", f"its windows cannot be read: {error.problems[0].message}") from None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    inside = of_training(lines)
    if wrong := next((window for window in inside if window.error), None):
        raise Unusable("failed", f"its window '{wrong.name}' ended with an error: {wrong.error}")
    if reading := training(lines):
        phases.readings["train"] = refuse_short(reading)
        record.environment["metered"] = f"the script's own window '{inside[0].name}'"
    others = [window for window in lines if window.parent is None and window not in inside]
    for name in dict.fromkeys(window.name for window in others if window.name not in phases.readings):
        if reading := summed([window for window in others if window.name == name]):
            phases.readings[name] = reading
    # Ranks take each step together; what they do and see in it is each one's own.
    lowest = min((window.rank or 0 for window in inside), default=0)
    record.steps = _sum([window.steps for window in inside if (window.rank or 0) == lowest])
    record.samples = _sum([window.samples for window in inside])
    record.flop = _flop(inside)
    return lines


def _sum(counts: list[int | None]) -> int | None:
    """None where a window does not say."""
    return sum(count for count in counts if count) if counts and None not in counts else None


def _flop(windows: list[WindowLine]) -> dict[str, float]:
    """By the command's own word: estimated, counted; without what a window does not say."""
    reported = {
        "estimated": [window.flop.estimated if window.flop else None for window in windows],
        "counted": [window.flop.counted if window.flop else None for window in windows],
    }
    sums = {kind: [flop for flop in flops if flop is not None] for kind, flops in reported.items()}
    return {kind: math.fsum(known) for kind, known in sums.items() if known and len(known) == len(windows)}


def _judge(
    reader: QualityReader, others: Sequence[QualityReader], windows: list[WindowLine], record: TrialDraft
) -> None:
    """The command's quality into the record. Raises Unusable where there is none, or none that is a figure.

    others: of metrics that decide nothing; what they do not find is left out
    """
    try:
        quality = reader.result(windows)
    except NoQuality as missing:
        raise Unusable("failed", str(missing)) from None
    for name, value in quality.items():
        if not is_figure(value, name):
            raise Unusable("diverged", f"its {name} is {value}")
    for other in others:
        with contextlib.suppress(NoQuality):
            quality |= {k: v for k, v in other.result(windows).items() if is_figure(v, k)}
    record.quality = {**{k: v for k, v in qualities(windows).items() if is_figure(v, k)}, **quality}


if __name__ == "__main__":
    main(*sys.argv[1:3])
