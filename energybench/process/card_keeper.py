"""Settings of cards for the time of one trial, put back on every way out: also when a process is killed by force.

    run ── keeper     reads what is set, keeps it, sets and reads back; sleeps until the end of its input; puts it back
     └──── … trial    starts when the cards are set, and knows nothing of it

The keeper is a process of its own, in a session of its own, that ignores the signals which end others. When the trial
ends, in whatever way, the run ends the keeper's input. When the run itself ends or is killed, the kernel does. When the
keeper is killed, the run puts back what the keeper had told it before it set anything. Only if both are killed by force
at once is a setting left, until the driver is unloaded or somebody puts it back. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from energybench.common import module_path
from energybench.common.interrupts import ANNOUNCING, ENDING
from energybench.meter.card_settings import AdjustableCard, CannotSet, Settings, by_hand
from energybench.meter.counter import SensorError
from energybench.meter.nvml import open_gpus
from energybench.meter.unavailable import Unavailable

KILLED = "the process that keeps the card's settings ended early"


@dataclass
class Held:
    """Cards that are set for the time of a trial. Each by UUID.

    settings: what they were to be set to, in watts and hertz
    before:   what could be read before
    problem:  why they could not be set; then nothing is, and nothing may be measured
    changed:  what somebody else changed meanwhile; known at the end
    left:     what could not be put back, and what to type; known at the end
    """

    settings: Mapping[str, Settings]
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    problem: str = ""
    changed: str = ""
    left: str = ""


UNSET = Held({})


@contextmanager
def held(settings: Mapping[str, Settings]) -> Iterator[Held]:
    """Set these cards while the block runs. settings: UUID → in watts and hertz; none: nothing is done."""
    found = Held(settings)
    if not settings:
        yield found
        return
    code = f"from {__name__} import main\nmain({json.dumps(settings)!r})"
    keeper = subprocess.Popen(
        [sys.executable, *module_path.in_new_interpreter(code, with_package=True)],
        env=module_path.without_those(dict(os.environ)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    told: dict[str, Any] = {}
    try:
        told |= _heard(keeper)  # what was there before, or why nothing can be set
        found.before = told.get("before", {})
        if not told.get("problem"):
            told |= _heard(keeper)  # that it is set
        found.problem = told.get("problem", "") if "problem" in told else KILLED
        yield found
    finally:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(OSError):
            keeper.stdin.close()
        while last := _heard(keeper):
            told |= last
        keeper.stdout.close()
        keeper.wait()
        found.before = told.get("before", {})
        found.changed = told.get("changed", "")
        found.left = told["left"] if "left" in told else _put_back_here(settings, found.before)


def _put_back_here(settings: Mapping[str, Settings], before: Mapping[str, Settings]) -> str:
    """In place of a keeper that was killed: what could not be. before: empty where it had not begun to set anything"""
    if not before:
        return ""
    try:
        return _put_back(_opened(settings), settings, before)
    except Unavailable as error:
        return f"{error}: {'; '.join(by_hand(uuid, settings[uuid], before[uuid]) for uuid in before)}"


def _heard(keeper: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next thing that it says; empty where it has ended."""
    assert keeper.stdout is not None
    line = keeper.stdout.readline()
    told: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
    return told


# ── in the keeper ─────────────────────────────────────────────────────────────────────────────────────────────────────


def main(asked: str) -> None:
    """asked: UUID → settings, as JSON."""
    for number in (signal.SIGINT, *ENDING, *ANNOUNCING):
        signal.signal(number, signal.SIG_IGN)
    settings: dict[str, dict[str, float]] = json.loads(asked)
    before: dict[str, dict[str, float]] = {}
    try:
        cards = _opened(settings)
        for uuid, card in cards.items():
            card.refuse_use()
            before[uuid] = card.state(settings[uuid])
    except (CannotSet, SensorError, Unavailable) as error:
        _tell(problem=_said(error), left="")
        return
    _tell(before=before)
    problem = changed = ""
    try:
        for uuid, card in cards.items():
            card.set(settings[uuid])
    except CannotSet as error:
        problem = _said(error)
    if not problem:
        _tell(problem="")
        with contextlib.suppress(OSError):
            sys.stdin.buffer.read()
        changed = _changed(cards, settings)
    left = _put_back(cards, settings, before)
    _tell(problem=problem, changed=changed, left=left)


def _tell(**what: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


# ── in either ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _opened(settings: Mapping[str, Settings]) -> dict[str, AdjustableCard]:
    """Raises Unavailable."""
    return {gpu.uuid: AdjustableCard(gpu) for gpu in open_gpus(list(settings))}


def _changed(cards: Mapping[str, AdjustableCard], settings: Mapping[str, Settings]) -> str:
    try:
        return "; ".join(filter(None, (card.differs(settings[uuid]) for uuid, card in cards.items())))
    except CannotSet as error:
        return _said(error)


def _put_back(
    cards: Mapping[str, AdjustableCard], settings: Mapping[str, Settings], before: Mapping[str, Settings]
) -> str:
    """What could not be, and what to type."""
    left = []
    for uuid, card in cards.items():
        try:
            card.put_back(settings[uuid], before[uuid])
        except CannotSet as error:
            left.append(f"{error}: {by_hand(uuid, settings[uuid], before[uuid])}")
    return "; ".join(left)


def _said(error: CannotSet | SensorError | Unavailable) -> str:
    remedy = getattr(error, "remedy", "")
    return f"{error} ({remedy})" if remedy else str(error)
