"""One NVIDIA card, as NVML answers for it: a cumulative counter, power, and what may bend them.

Energies in joules, powers in watts. Every read that fails raises SensorError, also one that succeeds with a figure
which no card can have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from energybench.meter.counter import SensorError
from energybench.meter.plausible import PowerLimit
from energybench.meter.trace import Look

# What power means differs by card and driver, so it is asked for by field and by scope.
INSTANT, AVERAGE, LIMIT = 186, 185, 190
GPU, MODULE = 0, 1  # scopes: the GPU; the board that it shares with a processor and its memory, as on Grace Hopper
THROTTLES = {
    "software power cap": 74,
    "sync boost": 76,
    "board limit": 77,
    "software thermal": 269,
    "hardware thermal": 270,
    "power brake": 271,
}  # fields, in nanoseconds
TRANSIENT = 2.0  # times its enforced limit a card may draw for the time of a look at its power
MOST_W = 3000.0  # of a card that states no limit, or one that is nonsense: more than any draws
HOTTEST_C, FASTEST_MHZ = 200.0, 10_000.0  # past these an answer is nonsense
REST_OF_MODULE_W = 1000.0  # what processor and memory beside a GPU may draw, where no limit of the module is told

# How much of the time a card's power field looks, by compute capability: (seconds seen, of every so many).
LOOKS = {
    (6, 0): (0.01, 0.02),
    (6, 1): (0.01, 0.02),
    (7, 0): (0.01, 0.02),
    (7, 2): (0.01, 0.02),
    (7, 5): (0.1, 0.1),
    (8, 0): (0.025, 0.1),
    (8, 6): (0.1, 0.1),
    (8, 7): (0.1, 0.1),
    (8, 9): (0.1, 0.1),
    (9, 0): (0.025, 0.1),
}  # Yang, Adamek and Armour, "Part-time Power Measurements: nvidia-smi's Lack of Attention", 2023, table 1
WORST_LOOK = (0.025, 0.1)  # the least attention that is known, of a card that is in no table
AVERAGE_S = 1.0  # over which the field AVERAGE is a mean
AVERAGES_OF = ((8, 6), (8, 7), (8, 9), (9, 0))  # capabilities where nvmlDeviceGetPowerUsage is that mean too


REFUSED = "Insufficient Permissions"  # as NVML says it


class MissingFunction(SensorError):
    """The driver has no such query: it is older than the binding."""


class ImplausiblePower(SensorError):
    """A power that the card cannot have, answered with success."""


@dataclass(frozen=True, slots=True)
class Powers:
    """One look at a card's power, in watts; None where it does not tell."""

    power_w: float  # of the field that is integrated
    average_w: float | None = None  # the mean of the last second
    module_w: float | None = None  # of the board with its processor and memory


class Gpu:
    """One card.

    uuid, name:     of the card, by which it is found: torch's order and NVML's differ
    scope:          of its counter: "gpu", or "module" where that holds the processor on its board too
    counter_reason: why it has no counter; None where it has
    power_field:    what its power is asked for by; None: nvmlDeviceGetPowerUsage
    power_reason:   why it has no power; None where it has
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._limit: dict[str, PowerLimit] | None = None
        self.uuid: str = self._ask("nvmlDeviceGetUUID")
        self.name: str = self._ask("nvmlDeviceGetName")
        self.scope = "gpu"
        self.counter_reason = self._failure(self.energy_j)
        self.power_field: int | None = None
        self.power_reason: str | None = None
        for name in (INSTANT, AVERAGE, None):
            self.power_field = name
            try:
                powers = self.powers()
            except SensorError as error:
                self.power_reason = str(error)
                continue
            self.power_reason = None
            self.scope = "gpu" if powers.module_w is None else "module"
            break

    def _ask(self, function: str, *arguments: Any) -> Any:
        mismatch: type[Exception] = getattr(self._nvml, "NVMLLibraryMismatchError", self._nvml.NVMLError)
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (mismatch, self._nvml.NVMLError_FunctionNotFound, AttributeError):  # the first is no NVMLError
            raise MissingFunction(f"NVML: this driver has no {function}") from None
        except self._nvml.NVMLError as error:
            raise SensorError(f"NVML: {error}") from None

    def ask(self, function: str, *arguments: Any) -> Any:
        """Any of NVML's functions of a card. Raises SensorError."""
        return self._ask(function, *arguments)

    def _fields(self, numbers: Sequence[int], scope: int = GPU) -> list[int | None]:
        """Several fields in one call; None where the card does not have one."""
        values = self._ask("nvmlDeviceGetFieldValues", [(number, scope) for number in numbers])
        return [_value(self._nvml, value) for value in values]

    def _failure(self, call: Callable[[], Any]) -> str | None:
        try:
            call()
        except SensorError as error:
            return str(error)
        return None

    def energy_j(self) -> float:
        """Since the driver was loaded; moves in ticks."""
        return int(self._ask("nvmlDeviceGetTotalEnergyConsumption")) / 1e3

    def powers(self) -> Powers:
        """Its power, and what it tells beside it, in one call: two in a row would come too fast.

        Raises:
            SensorError: where it does not tell, tells 0, which no card draws, or more than it can draw
        """
        average: int | None = None
        module: int | None = None
        if self.power_field is None:
            milliwatts = int(self._ask("nvmlDeviceGetPowerUsage"))
        else:
            asked = [(self.power_field, GPU), (AVERAGE, GPU), (self.power_field, MODULE)]
            wanted, *others = self._ask("nvmlDeviceGetFieldValues", asked)
            if wanted.nvmlReturn != self._nvml.NVML_SUCCESS:
                raise SensorError(f"NVML: {self._nvml.NVMLError(wanted.nvmlReturn)}")
            milliwatts = _value(self._nvml, wanted) or 0
            average, module = (_value(self._nvml, value) for value in others)
        if milliwatts <= 0:
            raise SensorError("NVML: a power of 0 W, as when it is asked for too often")
        powers = Powers(milliwatts / 1e3, average / 1e3 if average else None, module / 1e3 if module else None)
        self._refuse_impossible(powers)
        return powers

    def _refuse_impossible(self, powers: Powers) -> None:
        for watts, scope in ((powers.power_w, "gpu"), (powers.average_w, "gpu"), (powers.module_w, "module")):
            if watts is not None and (excess := self.limit(scope).excess_w(watts)):
                raise ImplausiblePower(excess)

    def limit(self, scope: str = "gpu") -> PowerLimit:
        """The most that can be true of this card, or of the module that it is a part of.

        Its enforced limit holds over some tens of milliseconds; a look at its power may see a transient above it.
        """
        if self._limit is None or scope not in self._limit:
            self._limit = {"gpu": self._gpu_limit(), "module": self._module_limit()}
        return self._limit[scope]

    def _gpu_limit(self) -> PowerLimit:
        enforced_w = self._watts(lambda: self._ask("nvmlDeviceGetEnforcedPowerLimit"))
        if enforced_w is None:
            return PowerLimit(MOST_W, "as it states no limit")
        return PowerLimit(TRANSIENT * enforced_w, f"{TRANSIENT:g} times its enforced limit of {enforced_w:g} W")

    def _module_limit(self) -> PowerLimit:
        module_w = self._watts(lambda: self._fields([LIMIT], MODULE)[0])
        if module_w is None:
            gpu = self._gpu_limit()
            beside = f"with {REST_OF_MODULE_W:g} W for what else is on the module"
            return PowerLimit(gpu.watts + REST_OF_MODULE_W, f"{gpu.origin}, {beside}")
        return PowerLimit(TRANSIENT * module_w, f"{TRANSIENT:g} times its module's limit of {module_w:g} W")

    def _watts(self, ask: Callable[[], Any]) -> float | None:
        """A limit that the card states; None where it states none or one that is nonsense."""
        try:
            watts = int(ask() or 0) / 1e3
        except SensorError:
            return None
        return watts if 0 < watts <= MOST_W else None

    def look(self, averaged: bool = False) -> Look:
        """How its power field looks, or, if `averaged`, the mean of the last second."""
        most_w, capability = self.limit().watts, self._capability()
        seen_s, every_s = LOOKS.get(capability or (0, 0), WORST_LOOK)
        if averaged or self.power_field == AVERAGE:
            return Look(AVERAGE_S, AVERAGE_S, every_s, most_w)
        if self.power_field is None and capability in AVERAGES_OF:
            return Look(AVERAGE_S, AVERAGE_S, every_s, most_w)
        if self.power_field is None and capability is None:
            return Look(AVERAGE_S, seen_s, every_s, most_w, assumed=True)  # the worse of both
        return Look(seen_s, seen_s, every_s, most_w, assumed=capability not in LOOKS)

    def _capability(self) -> tuple[int, int] | None:
        try:
            major, minor = self._ask("nvmlDeviceGetCudaComputeCapability")
        except SensorError:
            return None
        return int(major), int(minor)

    @property
    def power_is(self) -> dict[str, Any]:
        """What its power means: {field, scope, averaging_s, seen_s, every_s, look}; unknown is null."""
        known = {INSTANT: ("NVML_FI_DEV_POWER_INSTANT", None), AVERAGE: ("NVML_FI_DEV_POWER_AVERAGE", AVERAGE_S)}
        name, averaging_s = known.get(self.power_field or 0, ("nvmlDeviceGetPowerUsage", None))
        look = self.look()
        return {
            "field": name,
            "scope": GPU,
            "averaging_s": averaging_s,
            "seen_s": look.seen_s,
            "every_s": look.every_s,
            "look": look.told,
        }

    def temperature_c(self) -> float:
        return self._sane(self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU), HOTTEST_C, "°C")

    def sm_clock_mhz(self) -> float:
        return self._sane(self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM), FASTEST_MHZ, "MHz")

    def _sane(self, value: Any, most: float, unit: str) -> float:
        if not 0 <= value <= most:
            raise SensorError(f"NVML: {value:g} {unit}, which no card has")
        return float(value)

    def throttled_s(self) -> dict[str, float]:
        """Reason → seconds in which it has held the clocks back since the driver was loaded; what the card reports."""
        values = self._fields(list(THROTTLES.values()))
        return {name: value / 1e9 for name, value in zip(THROTTLES, values, strict=True) if value is not None}

    def processes(self) -> set[int]:
        """Process ids on the card, as its driver numbers them: inside a container not as we do."""
        return self._pids("Compute") | self._pids("Graphics") | self._pids("MPSCompute")

    def mps(self) -> bool:
        """Whether processes share one context, so that the card's energy is not one process's."""
        return bool(self._pids("MPSCompute"))

    def tells_processes(self) -> bool:
        """Whether the driver says who computes on the card: else nobody listed does not mean nobody."""
        return self._listed("Compute") is not None

    def _pids(self, kind: str) -> set[int]:
        return self._listed(kind) or set()

    def _listed(self, kind: str) -> set[int] | None:
        for version in ("", "_v2"):  # the newest that the binding knows, or what drivers before 510 have
            try:
                return {int(process.pid) for process in self._ask(f"nvmlDeviceGet{kind}RunningProcesses{version}")}
            except MissingFunction:
                continue
            except SensorError:
                break  # not every card and user is told
        return None

    def mig(self) -> bool | None:
        """Whether the card is sliced: its counter is then the whole card's, not the slice's. None: it does not tell."""
        try:
            return bool(self._ask("nvmlDeviceGetMigMode")[0])
        except SensorError as error:
            return None if REFUSED in str(error) else False  # else it is not a card that can be

    def pci_address(self) -> str:
        """As the kernel writes it, "0000:65:00.0"; "" where the driver does not say."""
        try:
            place = self._ask("nvmlDeviceGetPciInfo").busId
        except SensorError:
            return ""
        domain, _, rest = (place.decode() if isinstance(place, bytes) else str(place)).lower().partition(":")
        return f"{domain[-4:]}:{rest}"

    def facts(self) -> dict[str, Any]:
        """What a comparison must keep equal, and what the sensors are: a missing fact is null with its reason."""
        facts: dict[str, Any] = {
            "uuid": self.uuid,
            "name": self.name,
            "driver": self._nvml.nvmlSystemGetDriverVersion(),
            "counter": self.counter_reason is None,
            "counter_reason": self.counter_reason,
            "power": self.power_is if self.power_reason is None else None,
            "power_reason": self.power_reason,
            "scope": self.scope,
            "mig": self.mig(),
            "mps": self.mps(),
        }
        calls: dict[str, Callable[[], Any]] = {
            "power_limit_w": lambda: self._ask("nvmlDeviceGetEnforcedPowerLimit") / 1e3,
            "temperature_c": self.temperature_c,
            "sm_clock_max_mhz": lambda: float(self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM)),
            "ecc": lambda: bool(self._ask("nvmlDeviceGetEccMode")[0]),
        }
        for key, call in calls.items():
            try:
                facts[key] = call()
            except SensorError as error:
                facts[key], facts[f"{key}_reason"] = None, str(error)
        return facts


def _value(nvml: Any, field: Any) -> int | None:
    """A field's value by its declared type."""
    if field.nvmlReturn != nvml.NVML_SUCCESS:
        return None
    names = {
        nvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    }
    return int(getattr(field.value, names.get(field.valueType, "uiVal")))
