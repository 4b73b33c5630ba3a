"""One trial that is a command: metered as a whole, or by its own windows. Imports no torch.

    cool down → idle → meter exactly the command → idle → read its quality, outside

Runs in a process of its own, which adopts whatever the command starts and ends it; IN.json in, OUT.json out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from energybench.common.errors import EXIT_CANNOT_WRITE, CannotWrite, EnergybenchError
from energybench.common.quantities import is_figure
from energybench.meter import Meter
from energybench.meter.facts import gpu_facts, keep_trace
from energybench.meter.nvml import open_gpus
from energybench.meter.reading import Reading
from energybench.meter.sensors import open_meters
from energybench.meter.visible import visible
from energybench.meter.window import Window, refuse_short
from energybench.process import supervise
from energybench.process.output_log import Lines, Log
from energybench.records.record import Flag, Trial, write_json
from energybench.suite.command_tables import fill_words
from energybench.trial.command_quality import NoQuality, QualityReader
from energybench.trial.phases import Phases
from energybench.windows.file import VARIABLE, WindowLine, of_training, qualities, read_windows, summed, training

WHOLE = "the whole command"
TOLD = ("steps", "samples", "flop", "quality")  # by the command's own windows and output
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "out of memory", "Cannot allocate memory")
KILLED = 128 + signal.SIGKILL  # as a shell tells that its child was killed


def cards(wanted: Any = "used") -> list[str]:
    """UUIDs of the cards that are metered while a command runs, whose own use of them cannot be seen from here.

    wanted: "used": those that CUDA shows to a program with our environment; "all"; or UUIDs
    Raises Unavailable where there is none, or where it cannot be told.
    """
    found = open_gpus(None if isinstance(wanted, str) else wanted)
    if wanted != "used":
        return [card.uuid for card in found]
    return visible([(card.uuid, card.name) for card in found], os.environ)


def main(in_path: str, out_path: str) -> None:
    """Run the trial that IN.json describes and write its record, whatever happens to it."""
    signal.signal(signal.SIGTERM, _stop)  # whoever started us is gone or was interrupted: leave nothing running
    spec = json.loads(Path(in_path).read_text(encoding="utf-8"))
    record: dict[str, Any] = dict(spec["header"])
    record["started_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        trial(spec, record)
        record.setdefault("status", "ok")
    except CannotWrite as error:
        _unwritten(error)
    except Unusable as why:
        record["status"], record["reason"] = why.status, why.reason
    except Exception as error:
        traceback.print_exc()
        record["status"], record["reason"] = "failed", f"{type(error).__name__}: {error}"
    try:
        write_json(Path(out_path), _kept(record))
    except CannotWrite as error:
        _unwritten(error)


def _kept(record: dict[str, Any]) -> Trial:
    """The record; without what the command told of itself where that is more than a record can hold."""
    try:
        return Trial.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"what it told of itself cannot be kept: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        kept = {key: value for key, value in record.items() if key not in TOLD}
        return Trial.model_validate({**kept, "status": "failed", "reason": reason[:500]})


def _unwritten(error: CannotWrite) -> None:
    print(error, file=sys.stderr)
    raise SystemExit(EXIT_CANNOT_WRITE)


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


class Unusable(Exception):
    """The trial is over and cannot be used, and why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class Metered:
    """A command that was metered: what the meters said of it, and how it ended."""

    reading: Reading
    window: Window
    ended: supervise.CommandOutcome | None = None
    reason: str | None = None  # why it could not be started
    last_error: str = ""  # the last line on its stderr
    flags: list[Flag] = field(default_factory=list)


def metered(
    argv: Sequence[str],
    meters: Sequence[Meter],
    *,
    hear: Callable[[str, str], None] | None = None,
    log: Log | None = None,
    **how: Any,
) -> Metered:
    """Run a command with the meters open around exactly it. `how`: as `supervise.run` takes it.

    hear: hears each line, with "stdout" or "stderr"
    """
    window = Window(meters, lambda: None)
    found = Metered(Reading(wall_s=0.0), window)
    lines = {"stdout": Lines(), "stderr": Lines()}

    def hears(stream: str, line: str) -> None:
        if stream == "stderr" and line.strip():
            found.last_error = line.strip()
        if hear:
            hear(stream, line)

    def output(stream: str, chunk: bytes) -> None:
        if log:
            with contextlib.suppress(OSError):  # a full disk: the record will not be written either, and says so
                log.write(chunk)
        for line in lines[stream].feed(chunk):
            hears(stream, line)

    if hear or log:
        how["output"] = output
    window.start()
    try:
        found.ended = supervise.run(argv, on_end=window.stop, **how)
    except OSError as error:
        window.stop()
        found.reason = f"it could not be started: {error.strerror}: {error.filename or argv[0]}"
    finally:
        if log:
            with contextlib.suppress(OSError):
                log.close()
    for stream, last in lines.items():
        for line in last.rest():
            hears(stream, line)
    found.reading = refuse_short(window.reading())
    if found.ended and found.ended.left_behind:
        detail = f"{found.ended.left_behind} process{'es' * (found.ended.left_behind != 1)}"
        found.flags.append(Flag(code="left_behind", detail=detail))
    return found


def why_unusable(found: Metered, limit_s: float | None = None) -> tuple[str, str] | None:
    """(status, reason) of a command that did not end well."""
    ended, last = found.ended, f": {found.last_error[:300]}" if found.last_error else ""
    if ended is None:
        return "failed", found.reason or "it could not be started"
    if ended.timed_out:
        deaf = "" if ended.obeyed_sigterm else ", and ignored SIGTERM"
        return "timeout", f"it ran past its limit of {limit_s or 0:g} s{deaf}"
    if ended.returncode in (-signal.SIGKILL, KILLED):
        return "out_of_memory", "it was killed by SIGKILL, most often for lack of memory"
    if ended.returncode < 0:
        return "failed", f"it was killed by {signal.Signals(-ended.returncode).name}{last}"
    if ended.returncode:
        lack = any(word in found.last_error for word in OUT_OF_MEMORY)
        return ("out_of_memory" if lack else "failed"), f"it ended with status {ended.returncode}{last}"
    return None


def trial(spec: dict[str, Any], record: dict[str, Any]) -> None:
    """Fill `record` step by step, so that a failure keeps what was known before it. Raises Unusable."""
    measure, header = spec["measure"], spec["header"]
    phases = Phases(record.setdefault("phases", {}), lambda: None)
    record["device"] = spec["device_name"]
    meters = open_meters(measure, spec["device_name"])
    record["environment"] = {"load_average": os.getloadavg()[0], "gpus": gpu_facts(meters), "metered": WHOLE}
    if spec.get("threads"):
        record["environment"]["threads"] = spec["threads"]
    values = {"seed": header["seed"], "block": header["block"], "trial": header["trial"]}
    argv = fill_words(spec["command"], values)
    record["settings"] = {"workload": spec["workload"], "command": argv, "methods": []}
    reader = QualityReader(spec["workload"]["quality"], spec["metric"], Path(spec["base"]), values)
    record["flags"] = phases.cool_down(meters, measure["below_c"], measure["cooldown_s"])
    phases.idle("idle_before", meters, measure["tick_s"])
    found = metered(
        argv,
        meters,
        hear=reader.hear,
        log=Log(Path(spec["log"])),
        cwd=Path(spec["base"]),
        env=environment(header, Path(spec["windows"]), spec.get("threads")),
        limit_s=spec["limit_s"],
    )
    phases.readings["train"] = phases.readings["command"] = found.reading
    phases.idle("idle_after", meters, measure["tick_s"])
    record["flags"] += found.flags
    record["trace"] = keep_trace(found.window, spec.get("trace"))
    record["memory_resident_b"] = found.ended.memory_b if found.ended else None
    if why := why_unusable(found, spec["limit_s"]):
        raise Unusable(*why)
    inside = _windows(Path(spec["windows"]), phases, record)
    _judge(reader, inside, record)
    if lost := next((e for e in phases.readings["train"].energy if e.lost), None):
        raise Unusable("invalid", f"sensor lost: {lost.source} {lost.device}: {lost.reason}")


def environment(header: Mapping[str, Any], reported: Path, threads: int | None) -> dict[str, str]:
    """What a command is told: ours, and the identity of its trial."""
    told = {
        "ENERGYBENCH_SEED": str(header["seed"]),
        "ENERGYBENCH_TRIAL": str(header["trial"]),
        "ENERGYBENCH_BLOCK": str(header["block"]),
        VARIABLE: str(reported),
    }
    if threads:
        told["OMP_NUM_THREADS"] = str(threads)
    return {**os.environ, **told}


def _windows(path: Path, phases: Phases, record: dict[str, Any]) -> list[WindowLine]:
    """What the script measured itself, into the record: its training takes the whole command's place.

    Raises Unusable for a window that an error ended, and for a file that holds something else.
    """
    try:
        found = read_windows(path)
    except EnergybenchError as error:
        raise Unusable("failed", f"its windows cannot be read: {error.problems[0].message}") from None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    inside = of_training(found)
    if wrong := next((window for window in inside if window.error), None):
        raise Unusable("failed", f"its window '{wrong.name}' ended with an error: {wrong.error}")
    if reading := training(found):
        phases.readings["train"] = refuse_short(reading)
        record["environment"]["metered"] = f"the script's own window '{inside[0].name}'"
    others = [window for window in found if window.parent is None and window not in inside]
    for name in dict.fromkeys(window.name for window in others if window.name not in phases.readings):
        if reading := summed([window for window in others if window.name == name]):
            phases.readings[name] = reading
    for key in ("steps", "samples"):
        counts = [getattr(window, key) for window in inside]
        record[key] = sum(counts) if counts and None not in counts else None
    for kind in ("estimated", "counted"):
        flops: list[Any] = [getattr(window.flop, kind, None) for window in inside]
        if flops and None not in flops:
            record.setdefault("flop", {})[kind] = math.fsum(flops)
    return found


def _judge(reader: QualityReader, found: list[WindowLine], record: dict[str, Any]) -> None:
    try:
        quality = reader.result(found)
    except NoQuality as why:
        raise Unusable("failed", str(why)) from None
    for name, value in quality.items():
        if not is_figure(value, name):
            raise Unusable("diverged", f"its {name} is {value}")
    record["quality"] = {**{k: v for k, v in qualities(found).items() if is_figure(v, k)}, **quality}


if __name__ == "__main__":
    main(*sys.argv[1:3])
