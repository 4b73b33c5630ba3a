"""A run's trials in memory: of each what verdicts need, in a few kilobytes; the rest is read again when asked for.

A record of 11 kB is 40 kB of models in memory, and most of them are asked for once in a report or never: curves, what
methods recorded of themselves, the energy model's inputs in phases that no verdict reads. `keep` takes a record that
was validated whole and gives an object with the same members. What is kept lies in slots; what is not (`curve`,
`diagnostics`, `model_dump`, a phase's clocks …) is there all the same: the file is read and validated again, and must
be what it was: its seal is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from energybench.common.errors import Problem, UsageError
from energybench.meter.reading import Energy, Reading, RecordModel
from energybench.records.record import Estimate, ProcessUse, Trial, Warmup

TRAIN = "train"
Value = TypeVar("Value")
Model = TypeVar("Model", bound=RecordModel | None)
Whole = Callable[[Path, str], tuple[Trial, bytes]]  # a run's folder, the stem of a file in it → the record, its seal


class Source:
    """Where a record lies and what it was; reads it whole again.

    read: the record and its seal, as the reader gives them
    folder: the run's
    stem: of its file's name
    """

    __slots__ = ("_at_hand", "_read", "_seal", "folder", "stem")

    def __init__(self, read: Whole, folder: Path, stem: str, seal: bytes) -> None:
        self._read, self.folder, self.stem, self._seal = read, folder, stem, seal
        self._at_hand: dict[str, Any] | None = None  # what was asked for, while pictures are drawn

    def whole(self) -> Trial:
        """Raises UsageError E601, E612, E621, E622, as whoever reads a record; E621 too where it is another by now."""
        trial, seal = self._read(self.folder, self.stem)
        if seal != self._seal:
            message, hint = "its content was changed while this was made from it", "the same command again"
            raise UsageError(Problem("E621", message, str(self.folder / "records" / f"{self.stem}.json"), hint))
        return trial

    def says_the_same(self, other: Source) -> bool:
        """By the seals alone: the same bytes, or the same content."""
        return self._seal == other._seal

    def member(self, name: str) -> Any:
        """Of the whole trial. Raises as `whole`, and AttributeError."""
        if self._at_hand is not None and name in self._at_hand:
            return self._at_hand[name]
        value = getattr(self.whole(), name)
        if self._at_hand is not None:
            self._at_hand[name] = value
        return value

    def take(self) -> bool:
        """Whether it was not taken already."""
        first = self._at_hand is None
        self._at_hand = self._at_hand or {}
        return first

    def let_go(self) -> None:
        self._at_hand = None


@contextmanager
def at_hand(trials: Iterable[Trial]) -> Iterator[None]:
    """Inside, what is asked for of these trials and was not kept is read once, and forgotten at the end."""
    every: Iterable[Any] = trials
    sources = [trial._source for trial in every if isinstance(trial, KeptTrial) and trial._source.take()]
    try:
        yield
    finally:
        for source in sources:
            source.let_go()


def whole(trial: Trial) -> Trial:
    """The record itself, as the model that is written and changed. Raises as `Source.whole`."""
    kept: Any = trial
    return cast(Trial, kept._source.whole()) if isinstance(kept, KeptTrial) else trial


class KeptEnergy:
    """Of an `Energy` all but the detail of a figure that is not the training window's."""

    __slots__ = (
        "_phase",
        "_source",
        "detail",
        "device",
        "energy_j",
        "error_j",
        "measured",
        "reason",
        "scope",
        "source",
    )

    lost, unmetered = Energy.lost, Energy.unmetered

    def __init__(self, energy: Energy, phase: str, source: Source, shared: Shared) -> None:
        self._phase, self._source = phase, source
        self.source, self.scope, self.device = shared(energy.source), shared(energy.scope), shared(energy.device)
        self.energy_j, self.error_j, self.measured = energy.energy_j, energy.error_j, energy.measured
        self.reason = None if energy.reason is None else shared(energy.reason)
        if not energy.detail:
            self.detail = NONE
        elif phase == TRAIN or energy.energy_j is None:
            table = {shared(key): value for key, value in energy.detail.items()}
            self.detail = shared.last(("detail", energy.source, energy.device), table)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        mine = self.source, self.scope, self.device, self.energy_j
        every = self._source.member("phases")[self._phase].energy
        return getattr(next(e for e in every if (e.source, e.scope, e.device, e.energy_j) == mine), name)


class KeptReading:
    """Of a `Reading` its time and energy."""

    __slots__ = ("_name", "_source", "cpu_s", "energy", "pieces", "wall_s")

    def __init__(self, reading: Reading, name: str, source: Source, shared: Shared) -> None:
        self._name, self._source = name, source
        self.wall_s, self.cpu_s, self.pieces = reading.wall_s, reading.cpu_s, reading.pieces
        self.energy = [shared.energy(each, name, source) for each in reading.energy] if reading.energy else NOTHING

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source.member("phases")[self._name], name)


class KeptWindow(KeptReading):
    """Of the `Reading` of the training window, whose doubts are looked for, everything."""

    __slots__ = ("cards", "other_cpu_s", "sampler", "steal_s", "suspended_s", "trackers")

    def __init__(self, reading: Reading, name: str, source: Source, shared: Shared) -> None:
        super().__init__(reading, name, source, shared)
        self.steal_s, self.other_cpu_s, self.suspended_s = reading.steal_s, reading.other_cpu_s, reading.suspended_s
        self.trackers = reading.trackers or NOTHING
        self.sampler = shared.model(("sampler",), reading.sampler)
        self.cards = {shared(uuid): shared.model(("card", uuid), card) for uuid, card in reading.cards.items()}


class KeptEstimate:
    """Of an `Estimate` all but the phases of what is left, and layers that are not those of the cell's first trial."""

    __slots__ = (
        "_source",
        "balance_flop_b",
        "estimated_b",
        "estimated_flop",
        "layers",
        "memory_bound_rel",
        "plain_b",
        "plain_by_phase",
        "plain_flop",
        "roofline_saved_rel",
    )

    def __init__(self, estimate: Estimate, source: Source, shared: Shared, cell: tuple[str, str]) -> None:
        self._source = source
        self.plain_flop, self.estimated_flop = estimate.plain_flop, estimate.estimated_flop
        self.plain_by_phase = shared.last(("by phase", *cell), estimate.plain_by_phase)
        self.plain_b, self.estimated_b = estimate.plain_b, estimate.estimated_b
        self.balance_flop_b, self.memory_bound_rel = estimate.balance_flop_b, estimate.memory_bound_rel
        self.roofline_saved_rel = estimate.roofline_saved_rel
        if (first := shared.first(("layers", *cell), estimate.layers)) == estimate.layers:
            self.layers = first

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source.member("estimate"), name)


class KeptProcess:
    """All of a `ProcessUse`."""

    __slots__ = ("cpu_s", "rested_s", "wall_s")

    def __init__(self, process: ProcessUse) -> None:
        self.wall_s, self.cpu_s, self.rested_s = process.wall_s, process.cpu_s, process.rested_s


class KeptWarmup:
    """All of a `Warmup`."""

    __slots__ = ("settled", "step_s", "steps")

    def __init__(self, warmup: Warmup) -> None:
        self.steps, self.settled, self.step_s = warmup.steps, warmup.settled, warmup.step_s


class Shared:
    """What many records of a run say in the same words is held once. One of these for each run that is read."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._last: dict[Any, Any] = {}
        self._silent: dict[tuple[str, ...], KeptEnergy] = {}

    def __call__(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def last(self, place: tuple[str, ...], value: Value) -> Value:
        """The value that was last seen at this place of a record, where it is equal to this one."""
        known = self._last.get(place)
        if known == value:
            return cast(Value, known)
        self._last[place] = value
        return value

    def first(self, place: tuple[str, ...], value: Value) -> Value:
        """The value that was first seen at this place."""
        return cast(Value, self._last.setdefault(place, value))

    def model(self, place: tuple[str, ...], model: Model) -> Model:
        """As `last`, of a part of a record; which of its keys were written is held once for all."""
        if model is not None:
            written = self._last.setdefault(("written", type(model)), model.model_fields_set)
            if written == model.model_fields_set:
                object.__setattr__(model, "__pydantic_fields_set__", written)
        return self.last(place, model)

    def energy(self, energy: Energy, phase: str, source: Source) -> KeptEnergy:
        """One object for all that say the same: that there was no sensor, and why."""
        if energy.energy_j is not None or energy.detail or energy.error_j is not None:
            return KeptEnergy(energy, phase, source, self)
        key = energy.source, energy.scope, energy.device, energy.reason or ""
        if key not in self._silent:
            self._silent[key] = KeptEnergy(energy, phase, source, self)
        return self._silent[key]


NOTHING: list[Any] = []  # of every record that has none; nobody changes what was read
NONE: dict[str, Any] = {}
TEXTS = ("workload", "method", "role", "status", "digest", "device")
AS_IT_IS = (
    "schema_",
    "trial",
    "block",
    "seed",
    "invocation",
    "position",
    "reason",
    "started_at",
    "epochs",
    "steps",
    "samples",
    "trace",
    "data_wait_s",
    "memory_device_b",
    "memory_resident_b",
    "world",
    "weights_moved",
    "weights_sha256",
    "samples_sha256",
    "judged_sha256",
)
TABLES, MODELS = (
    ("settings", "flop"),
    ("passes", "claim", "budget", "placement"),
)  # that are often equal in all trials of a cell
IF_EMPTY = ("curve", "diagnostics")  # kept where there is nothing in it


class KeptTrial:
    """A `Trial` as a report keeps it. Equal to a trial that says the same."""

    __slots__ = (
        "_source",
        *AS_IT_IS,
        *TEXTS,
        *TABLES,
        *MODELS,
        *IF_EMPTY,
        "environment",
        "estimate",
        "flags",
        "group",
        "of",
        "phases",
        "process",
        "quality",
        "run_identity",
        "target",
        "train",
        "warmup",
    )
    judged_sha256: str | None
    weights_sha256: str | None
    __hash__ = None  # type: ignore[assignment]  # as a trial's, which holds lists

    trained_less, made_on = Trial.trained_less, Trial.made_on

    def __init__(self, trial: Trial, source: Source, shared: Shared) -> None:
        values = trial.__dict__
        self._source, cell = source, (trial.workload, trial.method)
        for name in AS_IT_IS:
            setattr(self, name, values[name])
        for name in TEXTS:
            setattr(self, name, shared(values[name]))
        for name in TABLES:
            setattr(self, name, shared.last((name, *cell), values[name]))
        for name in MODELS:
            setattr(self, name, shared.model((name, *cell), values[name]))
        for name in IF_EMPTY:
            if not values[name]:
                setattr(self, name, values[name])
        if self.judged_sha256 == self.weights_sha256:
            self.judged_sha256 = self.weights_sha256
        self.of = None if trial.of is None else shared(trial.of)
        self.run_identity = None if trial.run_identity is None else shared(trial.run_identity)
        self.environment = {
            shared(key): shared.last(("environment", key), value) if isinstance(value, str | dict) else value
            for key, value in trial.environment.items()
        }
        self.flags = trial.flags or NOTHING
        self.target = shared.model(("target", *cell), trial.target)
        self.group = trial.group
        self.process = KeptProcess(trial.process) if trial.process else None
        self.warmup = KeptWarmup(trial.warmup) if trial.warmup else None
        self.quality = {shared(name): value for name, value in trial.quality.items()}
        self.estimate = KeptEstimate(trial.estimate, source, shared, cell) if trial.estimate else None
        self.phases = {
            (phase := shared(name)): (KeptWindow if name == TRAIN else KeptReading)(reading, phase, source, shared)
            for name, reading in trial.phases.items()
        }
        self.train = self.phases.get(TRAIN)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._source.member(name)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, KeptTrial):
            return self._source.says_the_same(other._source) or self._source.whole() == other._source.whole()
        return self._source.whole() == other if isinstance(other, Trial) else NotImplemented

    def __repr__(self) -> str:
        return f"KeptTrial({self.trial!r})"


def keep(trial: Trial, source: Source, shared: Shared) -> Trial:
    """The trial as it stays in memory, with the members of one. shared: of all trials of the run"""
    return cast(Trial, KeptTrial(trial, source, shared))
