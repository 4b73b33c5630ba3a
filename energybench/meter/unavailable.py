"""Why a sensor cannot be used, and what would change that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["absent", "masked", "denied", "unsupported"]


class Unavailable(Exception):
    """A sensor that cannot be used on this machine, or not by this process.

    reason: what is the case    kind: which of the four cases    remedy: what to type or do about it
    """

    def __init__(self, reason: str, kind: Kind, remedy: str) -> None:
        super().__init__(reason, kind, remedy)  # all of them, so that it crosses a process border whole
        self.reason, self.kind, self.remedy = reason, kind, remedy

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def said(error: OSError | ValueError) -> str:
    """What the system said, without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def explain(error: OSError | ValueError, what: str, remedies: Mapping[Kind, str]) -> Unavailable:
    """What a failed reading of `what` means. A way of reading that cannot be masked has no remedy for it."""
    if isinstance(error, PermissionError):  # EACCES and EPERM
        return Unavailable(f"{what} may not be read: {said(error)}", "denied", remedies["denied"])
    if isinstance(error, FileNotFoundError) and "masked" in remedies:  # listed, but its link leads nowhere
        return Unavailable(f"{what} is listed but hidden, as in a container", "masked", remedies["masked"])
    return Unavailable(f"{what} cannot be read: {said(error)}", "unsupported", remedies["unsupported"])
