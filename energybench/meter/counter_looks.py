"""When a counter was looked at, and what it had counted by then: so its count in any stretch of time, with an error.

At a moment between two looks the count lies between theirs. It is taken on the straight line, and is off by no more
than the farther of the two: that holds whatever the power did.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

MOST_LOOKS = 1 << 17  # nine hours at four in a second; of a longer window every second one, every fourth, ...


class CounterLooks:
    """The looks of one window, in the order of time; a count is of some moment between asking and answering."""

    def __init__(self) -> None:
        self._asked_ns: list[int] = []
        self._answered_ns: list[int] = []
        self._counts: list[int] = []
        self._every, self._number = 1, 0  # which looks are kept; the newest is kept until the next one

    def add(self, asked_ns: int, answered_ns: int, count: int) -> None:
        """count: since the beginning of the window, wraps included"""
        columns = ((self._asked_ns, asked_ns), (self._answered_ns, answered_ns), (self._counts, count))
        if self._number and (self._number - 1) % self._every:
            for kept, _ in columns:
                kept.pop()
        if len(self._counts) >= MOST_LOOKS:
            self._every *= 2
            for kept, _ in columns:
                del kept[1::2]
        for kept, new in columns:
            kept.append(new)
        self._number += 1

    def between(self, start_ns: int, stop_ns: int) -> tuple[float, float] | None:
        """(counts, by how many they may be off); None where a part of the stretch lies outside of the looks."""
        ends = [self._at(moment) for moment in (start_ns, stop_ns)]
        if ends[0] is None or ends[1] is None:
            return None
        (before, off_before), (after, off_after) = ends[0], ends[1]
        return max(0.0, after - before), off_before + off_after

    def _at(self, moment_ns: int) -> tuple[float, float] | None:
        earlier = bisect_right(self._answered_ns, moment_ns) - 1
        later = bisect_left(self._asked_ns, moment_ns)
        if earlier < 0 or later >= len(self._counts):
            return None
        low, high = self._counts[earlier], self._counts[later]
        from_ns, until_ns = self._answered_ns[earlier], self._asked_ns[later]
        share = (moment_ns - from_ns) / (until_ns - from_ns) if until_ns > from_ns else 0.5
        taken = low + (high - low) * share
        return taken, max(taken - low, high - taken)
