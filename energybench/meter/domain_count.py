"""One of RAPL's counters in one window: what it has counted, unwrapped, and everything that makes the count no figure.

    looks:   asked ── answered       asked ── answered       the count was read at some moment between the two, so a gap
                        └─ shortest gap ─┘                   between two looks is known from the shortest to the longest
               └──────────── longest gap ────────┘

A count below the one before is a wrap if the part can have drawn that much, else the counter was reset or went back. A
count that is too far ahead has jumped: no part draws more than its power limit times the gap. A gap without a move is a
counter that stands still. What a window has once seen wrong stays wrong, whatever the counter does later.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from energybench.common.units import format_energy
from energybench.meter.clock import Time
from energybench.meter.counter import AT_MOST
from energybench.meter.counter_looks import CounterLooks
from energybench.meter.domains import PROBE_S, READ_ERRORS, Domain
from energybench.meter.plausible import IMPLAUSIBLE
from energybench.meter.reading import Energy
from energybench.meter.unavailable import system_message


class DomainCount:
    """A counter from its first reading on, which is taken at once."""

    def __init__(self, domain: Domain, time: Time) -> None:
        self._domain, self._time = domain, time
        self._total = self._wraps = self._last = self.missed = 0
        self.largest_gap_s = self._most_w = 0.0
        self._least_w: float | None = None
        self._last_gaps: deque[tuple[float, float]] = deque(maxlen=2)
        self._failure: str | None = None
        self._implausible = False
        self._failed_at_end: str | None = None
        self._asked_ns = time.now_ns()
        try:
            self._last = domain.read()
        except READ_ERRORS as error:
            self.missed, self._failure = 1, f"it could not be read at the start: {system_message(error)}"
        self._answered_ns = time.now_ns()
        self._looks = CounterLooks()
        self._looks.add(self._asked_ns, self._answered_ns, 0)

    def step(self) -> None:
        """Read on. A failure between two good readings loses nothing if they are close enough; the last one counts."""
        asked_ns = self._time.now_ns()
        try:
            count = self._domain.read()
        except READ_ERRORS as error:
            self.missed += 1
            self._failed_at_end = system_message(error)
            return
        answered_ns = self._time.now_ns()
        self._failed_at_end = None
        gap_s = (answered_ns - self._answered_ns) / 1e9
        shortest_s = max(0, asked_ns - self._answered_ns) / 1e9
        longest_s = max(0, answered_ns - self._asked_ns) / 1e9
        moved = count - self._last
        if moved < 0 and self._domain.range_counts is not None:
            moved += self._domain.range_counts
            self._wraps += 1
        joules = moved * self._domain.joules_per_count
        self._failure = self._failure or self._fault(count, joules, shortest_s, longest_s)
        self._note(joules, gap_s)
        self._total += moved
        self._last, self._asked_ns, self._answered_ns = count, asked_ns, answered_ns
        self._looks.add(asked_ns, answered_ns, self._total)
        self.largest_gap_s = max(self.largest_gap_s, gap_s)

    def _note(self, joules: float, gap_s: float) -> None:
        """The highest power of all gaps, and the least of those before the last two."""
        steps_s = 10 * self._domain.update_s  # in a shorter gap the counter's own steps would look like power
        if gap_s > steps_s:
            self._most_w = max(self._most_w, joules / gap_s)
        if len(self._last_gaps) == 2 and self._last_gaps[0][1] > steps_s:
            watts = self._last_gaps[0][0] / self._last_gaps[0][1]
            self._least_w = watts if self._least_w is None else min(self._least_w, watts)
        self._last_gaps.append((joules, gap_s))

    def _fault(self, count: int, joules: float, shortest_s: float, longest_s: float) -> str | None:
        """What is wrong with a reading, if anything. joules: since the last one, a wrap taken for granted."""
        domain = self._domain
        if domain.range_j is not None and longest_s >= domain.range_j / domain.limit.watts:
            return f"it was not read for {longest_s:.3g} s, in which it may have wrapped unseen"
        if joules == 0 and shortest_s >= max(PROBE_S, 2 * domain.update_s):
            return f"the counter stood still for {shortest_s:.3g} s"
        excess = self._excess(joules, longest_s)
        back_j = (self._last - count) * domain.joules_per_count
        if back_j <= 0:
            self._implausible = excess is not None
            return excess
        as_wrap = ""
        if domain.range_counts is not None:
            if excess is None:
                return None
            as_wrap = f"; as a wrap, {excess}"
        since_reset_j = count * domain.joules_per_count
        if back_j > domain.limit.watts * domain.update_s and self._excess(since_reset_j, longest_s) is None:
            return f"the counter was reset{as_wrap}"
        return f"the counter went back by {format_energy(back_j)}{as_wrap}"

    def _excess(self, joules: float, gap_s: float) -> str | None:
        """Why that many joules cannot be true, by the limit of the opening and by that of now."""
        domain = self._domain
        excess = domain.limit.excess(joules, gap_s, domain.update_s)
        if excess is not None and domain.limit_now is not None:
            excess = domain.limit_now().excess(joules, gap_s, domain.update_s)
        return excess

    @property
    def fell(self) -> bool:
        """Whether the last two gaps saw less power than any before: the load has fallen, or the counter has stopped.

        Two, for the last may be too short to show anything. Where there was none before, the power of the opening, less
        what its few moves may be off, stands for them. A stop in the last four updates does not show.
        """
        joules = sum(joules for joules, _ in self._last_gaps)
        certain_s = sum(gap_s for _, gap_s in self._last_gaps) - 3 * self._domain.update_s
        least_w = self._domain.opening_w * 0.9 if self._least_w is None else self._least_w
        return self._failure is None and self._failed_at_end is None and joules < least_w * certain_s

    def moves_on(self, waited_s: float) -> bool:
        """Whether the counter is seen to go on after the last reading; it fails if it has not after a while."""
        try:
            if self._domain.read() != self._last:
                return True
        except READ_ERRORS as error:
            self._failed_at_end = system_message(error)
            return True
        if waited_s < max(PROBE_S, 10 * self._domain.update_s):
            return False
        self._failure = f"the counter stood still at the end: it did not move for {waited_s:.3g} s"
        return True

    def of_stretch(self, whole: Energy, start_ns: int, stop_ns: int) -> Energy:
        """The figure of a stretch inside the window that was read: what was counted between the looks around its ends.

        Args:
            whole: the figure of the window; where it has none, nor has the stretch
        """
        counted = self._looks.between(start_ns, stop_ns)
        if whole.energy_j is None or counted is None:
            reason = whole.reason or "the counter was not read before and after the script's own window"
            return whole.model_copy(update={"energy_j": None, "error_j": None, "reason": reason})
        joules, off_j = (count * self._domain.joules_per_count for count in counted)
        error_j = off_j + (whole.error_j or 0.0)
        return whole.model_copy(update={"energy_j": joules, "error_j": error_j})

    def energy(self, wall_s: float, failed: str | None = None) -> Energy:
        """The figure of the window.

        Args:
            wall_s: how long it was
            failed: why there can be no figure, whatever the counter said
        """
        domain = self._domain
        detail: dict[str, Any] = {
            "way": domain.way,
            "wraps": self._wraps,
            "range_j": domain.range_j,
            "update_s": domain.update_s,
        }
        if domain.mirrors:
            detail["mirrors"] = list(domain.mirrors)
        common: dict[str, Any] = {"source": "rapl", "scope": domain.scope, "device": domain.device, "detail": detail}
        joules = self._total * domain.joules_per_count
        reason = failed or self._failure
        if reason is None and self._failed_at_end is not None:
            reason = f"it could not be read at the end: {self._failed_at_end}"
        if reason is None and self._total == 0:
            reason = "the counter did not move: the window is shorter than its update"
            if wall_s <= 2 * domain.update_s:
                detail[AT_MOST] = wall_s * domain.limit.watts
        if reason is not None:
            if self._implausible:
                detail[IMPLAUSIBLE] = joules
            return Energy(**common, reason=reason)
        power_w = max(self._most_w, joules / wall_s if wall_s else 0.0)
        unit_j = max(domain.joules_per_count, (domain.range_j or 0.0) / 2**32)
        error_j = 2 * domain.update_s * power_w + (2 + self._wraps) * unit_j
        return Energy(**common, energy_j=joules, error_j=error_j)
