"""NVIDIA cards through NVML: a cumulative counter and a power integral as two channels, and what may bend them.

One `Gpu` is one card, found by UUID, since torch's order and NVML's differ. Every read that fails raises SensorError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from energybench.common.processes import descendants
from energybench.meter.counter import SensorError
from energybench.meter.unavailable import Unavailable

# What power means differs by card and driver, so it is asked for by field; scope 0 is the GPU, without its module.
INSTANT, AVERAGE, SCOPE = 186, 185, 0
THROTTLES = {
    "software power cap": 74,
    "sync boost": 76,
    "board limit": 77,
    "software thermal": 269,
    "hardware thermal": 270,
    "power brake": 271,
}  # fields, in nanoseconds
REMEDY = "needs an NVIDIA GPU (Volta or newer) and its driver: nvidia-smi must answer"


class Gpu:
    """One card. Energies in joules, powers in watts."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.uuid: str = self._ask("nvmlDeviceGetUUID")
        self.name: str = self._ask("nvmlDeviceGetName")
        self.counter_reason = self._failure(self.energy_j)
        self.power_field: int | None = None  # None: nvmlDeviceGetPowerUsage
        self.power_reason: str | None = None
        for name in (INSTANT, AVERAGE, None):
            self.power_field = name
            self.power_reason = self._failure(self.power_w)
            if self.power_reason is None:
                break

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            raise SensorError(f"NVML: {error}") from None

    def _fields(self, numbers: Sequence[int]) -> list[int | None]:
        """Several fields in one call; None where the card does not have one."""
        values = self._ask("nvmlDeviceGetFieldValues", [(number, SCOPE) for number in numbers])
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

    def power_w(self) -> float:
        """The best power that this card offers, see `power_is`. A card never draws nothing: 0 is a failed read."""
        return self.powers_w()[0]

    def powers_w(self) -> tuple[float, float | None]:
        """(`power_w`, the average over the last second or None), in one call: two in a row would come too fast."""
        if self.power_field is None:
            milliwatts, average = int(self._ask("nvmlDeviceGetPowerUsage")), None
        else:
            wanted, average_field = self._ask("nvmlDeviceGetFieldValues", [(self.power_field, SCOPE), (AVERAGE, SCOPE)])
            if wanted.nvmlReturn != self._nvml.NVML_SUCCESS:
                raise SensorError(f"NVML: {self._nvml.NVMLError(wanted.nvmlReturn)}")
            milliwatts, average = _value(self._nvml, wanted) or 0, _value(self._nvml, average_field)
        if milliwatts <= 0:
            raise SensorError("NVML: a power of 0 W, as when it is asked for too often")
        return milliwatts / 1e3, average / 1e3 if average else None

    @property
    def power_is(self) -> dict[str, Any]:
        """What `power_w` means: {field, scope, averaging_s}; unknown is null."""
        known = {INSTANT: ("NVML_FI_DEV_POWER_INSTANT", None), AVERAGE: ("NVML_FI_DEV_POWER_AVERAGE", 1.0)}
        name, averaging_s = known.get(self.power_field or 0, ("nvmlDeviceGetPowerUsage", None))
        return {"field": name, "scope": SCOPE, "averaging_s": averaging_s}

    def temperature_c(self) -> float:
        return float(self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU))

    def sm_clock_mhz(self) -> float:
        return float(self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM))

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

    def _pids(self, kind: str) -> set[int]:
        try:
            return {int(process.pid) for process in self._ask(f"nvmlDeviceGet{kind}RunningProcesses")}
        except SensorError:
            return set()  # not every card and driver lists them

    def mig(self) -> bool:
        """Whether the card is sliced: its counter is then the whole card's, not the slice's."""
        try:
            return bool(self._ask("nvmlDeviceGetMigMode")[0])
        except SensorError:
            return False  # not a card that can be

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


def _binding() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # the binding raises its own types, and OSError where the library is broken
        raise Unavailable(f"NVML: {error}", "absent", REMEDY) from None
    return pynvml


def open_gpus(uuids: Sequence[str] | None = None) -> list[Gpu]:
    """NVIDIA cards, opened. NVML stays open until the process ends.

    Args:
        uuids: of the cards; None: all of this machine

    Raises:
        Unavailable: where there is no driver, no card, or not one of these
    """
    nvml = _binding()
    try:
        if uuids is None:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        else:
            handles = [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        gpus = [Gpu(nvml, handle) for handle in handles]
    except (nvml.NVMLError, SensorError) as error:
        text = str(error) if isinstance(error, SensorError) else f"NVML: {error}"
        raise Unavailable(text, "unsupported", REMEDY) from None
    if not gpus:
        raise Unavailable("NVML sees no GPU", "absent", REMEDY)
    return gpus


@contextlib.contextmanager
def held_open() -> Iterator[None]:
    """Keep the driver loaded: without any client it may unload, and its counters start again from 0."""
    try:
        nvml = _binding()
    except Unavailable:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def process_exists(pid: int) -> bool:
    """Whether the operating system has a process of that number here."""
    import psutil

    return bool(psutil.pid_exists(pid))


def own_processes() -> set[int]:
    """This process and everything it started, as the operating system numbers them here."""
    return {os.getpid(), *descendants(os.getpid())}
