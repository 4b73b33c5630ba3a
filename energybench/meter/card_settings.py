"""What of an NVIDIA card can be set for a time: its power limit, its clocks. Checked, set, read back, put back.

    power_limit_w   nvmlDeviceSetPowerManagementLimit, read back by nvmlDeviceGetPowerManagementLimit
    clock_limit_hz  nvmlDeviceSetGpuLockedClocks from the lowest supported clock to the limit. NVML does not tell what
                    is locked: it is put back by nvmlDeviceResetGpuLockedClocks, and seen in the clocks of a window

Beside them shares are asked for, `power_limit_rel` of the default limit and `clock_limit_rel` of the highest clock.
Who sets them, and sees to it that they are put back: process/card_keeper.py. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from energybench.meter.counter import SensorError
from energybench.meter.nvml_gpu import REFUSED, Gpu

POWER_W, CLOCK_HZ = "power_limit_w", "clock_limit_hz"
POWER_REL, CLOCK_REL = "power_limit_rel", "clock_limit_rel"
WORDS = {POWER_W: "power limit", POWER_REL: "power limit", CLOCK_HZ: "clock limit", CLOCK_REL: "clock limit"}
ENFORCED_W = "enforced_power_limit_w"  # what was in force before: the least of several limits
CAPPED = "software power cap"  # why a card throttles, as nvml_gpu.py calls it, where its power limit binds
IN_RECORD = "card_settings"  # of a trial's environment: UUID → {"set": settings, "before": what could be read}
WITHIN_W, WITHIN_REL = 1.0, 0.01  # of a limit that is read back, of a mean clock above its limit
ROOT = "run it as root (sudo, or a job whose prolog sets it): NVML lets nobody else change a card"
ALONE = "wait until it has ended, or train on a card that nobody else uses (CUDA_VISIBLE_DEVICES)"

Settings = Mapping[str, float]


class CannotSet(Exception):
    """Why a card cannot be set; `remedy` says what helps."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class AdjustableCard:
    """One card. Everything here raises CannotSet."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def _ask(self, function: str, *arguments: int) -> int:
        try:
            return int(self.gpu.ask(function, *arguments) or 0)
        except SensorError as error:
            remedy = ROOT if REFUSED in str(error) else f"this card or its driver cannot do it: {function}"
            raise CannotSet(f"{self.gpu.uuid}: {error}", remedy) from None

    def _list(self, function: str, *arguments: int) -> list[int]:
        try:
            return sorted(map(int, self.gpu.ask(function, *arguments)))
        except SensorError as error:
            remedy = f"this card or its driver cannot do it: {function}"
            raise CannotSet(f"{self.gpu.uuid}: {error}", remedy) from None

    # ── what it may be set to ─────────────────────────────────────────────────────────────────────────────────

    def resolved(self, asked: Settings) -> dict[str, float]:
        """In watts and hertz, within what the card can be set to."""
        found: dict[str, float] = {}
        for key, value in asked.items():
            if key in (POWER_W, POWER_REL):
                found[POWER_W] = self._power_w(value, key == POWER_REL)
            elif key in (CLOCK_HZ, CLOCK_REL):
                found[CLOCK_HZ] = self._clock_hz(value, key == CLOCK_REL)
            else:
                raise CannotSet(f"nothing of a card is called '{key}'", f"one of {', '.join(WORDS)}")
        return found

    def _power_w(self, value: float, is_share: bool) -> float:
        if is_share:
            value *= self._ask("nvmlDeviceGetPowerManagementDefaultLimit") / 1e3
        try:
            least_w, most_w = (int(each) / 1e3 for each in self.gpu.ask("nvmlDeviceGetPowerManagementLimitConstraints"))
        except SensorError as error:
            raise CannotSet(f"{self.gpu.uuid}: {error}", "this card's power limit cannot be changed") from None
        if not least_w <= value <= most_w:
            message = f"{self.gpu.uuid}: a power limit of {value:g} W is outside of what {self.gpu.name} can be set to"
            raise CannotSet(message, f"from {least_w:g} W to {most_w:g} W")
        return value

    def _clock_hz(self, value: float, is_share: bool) -> float:
        clocks = self._clocks_mhz()
        if is_share:
            wanted = value * clocks[-1]
            below = [clock for clock in clocks if clock <= wanted]
            if not below:
                message = f"{self.gpu.uuid}: {value:g} of its highest clock is {wanted:g} MHz, below its lowest"
                raise CannotSet(message, f"from {clocks[0]} MHz to {clocks[-1]} MHz")
            return below[-1] * 1e6
        if round(value / 1e6) not in clocks or value % 1e6:
            nearest = min(clocks, key=lambda clock: abs(clock - value / 1e6))
            message = f"{self.gpu.uuid}: {self.gpu.name} does not support a clock of {value / 1e6:g} MHz"
            raise CannotSet(message, f"the nearest one is {nearest} MHz; from {clocks[0]} MHz to {clocks[-1]} MHz")
        return value

    def _clocks_mhz(self) -> list[int]:
        """Those that it supports beside its fastest memory clock, rising."""
        memory = self._list("nvmlDeviceGetSupportedMemoryClocks")
        clocks = self._list("nvmlDeviceGetSupportedGraphicsClocks", memory[-1]) if memory else []
        if not clocks:
            raise CannotSet(f"{self.gpu.uuid}: it lists no supported clocks", "this card's clocks cannot be locked")
        return clocks

    # ── whether it may be set ─────────────────────────────────────────────────────────────────────────────────

    def refuse_use(self) -> None:
        """Where somebody else is on the card, or may be."""
        if not self.gpu.tells_processes():
            raise CannotSet(f"{self.gpu.uuid}: its driver does not tell who uses the card", ALONE)
        if pids := self.gpu.processes():
            listed = ", ".join(map(str, sorted(pids)))
            raise CannotSet(f"{self.gpu.uuid}: process {listed} uses the card", ALONE)
        if self.gpu.mig() is not False:
            raise CannotSet(
                f"{self.gpu.uuid}: it is sliced (MIG), or does not tell: others may use a part of it", ALONE
            )

    def refuse_permission(self) -> None:
        """Where this user may not set it: asked by setting the power limit to what it is."""
        try:
            milliwatts = int(self.gpu.ask("nvmlDeviceGetPowerManagementLimit"))
            self.gpu.ask("nvmlDeviceSetPowerManagementLimit", milliwatts)
        except SensorError as error:
            if REFUSED in str(error):
                raise CannotSet(f"{self.gpu.uuid}: {error}", ROOT) from None

    # ── setting it ────────────────────────────────────────────────────────────────────────────────────────────

    def state(self, keys: Iterable[str]) -> dict[str, float]:
        """What can be read of these settings now; of a power limit also what is in force."""
        if POWER_W not in keys:
            return {}
        return {
            POWER_W: self._ask("nvmlDeviceGetPowerManagementLimit") / 1e3,
            ENFORCED_W: self._ask("nvmlDeviceGetEnforcedPowerLimit") / 1e3,
        }

    def set(self, settings: Settings) -> None:
        """In watts and hertz; what can be read back is."""
        if POWER_W in settings:
            self._ask("nvmlDeviceSetPowerManagementLimit", round(settings[POWER_W] * 1e3))
        if CLOCK_HZ in settings:
            lowest = self._clocks_mhz()[0]
            self._ask("nvmlDeviceSetGpuLockedClocks", lowest, round(settings[CLOCK_HZ] / 1e6))
        if changed := self.differs(settings):
            raise CannotSet(f"{changed} right after it was set", "see whether something else sets it (dcgm, a daemon)")

    def differs(self, settings: Settings) -> str:
        """How what can be read lies off these settings; "" where it does not."""
        seen = self.state(settings).get(POWER_W)
        if seen is None or abs(seen - settings[POWER_W]) <= WITHIN_W:
            return ""
        return f"{self.gpu.uuid}: its power limit is {seen:g} W, not {settings[POWER_W]:g} W,"

    def put_back(self, keys: Iterable[str], before: Settings) -> None:
        """All of it that can be, then what could not. keys: of what was set; before: as `state` gave it."""
        failed: list[CannotSet] = []
        if CLOCK_HZ in keys:
            failed += self._tried("nvmlDeviceResetGpuLockedClocks")
        if POWER_W in before:
            failed += self._tried("nvmlDeviceSetPowerManagementLimit", round(before[POWER_W] * 1e3))
        if failed:
            raise failed[0]
        if changed := self.differs({POWER_W: before[POWER_W]} if POWER_W in before else {}):
            raise CannotSet(f"{changed} as it was")

    def _tried(self, function: str, *arguments: int) -> list[CannotSet]:
        try:
            self._ask(function, *arguments)
        except CannotSet as error:
            return [error]
        return []


def by_hand(uuid: str, keys: Iterable[str], before: Settings) -> str:
    """The commands that put it back."""
    words = [f"sudo nvidia-smi -i {uuid} -pl {before[POWER_W]:g}"] if POWER_W in before else []
    words += [f"sudo nvidia-smi -i {uuid} -rgc"] if CLOCK_HZ in keys else []
    return "; ".join(words)
