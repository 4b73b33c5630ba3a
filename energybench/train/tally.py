"""The loop's own account of what a run did: passes, updates, steps by kind. The independent counter is held to it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypedDict

from energybench.train.pass_sizes import PassSizes, Sizes


class Acting(Protocol):
    """A layer that can fail to act: `acted` says whether it did."""

    name: str
    acted: bool | None


class RankTally(TypedDict):
    """What one rank of several did: forwards, backwards and samples forwarded; of each kind of step how many, and the
    samples that they forwarded; and (samples of a pass, passes of that size), forward and backward."""

    passes: list[int]
    steps: dict[str, list[int]]
    forward: list[tuple[int, int]]
    backward: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PassCounts:
    """What a run did so far, as a record's `passes` has it.

    keys: cost key → {"steps": ..., "samples": ...}, and "forwarded", samples that went forward in these steps, where
          that is another number
    """

    forwards: int
    backwards: int
    updates: int
    samples_forward: int
    epochs_trained: float
    keys: dict[str, dict[str, int]]


class Tally:
    """Counts only; no time and no energy.

    steps, samples:  of all steps so far, as they came to the outermost layer
    epochs_trained:  epochs with a step; under a layer's `steps_per_epoch` passes over the data, in fractions
    A method calls `mark` and reads these and `passes()`; the rest is the loop's.
    """

    def __init__(self, usual_passes: int) -> None:
        self.usual_passes = usual_passes  # forwards and backwards of an ordinary step
        self.pass_sizes = PassSizes()
        self.entered: Counter[tuple[str, str]] = Counter()  # (method, hook) → calls: finds overrides without a call
        self.forwards = self.backwards = self.updates = self.samples_forward = self.steps = self.samples = 0
        self.updates_skipped = 0  # of which a gradient overflowed; the step cost what such a step costs
        self.epochs_trained: float = 0
        self.data_wait_ns = 0
        self._keys: dict[str, Counter[str]] = defaultdict(Counter)
        self._marks: set[str] = set()
        self._before = (0, 0, 0)
        self._forwarded_before = 0

    def begin_step(self) -> None:
        self._marks.clear()
        self._before = (self.forwards, self.backwards, self._updates_due)
        self._forwarded_before = self.samples_forward

    @property
    def forward_counts(self) -> tuple[int, int, Sizes]:
        """What forward passes add to; set back where passes shall be nobody's."""
        return self.forwards, self.samples_forward, self.pass_sizes.forward.copy()

    @forward_counts.setter
    def forward_counts(self, counts: tuple[int, int, Sizes]) -> None:
        self.forwards, self.samples_forward, self.pass_sizes.forward = counts

    @property
    def forwarded(self) -> int:
        """Samples that went forward in this step so far."""
        return self.samples_forward - self._forwarded_before

    def end_step(self, samples: int) -> None:
        self._keys[self.cost_key()].update(steps=1, samples=samples, forwarded=self.forwarded)
        self.steps += 1
        self.samples += samples

    def as_rank(self) -> RankTally:
        """For another rank of the same training."""
        return {
            "passes": [self.forwards, self.backwards, self.samples_forward],
            "steps": {key: [counts["steps"], counts["forwarded"]] for key, counts in self._keys.items()},
            "forward": list(self.pass_sizes.forward.items()),
            "backward": list(self.pass_sizes.backward.items()),
        }

    def add_ranks(self, others: Iterable[RankTally]) -> None:
        """What other ranks did of the same training: their passes add up; steps and updates are those of all together.

        Raises:
            ValueError: a rank took steps of other kinds than this one
        """
        own = {key: counts["steps"] for key, counts in self._keys.items()}
        for other in others:
            if (its := {key: steps for key, (steps, _) in other["steps"].items()}) != own:
                raise ValueError(f"the ranks took steps of other kinds: {own} and {its}")
            forwards, backwards, samples = other["passes"]
            self.forwards, self.backwards = self.forwards + forwards, self.backwards + backwards
            self.samples_forward += samples
            _add_sizes(self.pass_sizes.forward, other["forward"])
            _add_sizes(self.pass_sizes.backward, other["backward"])
            for key, (_, forwarded) in other["steps"].items():
                self._keys[key]["forwarded"] += forwarded

    def add_vectorised(self, samples: int) -> None:
        """What `run.forward` saw of one sample was a pass of so many, with their gradients, by torch.func."""
        self.samples_forward += samples - 1
        self.backwards += 1
        self.pass_sizes.add_vectorised(samples)

    def mark(self, method: Acting, what: str = "") -> None:
        """Say that `method` acted; `what`, or else the method's name, joins this step's cost key.

        Args:
            what: one word for this kind of step, the same for steps that cost the same ("drop=0.8", "presampled"): the
                independent counter counts a sample of each kind. Steps whose passes differ are told apart without it.
        """
        method.acted = True
        self._marks.add(what or method.name)

    def cost_key(self) -> str:
        """What this step did so far: "plain", or its marks, with its passes where they are not the usual ones."""
        forwards, backwards, updates = self._before
        passes = (self.forwards - forwards, self.backwards - backwards, self._updates_due - updates)
        words = sorted(self._marks)
        if passes != (self.usual_passes, self.usual_passes, 1):
            words.append("{}f{}b{}u".format(*passes))
        return " ".join(words) or "plain"

    @property
    def _updates_due(self) -> int:
        return self.updates + self.updates_skipped

    def passes(self) -> PassCounts:
        return PassCounts(
            forwards=self.forwards,
            backwards=self.backwards,
            updates=self.updates,
            samples_forward=self.samples_forward,
            epochs_trained=float(self.epochs_trained),
            keys={key: _told(counts) for key, counts in sorted(self._keys.items())},
        )


def _told(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name != "forwarded" or count != counts["samples"]}


def _add_sizes(sizes: Sizes, more: Iterable[tuple[int, int]]) -> None:
    for size, count in more:
        sizes[size] += count
