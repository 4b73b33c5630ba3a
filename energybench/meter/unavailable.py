"""Why a sensor cannot be used, and what would change that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

UnavailableKind = Literal["absent", "masked", "denied", "unsupported"]


class Unavailable(Exception):
    """A sensor that cannot be used on this machine, or not by this process.

    Args:
        reason: what is the case, in a sentence without a full stop
        kind: "absent": there is no such sensor; "masked": it is listed, but what it leads to is hidden, as in a
            container; "denied": this user may not read it; "unsupported": it gives no usable figure
        remedy: what to type or do about it; "" where nothing helps
    """

    def __init__(self, reason: str, kind: UnavailableKind, remedy: str) -> None:
        super().__init__(reason, kind, remedy)  # all of them, so that it crosses a process border whole
        self.reason, self.kind, self.remedy = reason, kind, remedy

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def system_message(error: OSError | ValueError) -> str:
    """The system's own message, without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def explain(error: OSError | ValueError, what: str, remedies: Mapping[UnavailableKind, str]) -> Unavailable:
    """The exception for a sensor that could not be read.

    Args:
        error: what reading it raised
        what: the sensor, as the reason names it
        remedies: what to do about each kind of case. One without "masked" cannot be masked
    """
    if isinstance(error, PermissionError):  # EACCES and EPERM
        return Unavailable(f"{what} may not be read: {system_message(error)}", "denied", remedies["denied"])
    if isinstance(error, FileNotFoundError) and "masked" in remedies:  # listed, but its link leads nowhere
        return Unavailable(f"{what} is listed but hidden, as in a container", "masked", remedies["masked"])
    return Unavailable(f"{what} cannot be read: {system_message(error)}", "unsupported", remedies["unsupported"])
