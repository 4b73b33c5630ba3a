"""Whole windows on a clock that only the test moves: what waits, waits in no time, and every second is known."""

from __future__ import annotations

from typing import TypeVar

import pytest

from energybench.meter.clock import REAL_TIME, Time

Clock = TypeVar("Clock", bound=Time)


def put_behind(monkeypatch: pytest.MonkeyPatch, time: Clock) -> Clock:
    """`time` becomes the clock of every window and sensor of this process, until the test ends. It is past 0 then."""
    for name in ("now_ns", "sleep", "every", "suspended_ns"):
        monkeypatch.setattr(REAL_TIME, name, getattr(time, name))
    time.sleep(0.0 if time.now_ns() else 1.0)  # no window of a real machine begins at 0
    return time
