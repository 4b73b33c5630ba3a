"""A trial of a group that takes turns, as a process: set up, called, stopped, called again, ended. `turns.py` decides.

While one of them trains, the others are stopped with everything that they have started. A limit holds for each one's
own seconds, not for those in which it was stopped. One that crashes, hangs or diverges has had its last turn; the rest
go on. Whoever made it sees to it that it ends: stopped or not, it dies with its guard, and the guard with the run.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from energybench.common.hashing import stable_seed
from energybench.process.forkserver import Child, ChildOutcome
from energybench.records.record import Trial, Turns
from energybench.runner import turns
from energybench.runner.card_knobs import reason_alone
from energybench.runner.plan_request import Planned, is_counted_on
from energybench.runner.progress import Progress
from energybench.runner.schedule import Slot, waits_for_method
from energybench.runner.turns import Rest, Seen
from energybench.suite.suite import Suite
from energybench.trial.spec import TrialHeader, TrialSpec

CGROUP = Path("/sys/fs/cgroup")


class TurnTrial:
    """One trial that takes turns.

    Args:
        child:    its process, which was started to converse
        out:      where it writes its record
        limit_s:  of its own seconds, from its start to its end
        on_cards: of all the group's trials, where they are on cards: this one's are added

    Attributes:
        outcome: how it ended; None while it has not
        facts:   what it said when it was set up
    """

    def __init__(
        self,
        slot: Slot,
        spec: TrialSpec,
        child: Child,
        out: Path,
        limit_s: float,
        tick: Callable[[float], None],
        on_cards: dict[str, list[int]],
    ) -> None:
        self.slot, self.spec, self.out, self._limit_s, self._tick = slot, spec, out, limit_s, tick
        self.label = slot.cell.method
        self.outcome: ChildOutcome | None = None
        self.facts: dict[str, Any] = {}
        self.on_cards = on_cards
        self._child = child

    def set_up(self) -> bool:
        """Wait until it rests before its first part; whether it got there."""
        said = self._heard()
        if said is None:
            return False
        self.facts = said
        for uuid, pids in said.get("on_cards", {}).items():
            self.on_cards.setdefault(uuid, []).extend(pids)
        return True

    def turn(self, until: float) -> Rest | None:
        """Train up to that progress; None: its training is over, however it ended."""
        if self.outcome is not None:
            return None
        said = self._call(until)
        if said is None or said["at"] != "rest":
            return None
        return Rest(said["progress"], said["part_s"], said["excess_s"])

    def finish(self) -> ChildOutcome:
        """Let it evaluate, report and end."""
        while self.outcome is None:
            self._call(math.inf)
        return self.outcome

    def end(self) -> None:
        """End it now, with everything that it has started."""
        if self.outcome is None:
            self._child.end()

    def memory_b(self) -> int:
        """Of its processes, what they share counted in parts."""
        return sum(_own_memory_b(pid) for pid in self._child.pids())

    def _call(self, until: float) -> dict[str, Any] | None:
        told = {"until": None if until == math.inf else until, "siblings": self.on_cards}
        self._child.tell(json.dumps(told).encode())
        self._child.go_on()
        return self._heard()

    def _heard(self) -> dict[str, Any] | None:
        """Wait until it rests, stop it, and what it said; None where it has ended, and `outcome` says how."""
        if not self._child.wait(self._limit_s, self._tick, hearing=True):
            self.outcome = self._child.past(self._limit_s)
            return None
        message = self._child.hear()
        if message is None:
            self.outcome = self._child.outcome()
            return None
        self._child.stop()
        said: dict[str, Any] = json.loads(message)
        return said


class TrialsOfRun(Protocol):
    """What a trial that takes turns shares with one that runs alone: `trials.Trials`."""

    planned: Planned
    suite: Suite
    place: Path
    progress: Progress
    order_seed: int

    def trial_spec(self, slot: Slot) -> TrialSpec: ...
    def is_due(self, slot: Slot) -> bool: ...
    def start(self, spec: TrialSpec, in_path: Path) -> tuple[Child, Path]: ...
    def run_alone(self, slot: Slot, blocks: int, reason: str | None = None) -> Trial | None: ...
    def ended(self, outcome: ChildOutcome, out: Path) -> ChildOutcome: ...
    def settle(self, out: Path, header: TrialHeader, outcome: ChildOutcome, shared: Turns | None) -> Trial: ...
    def unless_empty(self, name: str) -> None: ...


class InTurns:
    """The trials of a block's workloads, in turns where they can be, else one after the other.

    What a workload's parts cost at their begin is kept over its blocks, and so is why its trials cannot take turns.
    """

    def __init__(self, trials: TrialsOfRun) -> None:
        self._trials = trials
        self._alone: dict[str, str] = {}
        self._said = set[str]()
        self._seen: dict[str, Seen] = {}
        cells = trials.planned.cells
        self._training_s = {cell.workload: cell.expected_s for cell in reversed(cells) if cell.role == "baseline"}

    def count(self, slots: Sequence[Slot]) -> int:
        """How many trials these are of one workload in a block, as far as they can be counted on: further groups have
        a plain training of their own."""
        name = slots[0].cell.workload
        slots = [slot for slot in slots if is_counted_on(slot.cell)]
        if not slots or slots[0].cell.command or not isinstance(self._parts(name), int):
            return len(slots)
        first, controls = _with_controls(slots)
        return _size(first) + _size(controls)

    def run(self, slots: Sequence[Slot], blocks: int) -> None:
        """Of one workload in one of `blocks`."""
        name, progress = slots[0].cell.workload, self._trials.progress
        left = progress.left - self.count(slots)
        parts = self._parts(name)
        if isinstance(parts, str):
            self._alone[name] = parts
        first, controls = _with_controls(slots)
        number = self._run_groups(first, 0, blocks)
        if name in self._alone:
            self._run_alone(controls[1:], blocks)
        else:  # only now it is known which there are, and what they train
            due = [slot for slot in controls if slot.cell.role == "baseline" or self._trials.is_due(slot)]
            progress.expect(_size(due) - _size([slot for slot in controls if is_counted_on(slot.cell)]))
            if len(due) > 1:
                self._run_groups(due, number, blocks)
        progress.expect(left - progress.left)  # one that did not fit beside the others had a plain training of its own

    def _run_groups(self, slots: Sequence[Slot], number: int, blocks: int) -> int:
        """In groups from that number on; returns the number of the next."""
        name = slots[0].cell.workload
        waiting = [] if name in self._alone else turns.groups(slots)
        if not waiting:
            self._run_alone(slots, blocks)
        while waiting:
            group = [replace(slot, group=number) for slot in waiting.pop(0)]
            if name in self._alone:  # plain training stands in the first group
                self._run_alone([replace(slot, group=0) for slot in group if slot.cell.role != "baseline"], blocks)
                continue
            left = self._run_group(group, blocks)
            number += 1
            if left:
                waiting.insert(0, left)
        return number

    def _parts(self, workload: str, least_part_s: float = 0.0) -> int | str:
        """Into how many parts its trainings are cut; or why its trials run alone."""
        if self._trials.suite.trials.devices > 1:
            return "each trains on several devices"
        planned = self._trials.planned
        if reason := reason_alone([cell for cell in planned.cells if cell.workload == workload]):
            return reason
        settings, known = planned.workload(workload)
        return turns.parts_of(
            self._trials.suite.trials.turns,
            steps=known.steps * settings.train.epochs,
            training_s=self._training_s[workload],
            least_part_s=least_part_s,
        )

    def _run_alone(self, slots: Sequence[Slot], blocks: int) -> None:
        for slot in slots:
            reason = self._alone.get(slot.cell.workload)
            if reason:
                self._say_alone(slot.cell.workload)
            self._trials.run_alone(slot, blocks, reason)

    def _say_alone(self, workload: str) -> None:
        if workload not in self._said:
            self._said.add(workload)
            self._trials.progress.say(f"{workload}: its trials run one after the other: {self._alone[workload]}")

    def _run_group(self, slots: list[Slot], blocks: int) -> list[Slot]:
        """Trials that take turns. Returns the group of those that did not fit into memory beside the others."""
        workload = slots[0].cell.workload
        group: list[TurnTrial] = []
        waiting = sorted(slots, key=lambda slot: slot.position)
        try:
            while waiting:
                group.append(self._set_up(waiting.pop(0), group, blocks))
                if (room := self._room(group)) < len(waiting):
                    waiting.sort(key=lambda slot: slot.cell.role != "baseline")  # stable: without it there is no pair
                    waiting = waiting[:room]
            parts = self._take_turns(group, blocks)
            for trial in sorted(group, key=lambda each: each.slot.cell.role != "baseline"):
                self._finish(trial, group, parts)
        except BaseException:
            for trial in group:
                trial.end()
            raise
        finally:
            for trial in group:
                self._trials.unless_empty(trial.slot.trial)
        there = {trial.label for trial in group}
        left = [slot for slot in slots if slot.cell.method not in there]
        plain = next(slot for slot in slots if slot.cell.role == "baseline")
        if left and "baseline" not in {slot.cell.role for slot in left}:
            left = [plain, *left]
        if left and workload in self._alone:  # what is left runs alone, beside the plain training of this group
            self._run_alone([slot for slot in left if slot.cell.method not in there], blocks)
            return []
        return left

    def _set_up(self, slot: Slot, group: Sequence[TurnTrial], blocks: int) -> TurnTrial:
        trials, on_cards = self._trials, group[0].on_cards if group else {}
        trials.progress.start(f"block {slot.block + 1}/{blocks}, setting up", slot.cell.workload, slot.cell.method)
        spec = trials.trial_spec(slot).model_copy(update={"siblings": on_cards})
        child, out = trials.start(spec, trials.place / f"turn-{len(group)}.in.json")
        trial = TurnTrial(slot, spec, child, out, trials.suite.trials.limit, trials.progress.tick, on_cards)
        try:
            trial.set_up()
        except BaseException:
            trial.end()
            raise
        return trial

    def _take_turns(self, group: Sequence[TurnTrial], blocks: int) -> int | str:
        """Let all of them train; into how many parts, or why each trained alone."""
        slot, workload = group[0].slot, group[0].slot.cell.workload
        least_part_s = max(trial.facts.get("least_part_s", 0.0) for trial in group)
        parts = self._parts(workload, least_part_s)
        if len(group) == 1:
            parts = f"two of its trainings take more than {turns.MOST_MEMORY:.0%} of the memory"
        if isinstance(parts, str):
            self._alone[workload] = parts
            self._say_alone(workload)
            for trial in group:
                trial.turn(math.inf)
            return parts
        what = f"{len(group)} trials in turns"
        self._trials.progress.start(f"block {slot.block + 1}/{blocks}", workload, what)
        chance = random.Random(stable_seed(self._trials.order_seed, "turns", slot.trial))
        seen = self._seen.setdefault(workload, Seen())
        return turns.take_turns(group, parts, self._trials.suite.accept.margin, seen, chance)

    def _finish(self, trial: TurnTrial, group: Sequence[TurnTrial], parts: int | str) -> None:
        """Let it evaluate and end, and complete its record."""
        outcome = self._trials.ended(trial.finish(), trial.out)
        if isinstance(parts, str):
            shared = Turns(group=trial.slot.group, reason=parts)
        else:
            after = self._seen[trial.slot.cell.workload].after(trial.label)
            labels = [each.label for each in group]
            shared = Turns(group=trial.slot.group, cells=labels, parts=parts, after=after)
        self._trials.settle(trial.out, trial.spec.header, outcome, shared)

    def _room(self, group: Sequence[TurnTrial]) -> int:
        """How many more of them fit beside those that are there."""
        alive = [trial for trial in group if trial.outcome is None]
        if not alive:
            return len(group) + turns.MOST_BESIDE + 2
        room = turns.room(*memory(), max(trial.memory_b() for trial in alive))
        facts = alive[-1].facts
        if facts.get("device_b"):
            used_b = facts["device_b"] - facts["device_free_b"]
            room = min(room, turns.room(used_b, facts["device_b"], used_b / len(alive)))
        return room


def _with_controls(slots: Sequence[Slot]) -> tuple[list[Slot], list[Slot]]:
    """(all but the matched controls, plain training and the matched controls; nothing where there are none)."""
    late = [slot for slot in slots if waits_for_method(slot.cell)]
    first = [slot for slot in slots if slot not in late]
    plain = [slot for slot in first if slot.cell.role == "baseline"]
    return first, [*plain, *late] if late else []


def _size(slots: Sequence[Slot]) -> int:
    """How many trials they are in groups; plain training alone, beside controls of which none is due, is none."""
    groups = turns.groups(slots)
    return sum(map(len, groups)) if groups else 0


def _own_memory_b(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(full, "pss", 0) or full.rss)


def memory() -> tuple[float, float]:
    """(bytes in use, bytes that there are) on this machine, or in this container where that is less."""
    machine = psutil.virtual_memory()
    used_b, total_b = float(machine.total - machine.available), float(machine.total)
    limit_b, current_b = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit_b is not None and current_b is not None and limit_b < total_b:
        return current_b, limit_b
    return used_b, total_b


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no limit
        return None
