"""Which host this is, and which process of it: names that tell one from another and say nothing of either.

A name of a host is a checksum of what it calls itself and of its machine-id, so that it stays through a restart and
cannot be guessed back from a list of names. Whether a process still runs can be known on its own host alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

MACHINE_ID, BOOT_ID = Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")
SHOWN = 12  # hexadecimal digits of a name
START = 19  # place of a process's start in /proc/PID/stat, counted behind its name


@cache
def host() -> str:
    """The name of this host, 12 hexadecimal digits; the same until it is installed or named anew."""
    return hashlib.sha256(f"energybench host {_node()} {_line(MACHINE_ID)}".encode()).hexdigest()[:SHOWN]


def _node() -> str:
    return os.uname().nodename


def _line(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process among all that there ever were on all hosts.

    host:   as `host` names it
    called: what the host calls itself, for people
    boot:   of the host, since which process ids count; "" where the kernel does not say
    space:  of process ids: those of a container beside this one mean nothing here
    pid:    its number
    start:  its start in the kernel's ticks since the boot: another process of the same number has another one
    since:  ISO 8601 by its host's clock, for people: clocks of different hosts are never compared
    """

    host: str
    called: str
    boot: str
    space: str
    pid: int
    start: str
    since: str

    @property
    def shown(self) -> str:
        """As a message says it."""
        return f"process {self.pid} on {self.called}, since {self.since} by its clock"

    def is_over(self) -> bool:
        """Whether it has surely ended. Of a process elsewhere that is never known, and so it is not over."""
        if self.host != host() or not self.boot:
            return False
        if self.boot != _line(BOOT_ID):
            return True  # its host was started again since
        return self.space == _space() and _start(self.pid) != self.start

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_json(cls, content: bytes) -> ProcessIdentity | None:
        """None for what is none."""
        try:
            found = json.loads(content)
            texts = {name: found[name] for name in ("host", "called", "boot", "space", "start", "since")}
            sound = type(found["pid"]) is int and all(isinstance(text, str) for text in texts.values())
        except (ValueError, RecursionError, LookupError, TypeError):
            return None
        return cls(pid=found["pid"], **texts) if sound else None


def this_process() -> ProcessIdentity:
    """The one that asks, now."""
    pid = os.getpid()
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return ProcessIdentity(host(), _node(), _line(BOOT_ID), _space(), pid, _start(pid), since)


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> str:
    """Of a process that runs; "" of one that has ended, a zombie too."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in (b"Z", b"X") else words[START].decode("ascii", "replace")
