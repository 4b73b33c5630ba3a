"""Trials in turns: the cells of a block train side by side, one at a time, part by part of their progress.

    ready:  A   B   C   D              every process is set up, one after the other, and rests
    part 1:     C A D B                a random order
    part 2:     B D A C                its reverse: steady drift cancels in every two parts
    …           …                      until the planned steps are over; then each is evaluated, one after the other

On a machine that others use, trials one after the other differ by what the machine did meanwhile; parts of a tenth of a
second meet the same machine. A part is a share of progress, the same for every cell, so that all begin and end together
and an epoch that is skipped is an almost empty part. What is compared are the sums: the block is the replicate, a part
never is one. Nothing here knows a process: `group.py` does, and the tests put simulated machines in its place.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from energybench.records.record import Excess
from energybench.runner.schedule import Slot

Setting = int | Literal["auto", "off"]

MOST_PARTS = 20
FEWEST_PARTS = 2
FEWEST_STEPS = 10  # of a part
JITTER = 0.25  # of a part's length: nothing that comes again and again keeps step with the parts
LONGEST_TRAINING_S = 120.0  # of plain training, for "auto": longer trials meet enough of the machine by themselves
MOST_BESIDE = 4  # cells in a group, beside plain training and its twin
EXCESS_OF_MARGIN = 0.25  # of the margin of the saving, that a part's first step may cost more
FEWEST_EXCESSES = 5  # parts that were seen after each cell's, before any grows
MOST_EXCESSES = 500  # that are remembered: the standard error of their median is a twentieth of how widely they scatter
SURE = 3.0  # standard errors that an excess lies above 0
SD_OF_MAD, SE_OF_MEDIAN = 1.4826, 1.2533  # of normal values: sd / median deviation, and the median's se / the mean's
MOST_MEMORY = 0.7  # of the machine's, or the card's


@dataclass(frozen=True, slots=True)
class Rest:
    """A player rests behind a part.

    excess_s: what its first step took longer than the median of the others; None where that cannot be seen
    """

    progress: float
    part_s: float
    excess_s: float | None = None


class Player(Protocol):
    """One trial of a group."""

    label: str

    def turn(self, until: float) -> Rest | None:
        """Train up to that progress (0 to 1, ∞: to the end). None: its training is over, however it ended."""
        ...


@dataclass
class Seen:
    """What parts cost at their begin, by whose came before, over all blocks of a workload; and, of the last group, by
    whose part it was."""

    training_s: float | None = None  # of the longest training of the last block, about
    # By whose part came before: the last of them, so that a long run looks at no more in each block than a short one.
    excess_s: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=MOST_EXCESSES)))
    shares: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, label: str, before: str, rest: Rest) -> None:
        if rest.excess_s is not None and rest.part_s > 0:
            self.excess_s[before].append(rest.excess_s)
            self.shares[label][before].append(rest.excess_s / rest.part_s)

    def after(self, label: str) -> dict[str, Excess]:
        """As a record keeps it."""
        return {
            before: Excess(parts=len(shares), share_rel=statistics.median(shares))
            for before, shares in sorted(self.shares[label].items())
        }

    def shortest_part_s(self, margin: float) -> float:
        """How long a part must be for its begin to weigh under a quarter of the margin; 0 while that is not known.

        By the mean over those who came before of each one's median (a single slow step decides nothing, and a cell that
        clears the caches of all the others does), as far as it stands out from how widely steps scatter: on a busy
        machine noise would make parts as long as a training, which help nobody, and of which nothing more is learnt.
        """
        known = [each for each in self.excess_s.values() if each]
        count = sum(map(len, known))
        if count < FEWEST_EXCESSES * len(known) or not known or margin <= 0:
            return 0.0
        typical_s = math.fsum(len(each) * statistics.median(each) for each in known) / count
        every = [excess_s for each in known for excess_s in each]
        middle_s = statistics.median(every)
        spread_s = SD_OF_MAD * statistics.median(abs(excess_s - middle_s) for excess_s in every)
        surely_s = typical_s - SURE * SE_OF_MEDIAN * spread_s / math.sqrt(count)
        return max(0.0, surely_s) / (EXCESS_OF_MARGIN * margin)


def parts_of(setting: Setting, *, steps: float, training_s: float | None, least_part_s: float) -> int | str:
    """Into how many parts a training is cut; or why it is not, and runs alone.

    Args:
        setting:      the suite's [trials] turns
        steps:        planned of plain training
        training_s:   that it takes, about; None where that is not known
        least_part_s: that a part must last for the sensors
    """
    if setting == "off":
        return "the suite turns it off"
    if setting == "auto" and training_s is not None and training_s >= LONGEST_TRAINING_S:
        return f"a training takes about {training_s:.0f} s"
    most = MOST_PARTS if setting == "auto" else setting
    by_steps = math.floor(steps * (1 - JITTER) / FEWEST_STEPS)
    if by_steps < FEWEST_PARTS:
        return f"{steps:.0f} steps are fewer than {FEWEST_PARTS} parts of {FEWEST_STEPS}"
    by_sensors = math.inf
    if least_part_s > 0:
        by_sensors = math.floor((training_s or 0.0) * (1 - JITTER) / least_part_s)
    if by_sensors < FEWEST_PARTS:
        return f"its sensors need {least_part_s:.3g} s for a part"
    return int(min(most, by_steps, by_sensors))


def take_turns(players: Sequence[Player], parts: int, margin: float, seen: Seen, chance: random.Random) -> int:
    """Let them all train to their ends. Returns into how many parts their progress was cut.

    Args:
        players: in any order
        parts:   at most; the number is drawn from there down, and parts grow where their begin weighs too much
        margin:  of the saving, as a fraction
        seen:    of blocks before; what is seen now is added
    """
    seen.shares.clear()  # each record tells of its own parts
    left = max(FEWEST_PARTS, round(parts * chance.uniform(1 - JITTER, 1)))
    left = _fewer(left, seen.training_s, seen.shortest_part_s(margin))
    training, progress, taken = list(players), 0.0, 0
    order: list[Player] = []
    before, trained_s = "", dict.fromkeys((player.label for player in players), 0.0)
    while training:
        until = math.inf
        if left > 1:
            until = progress + (1 - progress) / left * chance.uniform(1 - JITTER, 1 + JITTER)
        until = until if until < 1 else math.inf
        taken += 1
        if taken % 2:
            order = chance.sample(training, len(training))
        else:
            order = [player for player in reversed(order) if player in training]
        for player in order:
            rest = player.turn(until)
            if rest is None:
                training.remove(player)
            else:
                seen.add(player.label, before, rest)
                trained_s[player.label] += rest.part_s
            before = player.label
        if until == math.inf:
            break
        progress, left = until, left - 1
        seen.training_s = max(trained_s.values()) / progress
        if taken % 2 == 0:
            left = _fewer(left, seen.training_s * (1 - progress), seen.shortest_part_s(margin))
    return taken


def _fewer(parts: int, training_s: float | None, shortest_s: float) -> int:
    """As many parts as leave each that long, at least one."""
    if training_s is None or shortest_s <= 0:
        return parts
    return min(parts, max(1, math.floor(training_s / shortest_s)))


def groups(slots: Sequence[Slot]) -> list[list[Slot]]:
    """A workload's trials of one block as groups that take turns, each with plain training of its own.

    The twin stands in the first. Matched controls are handed in by themselves, beside plain training, when the methods
    have ended whose tallies set their budgets: they form groups of their own.

    Args:
        slots: in their order; without plain training, or with nothing beside it, there is no group
    """
    baseline = next((slot for slot in slots if slot.cell.role == "baseline"), None)
    if baseline is None or len(slots) < 2:
        return []
    twins = [slot for slot in slots if slot.cell.role == "twin"]
    others = [slot for slot in slots if slot is not baseline and slot not in twins]
    chunks = _chunks(others) or [[]]
    chunks[0] = [*twins, *chunks[0]]
    return [[_in_group(each, number) for each in (baseline, *chunk)] for number, chunk in enumerate(chunks)]


def group_count(others: int) -> int:
    """Into how many groups so many cells beside plain training and its twin go."""
    return math.ceil(others / MOST_BESIDE)


def _chunks(slots: list[Slot]) -> list[list[Slot]]:
    """As few as hold at most MOST_BESIDE each, about equally many in each."""
    count = group_count(len(slots))
    ends = [round(number * len(slots) / count) for number in range(count + 1)] if count else [0]
    return [slots[a:b] for a, b in itertools.pairwise(ends)]


def _in_group(slot: Slot, group: int) -> Slot:
    return Slot(slot.cell, slot.block, slot.position, slot.invocation, group)


def room(used_b: float, total_b: float, each_b: float) -> int:
    """How many more processes of that size stay below the share of memory that may be used."""
    return max(0, math.floor((MOST_MEMORY * total_b - used_b) / max(1.0, each_b)))
