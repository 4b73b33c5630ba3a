"""Which meters a trial gets: the cards it uses, the processor's RAPL, what the suite names, else a model.

What is missing is a meter too: it says in every window why there is no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from energybench.common.errors import Problem, UsageError, nearest
from energybench.meter import Meter, ranks
from energybench.meter.nvml import Gpu, open_gpus
from energybench.meter.reading import NO_SENSOR, Energy, Reading
from energybench.meter.unavailable import Unavailable

GROUP = "energybench.meters"  # entry points: () → Meter, or raises Unavailable


class UnavailableMeter:
    """A sensor that is not there: its figure is null in every window, with the reason."""

    def __init__(self, scope: str, reason: str, device: str = "") -> None:
        self._energy = Energy(source="unavailable", scope=scope, device=device, reason=reason)

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(wall_s=0.0, energy=[self._energy])

    def nested(self) -> UnavailableMeter:
        return self


class ThirdParty:
    """A meter of another package. Its figures carry its name; if it breaks, they are null with the reason."""

    def __init__(self, name: str, meter: Meter) -> None:
        self.name, self._meter = name, meter
        self._failure: str | None = None
        self._sensors: list[Energy] = []

    def start(self) -> None:
        self._failure = None
        try:
            self._meter.start()
        except Exception as error:  # whatever it raises, the trial goes on and its figure is null
            self._failure = f"{type(error).__name__}: {error}"

    def stop(self) -> Reading:
        reading = Reading(wall_s=0.0)
        try:
            reading = self._meter.stop()
        except Exception as error:
            self._failure = self._failure or f"{type(error).__name__}: {error}"
        if self._failure is None:
            energy = [
                e if e.source.startswith(NO_SENSOR) else e.model_copy(update={"source": f"meter({self.name})"})
                for e in reading.energy
            ]
            self._sensors = energy
            return reading.model_copy(update={"energy": energy})
        known = self._sensors or [Energy(source=f"meter({self.name})", scope="machine")]
        lost = [e.model_copy(update={"energy_j": None, "error_j": None, "reason": self._failure}) for e in known]
        return Reading(wall_s=0.0, energy=lost)

    @property
    def samples(self) -> Sequence[Any]:
        return getattr(self._meter, "samples", ())


def measures(meter: Meter) -> bool:
    """Whether a meter reads a sensor, rather than say why there is none or model one."""
    return not isinstance(meter, UnavailableMeter) and not getattr(meter, "models", False)


def nested_meters(meters: Sequence[Meter]) -> list[Meter]:
    """Meters of a stretch inside the running window of these. None of them waits; one that cannot be shared says so."""
    result: list[Meter] = []
    for meter in meters:
        nested: Callable[[], Meter] | None = getattr(meter, "nested", None)
        name = meter.name if isinstance(meter, ThirdParty) else type(meter).__name__
        reason = f"meter {name}: it is in use by the window around this one"
        result.append(nested() if nested else UnavailableMeter("machine", reason))
    return result


EnergyWanted = Literal["if available", "require", "off"]


@dataclass(frozen=True, slots=True)
class MeterSelection:
    """Which meters are to be opened, as a suite's [measure] table says it, and what they must know.

    Args:
        energy: "off" opens none; whether a sensor that is required is there is for others to see
        gpus: "used": the one that trains; "all"; or UUIDs
        meters: those of other packages, by name
        model: the parameters of codecarbon's model for this machine, used where nothing measures
        of_children: what is metered are processes that this one will start
        processes_before: UUID → processes that were on a card before this one, where that was seen earlier
    """

    energy: EnergyWanted = "if available"
    gpus: str | Sequence[str] = "used"
    meters: Sequence[str] = ()
    model: dict[str, Any] | None = None
    of_children: bool = False
    processes_before: Mapping[str, set[int]] | None = None


def open_meters(wanted: MeterSelection, device: str) -> list[Meter]:
    """Open the meters of a trial.

    Args:
        wanted: which of them
        device: "cpu", or the UUID of the card that trains

    Returns:
        The meters, those that wait for an edge of their counter first; a missing sensor is an `UnavailableMeter`, and
        so is what sees the whole node in a rank that is not its first (ranks.py). None where energy is "off".

    Raises:
        UsageError: E503 for a meter that no package offers
    """
    if wanted.energy == "off":
        return []
    if ranks.reads_node():
        meters = [*_gpus(wanted, device), *map(_third_party, wanted.meters), _processor()]
    else:
        meters = [*_gpus(wanted, device), *_left_to_the_first_rank(wanted)]
    if wanted.model and ranks.reads_node() and not any(map(measures, meters)):
        from energybench.meter.carbon import CodecarbonModel

        meters.append(CodecarbonModel(wanted.model))
    return meters


def _left_to_the_first_rank(wanted: MeterSelection) -> list[Meter]:
    """What sees the whole node: each rank would bill it again."""
    names = [f"{name}: {ranks.READ_BY_THE_FIRST}" for name in wanted.meters]
    return [
        *(UnavailableMeter("machine", reason) for reason in names),
        UnavailableMeter("cpu", ranks.READ_BY_THE_FIRST),
    ]


def open_cards(gpus: str | Sequence[str], device: str) -> list[Gpu]:
    """The cards that are asked for, as `MeterSelection` says it; none where a trial on the CPU uses none.

    "all" is for the first rank of a node; to another one it means "used".

    Raises:
        Unavailable: where they are asked for and cannot be opened
    """
    if gpus == "all" and not ranks.reads_node():
        gpus = "used"
    if gpus == "used" and device == "cpu":
        return []
    return open_gpus({"used": [device], "all": None}[gpus] if isinstance(gpus, str) else list(gpus))


def _gpus(wanted: MeterSelection, device: str) -> list[Meter]:
    from energybench.meter.gpu import GpuMeter

    try:
        gpus = open_cards(wanted.gpus, device)
    except Unavailable as unavailable:
        return [UnavailableMeter("gpu", unavailable.reason)]
    return [GpuMeter(gpus, of_children=wanted.of_children, processes_before=wanted.processes_before)] if gpus else []


def _processor() -> Meter:
    from energybench.meter.rapl import open_rapl

    try:
        return open_rapl()
    except Unavailable as unavailable:
        return UnavailableMeter("cpu", f"RAPL {unavailable.kind}: {unavailable.reason}")


def offered() -> dict[str, EntryPoint]:
    """Meters of installed packages, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def _third_party(name: str) -> Meter:
    points = offered()
    if name not in points:
        hint = nearest(name, points) or "install the package that offers it; energybench doctor lists what there is"
        raise UsageError(Problem("E503", f"no installed package offers the meter '{name}'", hint=hint))
    build: Callable[[], Meter] = points[name].load()
    try:
        return ThirdParty(name, build())
    except Unavailable as unavailable:
        return UnavailableMeter("machine", f"{name}: {unavailable.reason}")
    except Exception as error:
        return UnavailableMeter("machine", f"{name}: {type(error).__name__}: {error}")
