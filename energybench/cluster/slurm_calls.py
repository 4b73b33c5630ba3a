"""Calls of Slurm's own commands: sbatch, squeue, scontrol, scancel. A controller that is down for a while is waited
for; what it refuses is told as a mistake, with what to type instead."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from energybench.common.errors import Problem, UsageError, nearest, typed

# Of an answer that says nothing about what was asked: the controller is restarted, overloaded, or was for a moment.
AWAY = re.compile(
    r"unable to contact slurm controller|connect failure|connection refused|socket timed out"
    r"|zero bytes were transmitted|unexpected message received|slurmctld daemon|in standby mode|backup controller"
    r"|resource temporarily unavailable|transport endpoint|communication (?:connection|shutdown) failure"
    r"|insane message length|munge.*(?:retry|timed out)|temporarily unable to accept job",
    re.IGNORECASE,
)
LONGEST_CALL_S = 120.0
PATIENCE_S = 600.0  # for a controller that does not answer
# Variables that would make a submission another than the one that is written.
DROPPED = (
    "SBATCH_ARRAY_INX",
    "SBATCH_DEPENDENCY",
    "SBATCH_WAIT",
    "SBATCH_OUTPUT",
    "SBATCH_OPEN_MODE",
    "SBATCH_NO_REQUEUE",
)


class Refused(Exception):
    """The answer of a Slurm command that ended badly, on one line."""


class NoAnswer(Exception):
    """The controller did not answer in all the time that was given to it."""


@dataclass
class Slurm:
    """`say`: told when a controller does not answer, once for each outage. `sleep` in seconds."""

    say: Callable[[str], None] = lambda _: None
    patience_s: float = PATIENCE_S
    sleep: Callable[[float], None] = time.sleep
    _told: bool = field(default=False, init=False)

    def call(self, words: Sequence[str], *, may_repeat: bool = True) -> str:
        """Standard output of a command.

        may_repeat: False for a submission, which may have arrived although nothing came back

        Raises:
            Refused: with what Slurm said.
            NoAnswer: after `patience_s`; at once without `may_repeat`.
        """
        until, pause_s = time.monotonic() + self.patience_s, 1.0
        while True:
            code, output, errors = _run(words)
            if code == 0:
                if self._told:
                    self.say("the Slurm controller answers again")
                self._told = False
                return output
            if not AWAY.search(errors):
                raise Refused(_one_line(errors) or f"{words[0]} ended with {code}")
            if not self._told:
                self.say(f"the Slurm controller does not answer ({words[0]}: {_one_line(errors)}); trying again")
            self._told = True
            if not may_repeat or time.monotonic() + pause_s > until:
                raise NoAnswer(_one_line(errors))
            self.sleep(pause_s)
            pause_s = min(30.0, 1.5 * pause_s)

    def setting(self, name: str) -> str | None:
        """Of the controller's configuration; None where it does not say."""
        try:
            found = re.search(rf"^{name}\s*=\s*(.*)$", self.call(["scontrol", "show", "config"]), re.MULTILINE)
        except Refused:
            return None
        return found[1].strip() if found else None

    def partitions(self) -> list[str]:
        try:
            return self.call(["sinfo", "--noheader", "--format=%R"]).split()
        except Refused:
            return []


def _run(words: Sequence[str]) -> tuple[int, str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
    try:
        done = subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_CALL_S,
            start_new_session=True,  # Ctrl-C is ours: a submission is never cut in two
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"{words[0]}: socket timed out after {LONGEST_CALL_S:.0f} s"
    except FileNotFoundError:
        raise UsageError(missing(words[0])) from None
    return done.returncode, done.stdout, done.stderr


def missing(program: str) -> Problem:
    hint = "type it on the login node of a cluster, where Slurm's commands are found; without --on it runs here"
    return Problem("E680", f"Slurm's {program} is not found on this machine", hint=hint)


def refuse_without_slurm() -> None:
    """Raises UsageError E680."""
    for program in ("sbatch", "squeue", "scontrol"):
        if shutil.which(program) is None:
            raise UsageError(missing(program))


def _one_line(text: str) -> str:
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))[:500]


def refusal(said: str, where: Callable[[str], str], partition: str | None, known: Sequence[str]) -> UsageError:
    """E681: what Slurm said of a job, at the key that it is about.

    Args:
        where: key of [on] slurm → its place in the suite
        known: partitions
    """
    lower = said.lower()
    keys = {"partition": "partition", "generic resource": "gres", "gres": "gres", "cpu": "cpus", "time limit": "time"}
    key = next((key for word, key in keys.items() if word in lower), "")
    hint = "see what the cluster offers: sinfo"
    if key == "partition" and known:
        hint = nearest(partition, known) if partition else f"add partition = ... one of: {', '.join(known)}"
    elif "account" in lower or "association" in lower or "qos" in lower:
        hint = 'name yours: extra = ["--account=..."]; sacctmgr show associations user=$USER lists them'
    elif key == "gres":
        hint = typed("sinfo", "--format=%P %G") + " lists what the nodes have"
    elif key == "time":
        hint = typed("sinfo", "--format=%P %l") + " lists the longest time of each partition"
    return UsageError(Problem("E681", f"Slurm refused the job: {said}", where(key), hint))
