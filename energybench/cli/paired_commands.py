"""`energybench measure`: one command metered as it is, or two of them in pairs, with an interval on their ratio.

Two commands are a small run in memory: the same trials, flags, statistics and verdicts as in a suite's report. What
they compute is not compared.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Unpack

from energybench.common.errors import EXIT_TRIALS_FAILED, EnergybenchError, Problem, UsageError, nearest
from energybench.common.hashing import digest
from energybench.common.interrupts import Interrupted
from energybench.meter import Meter, ranks
from energybench.meter.devices import visible_uuids
from energybench.meter.facts import gpu_facts
from energybench.meter.sensors import measures
from energybench.process import supervise
from energybench.process.relay import SignalRelay
from energybench.records.record import Cell, RunFile, Trial
from energybench.suite.command_tables import shell_operator
from energybench.trial.command_trial import MeteredCommand, RunOptions, metered, why_unusable
from energybench.verdict.accept import MARGIN
from energybench.verdict.figures import Summary
from energybench.verdict.flags import check_window

NAME = "command"  # of the one workload
SIDES: tuple[Literal["baseline", "method"], ...] = ("baseline", "method")


class CommandFailed(EnergybenchError):
    """A command that is compared did not end well."""

    exit_code = EXIT_TRIALS_FAILED


def words_of(arguments: Sequence[str]) -> list[str]:
    """A command as given: words, or one text with them. Raises UsageError E421, E422."""
    words = list(arguments)
    if (
        len(words) == 1 and any(c.isspace() for c in words[0]) and not os.path.exists(words[0])
    ):  # a command may be longer than any name
        try:
            words = shlex.split(words[0])
        except ValueError as error:
            raise UsageError(Problem("E422", f"{error} in {arguments[0]}", hint="close the quotation")) from None
        if words and (operator := shell_operator(arguments[0])):
            message = f"no shell reads this, so '{operator}' would be an argument of {words[0]}"
            hint = f"a shell reads: {shlex.quote('sh -c ' + shlex.quote(arguments[0]))}"
            raise UsageError(Problem("E422", message, hint=hint))
    if not words or not words[0]:
        raise UsageError(Problem("E421", "an empty command", hint="energybench measure -- python train.py"))
    if shutil.which(words[0]) is None:
        here = {entry.name for entry in Path(".").iterdir() if os.path.isfile(entry)}
        if words[0] in here:
            hint = f"python {words[0]}" if words[0].endswith(".py") else f"./{words[0]}"
        else:
            near = nearest(words[0], here)
            hint = near if near.startswith("did you mean") else "a shell's own words need: sh -c '...'"
        raise UsageError(Problem("E421", f"no program is called '{words[0]}'", hint=hint))
    return words


class CommandMeters:
    """The meters of this machine, open for as many commands as one likes."""

    def __init__(self, energy: bool) -> None:
        from energybench.meter.carbon import model_parameters
        from energybench.meter.sensors import MeterSelection, UnavailableMeter, open_meters
        from energybench.meter.unavailable import Unavailable

        self.uuids: list[str] = []
        if energy:
            with suppress(Unavailable):  # open_meters says why
                self.uuids = visible_uuids()
        # Which of them the command of this rank uses cannot be seen from here.
        shared = not ranks.reads_node() and len(self.uuids) > 1
        unread = self.uuids if shared else []
        self.uuids = [] if shared else self.uuids
        self.device = "+".join(self.uuids) or "cpu"
        wanted = MeterSelection("if available" if energy else "off", self.uuids or "used", of_children=True)
        self.meters: list[Meter] = open_meters(wanted, self.device)
        if energy and ranks.reads_node() and not any(measures(meter) for meter in self.meters):
            self.meters = open_meters(replace(wanted, model=model_parameters()), self.device)
        self.meters += [UnavailableMeter("gpu", ranks.MAYBE_SHARED, uuid) for uuid in unread]

    def trial(
        self,
        words: Sequence[str],
        *,
        role: Literal["baseline", "method"] = "baseline",
        block: int = 0,
        position: int = 0,
        **options: Unpack[RunOptions],
    ) -> tuple[Trial, MeteredCommand]:
        """One command as one record."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        measured = metered(words, self.meters, **options)
        status, reason = why_unusable(measured) or ("ok", None)
        return Trial.model_validate(
            {
                "trial": f"b{block}-{role}",
                "workload": NAME,
                "method": role if role == "baseline" else NAME,
                "role": role,
                "block": block,
                "seed": 0,
                "invocation": 0,
                "position": position,
                "status": status,
                "reason": reason,
                "digest": digest(list(words)),
                "started_at": started,
                "device": self.device,
                "settings": {"command": list(words)},
                "environment": {"load_average": os.getloadavg()[0], "gpus": gpu_facts(self.meters)},
                "phases": {"train": measured.reading},
                "flags": [*measured.flags, *check_window(measured.reading)],
                "memory_resident_b": measured.ended.memory_b if measured.ended else None,
            }
        ), measured


def once(
    meters: CommandMeters, words: Sequence[str], *, relay: SignalRelay, stdout: int | None = None
) -> tuple[Trial, int]:
    """The command as if it were called without us; its record and the exit status that a shell would see.

    relay:  passes signals on to it, and lives until the record is written
    stdout: where its output goes, if not to ours
    """
    trial, measured = meters.trial(words, own_session=False, relay=relay, stdout=stdout)
    if measured.ended is None:
        raise UsageError(Problem("E421", trial.reason or "it could not be started", hint="is it a program?"))
    code = measured.ended.returncode
    return trial, 128 - code if code < 0 else code


@dataclass
class CommandComparison:
    """Two commands in pairs. What is there so far stands when a pair is interrupted.

    interrupted: by which signal
    """

    method_command: list[str]
    baseline_command: list[str]
    pairs: int
    trials: list[Trial] = field(default_factory=list)
    interrupted: Interrupted | None = None

    def run(self, meters: CommandMeters, *, warmup: int, show_output: bool, say: Callable[[str], None]) -> None:
        """Pairs in orders that balance: one at random, the next its reverse.

        Raises CommandFailed at the first command that does not end well.
        """
        sides = dict(zip(SIDES, (self.baseline_command, self.method_command), strict=True))
        shown: dict[str, Any] = {"stdout": sys.stderr.fileno()}  # the comparison alone goes to stdout
        how: dict[str, Any] = shown if show_output else {"hear": lambda stream, line: None}
        try:
            for number in range(warmup):
                for role in SIDES:
                    say(f"warm-up {number + 1}/{warmup}")
                    supervise.run(sides[role], **(shown if show_output else {"discard": True}))
            order: Sequence[Literal["baseline", "method"]] = SIDES
            for block in range(self.pairs):
                # AB, then BA: who runs first in a pair runs first in half of them, which a coin does not promise.
                order = order[::-1] if block % 2 else random.sample(SIDES, 2)
                for position, role in enumerate(order):
                    say(f"pair {block + 1}/{self.pairs}")
                    trial, _ = meters.trial(sides[role], role=role, block=block, position=position, **how)
                    if trial.status != "ok":
                        message = f"'{shlex.join(sides[role])}': {trial.reason}"
                        raise CommandFailed(Problem("E651", message, hint="--show-output shows what it prints"))
                    self.trials.append(trial)
        except Interrupted as interrupt:
            self.interrupted = interrupt

    def summary(self) -> Summary:
        """As a report's: one workload with one row. No verdict before the pairs that were asked for are there."""
        from energybench.verdict.summary import summarise

        cells = [
            Cell(workload=NAME, method="baseline", role="baseline", command=self.baseline_command),
            Cell(workload=NAME, method=NAME, role="method", command=self.method_command),
        ]
        resolved = {"accept": {"margin": MARGIN}, "workload": [{"name": NAME, "quality": {"from": "none"}}]}
        run = RunFile(
            suite="measure",
            run="",
            digest="",
            suite_path="",
            suite_text="",
            resolved=resolved,
            cells=cells,
            blocks=self.pairs,
        )
        return summarise(run, self.trials, [])
