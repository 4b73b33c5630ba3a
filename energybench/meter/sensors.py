"""Which meters a trial gets: the cards it uses, the processor's RAPL, what the suite names, else a model.

What is missing is a meter too: it says in every window why there is no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.meter import Meter
from energybench.meter.reading import NO_SENSOR, Energy, Reading
from energybench.meter.unavailable import Unavailable

GROUP = "energybench.meters"  # entry points: () → Meter, or raises Unavailable


class Missing:
    """A sensor that is not there: every window says why."""

    def __init__(self, scope: str, reason: str, device: str = "") -> None:
        self._energy = Energy(source="unavailable", scope=scope, device=device, reason=reason)

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(wall_s=0.0, energy=[self._energy])

    def inside(self) -> Missing:
        return self


class ThirdParty:
    """A meter of another package. Its figures carry its name; if it breaks, they are null with the reason."""

    def __init__(self, name: str, meter: Meter) -> None:
        self.name, self._meter = name, meter
        self._broken: str | None = None
        self._sensors: list[Energy] = []

    def start(self) -> None:
        self._broken = None
        try:
            self._meter.start()
        except Exception as error:  # whatever it raises, the trial goes on and its figure is null
            self._broken = f"{type(error).__name__}: {error}"

    def stop(self) -> Reading:
        reading = Reading(wall_s=0.0)
        try:
            reading = self._meter.stop()
        except Exception as error:
            self._broken = self._broken or f"{type(error).__name__}: {error}"
        if self._broken is None:
            energy = [
                e if e.source.startswith(NO_SENSOR) else e.model_copy(update={"source": f"meter({self.name})"})
                for e in reading.energy
            ]
            self._sensors = energy
            return reading.model_copy(update={"energy": energy})
        known = self._sensors or [Energy(source=f"meter({self.name})", scope="machine")]
        lost = [e.model_copy(update={"energy_j": None, "error_j": None, "reason": self._broken}) for e in known]
        return Reading(wall_s=0.0, energy=lost)

    @property
    def samples(self) -> Sequence[Any]:
        return getattr(self._meter, "samples", ())


def inside(meters: Sequence[Meter]) -> list[Meter]:
    """Meters of a stretch inside the running window of these. None of them waits; one that cannot be shared says so."""
    found: list[Meter] = []
    for meter in meters:
        nested: Callable[[], Meter] | None = getattr(meter, "inside", None)
        name = meter.name if isinstance(meter, ThirdParty) else type(meter).__name__
        reason = f"meter {name}: it is in use by the window around this one"
        found.append(nested() if nested else Missing("machine", reason))
    return found


def open_meters(measure: dict[str, Any], device: str) -> list[Meter]:
    """Meters of a trial, those that wait for an edge first.

    measure: a suite's [measure], and `model`: the parameters of codecarbon's model for this machine; `of_children`:
             what is metered are processes that this one will start; `strangers`: UUID → processes that were on a card
             before this one, where that was seen earlier than now
    device:  "cpu", or the UUID of the card that trains
    Raises UsageError E503 for a meter that no package offers.
    """
    if measure["energy"] == "off":
        return []
    found = [*_gpus(measure, device), *map(_third_party, measure.get("meters", ())), _processor()]
    if not any(_measures(meter) for meter in found) and measure.get("model"):
        from energybench.meter.carbon import CodecarbonModel

        found.append(CodecarbonModel(measure["model"]))
    return found


def _measures(meter: Meter) -> bool:
    return not isinstance(meter, Missing)


def _gpus(measure: dict[str, Any], device: str) -> list[Meter]:
    from energybench.meter.gpu import GpuMeter
    from energybench.meter.nvml import open_gpus

    wanted = measure.get("gpus", "used")
    if wanted == "used" and device == "cpu":
        return []
    try:
        uuids = {"used": [device], "all": None}[wanted] if isinstance(wanted, str) else wanted
        return [
            GpuMeter(
                open_gpus(uuids), of_children=measure.get("of_children", False), strangers=measure.get("strangers")
            )
        ]
    except Unavailable as why:
        return [Missing("gpu", why.reason)]


def _processor() -> Meter:
    from energybench.meter.rapl import open_rapl

    try:
        return open_rapl()
    except Unavailable as why:
        return Missing("cpu", f"RAPL {why.kind}: {why.reason}")


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
    except Unavailable as why:
        return Missing("machine", f"{name}: {why.reason}")
    except Exception as error:
        return Missing("machine", f"{name}: {type(error).__name__}: {error}")
