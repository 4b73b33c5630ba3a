"""A powercap tree with physics: files that say what a processor of known power would have counted by now.

    machine = Powercap(tmp_path)
    machine.add("intel-rapl:0", "package-0", [(5, 300.0), (5, 40.0)])      5 s at 300 W, then 40 W for ever
    meter = open_rapl(machine.time, machine.flat, system=machine.system)

The layout is the kernel's: zones nested under `devices/virtual/powercap` (`nested`), and a flat folder of links to them
(`flat`), so that a container's mask is what it is there: links that lead nowhere. Every time that the clock moves, the
files are written anew. A counter is the integral of its power at its last tick in the hardware's own units, of which it
holds 32 bits: max_energy_range_uj is the largest value that it takes, and one unit later it is 0.

What goes wrong, goes wrong in the file system wherever it can. Only an error that root never gets from a plain file
(EACCES, ENODATA, EIO) is raised by `read_text`, which a test puts in the place of `rapl.read_text`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fakes.replay import VirtualTime

Power = float | Sequence[tuple[float, float]]  # watts, or pieces of (seconds, watts), the last of which goes on

SERVER_UJ, CLIENT_UJ = 65_712_999_613, 262_143_328_850  # ranges of real machines: 65.7 kJ and 262 kJ


@dataclass
class Zone:
    """One counter and the power behind it, and what goes wrong with it, by the seconds of the machine's clock."""

    folder: Path
    name: str
    power: Power
    start_uj: int = 0
    range_uj: int = CLIENT_UJ
    tick_ns: int = 1_000_000
    still_from_ns: int | None = None
    phase_ns: int = 0  # how much later than those of others its ticks are
    jumps: list[tuple[float, float]] = field(default_factory=list)  # (when, joules): it counts what nobody drew
    resets_s: list[float] = field(default_factory=list)  # when it starts again from 0
    garbage: list[tuple[float, float, str]] = field(default_factory=list)  # (from, until, what it shows instead)
    mirror_of: Zone | None = None  # another name of that counter

    def energy_j(self, from_ns: int, until_ns: int) -> float:
        """The true energy, as a wall meter would give it."""
        return self._drawn_j(until_ns) - self._drawn_j(from_ns)

    def _drawn_j(self, now_ns: int) -> float:
        left_s, joules = now_ns / 1e9, 0.0
        pieces = [(float("inf"), self.power)] if isinstance(self.power, int | float) else list(self.power)
        for i, (seconds, watts) in enumerate(pieces):
            spent_s = left_s if i == len(pieces) - 1 else min(left_s, seconds)
            joules += watts * spent_s
            left_s -= spent_s
        return joules

    def count(self, now_ns: int) -> int:
        if self.mirror_of is not None:
            return self.mirror_of.count(now_ns)
        if self.still_from_ns is not None:
            now_ns = min(now_ns, self.still_from_ns)
        ticked_ns = (now_ns - self.phase_ns) // self.tick_ns * self.tick_ns + self.phase_ns
        reset_ns = max((round(at_s * 1e9) for at_s in self.resets_s if at_s * 1e9 <= now_ns), default=None)
        began_ns, start_uj = (0, self.start_uj) if reset_ns is None else (reset_ns, 0)
        counted_j = max(0.0, self._drawn_j(ticked_ns) - self._drawn_j(began_ns))
        counted_j += sum(joules for at_s, joules in self.jumps if began_ns <= at_s * 1e9 <= now_ns)
        unit_uj = self.range_uj / (2**32 - 1)
        return int((start_uj + counted_j * 1e6) / unit_uj) % 2**32 * self.range_uj // (2**32 - 1)

    def shows(self, now_ns: int) -> str:
        """What its `energy_uj` holds."""
        for from_s, until_s, text in self.garbage:
            if from_s * 1e9 <= now_ns < until_s * 1e9:
                return text
        return f"{self.count(now_ns)}\n"

    def reset(self, now_ns: int) -> None:
        """Back to 0, as after a suspend."""
        self.resets_s.append(now_ns / 1e9)

    def told(self) -> list[Any]:
        """All that a process needs to compute the same counts, as plain data: see `Zone.of`."""
        source = self.mirror_of or self
        return [str(self.folder.resolve()), *(getattr(source, name) for name in _TOLD)]

    @classmethod
    def of(cls, folder: str, *told: Any) -> Zone:
        return cls(Path(folder), "", **dict(zip(_TOLD, told, strict=True)))


_TOLD = tuple(each.name for each in fields(Zone) if each.name not in ("folder", "name", "mirror_of"))
_CONSTRAINTS = ("long_term", "short_term", "peak_power")  # numbered so by the kernel


def read_computed(path: Path, zones: dict[str, Zone], now_ns: int) -> str:
    """What a file of the tree holds; of these zones, by their folders' real paths, what its counter would show now."""
    zone = zones.get(str(path.parent.resolve())) if path.name == "energy_uj" else None
    return path.read_text(encoding="ascii") if zone is None else zone.shows(now_ns)


class MovingTime(VirtualTime):
    """A virtual clock that tells somebody whenever it moves."""

    def __init__(self, moved: Callable[[], None]) -> None:
        super().__init__()
        self._moved = moved

    def _set(self, now_ns: int) -> None:
        super()._set(now_ns)
        self._moved()


class Powercap:
    """One machine. `system` is an empty /sys, so that no real power event answers for the fake."""

    def __init__(self, folder: Path) -> None:
        self.nested, self.flat = folder / "devices/virtual/powercap", folder / "class/powercap"
        self.system = folder / "empty"
        for path in (self.nested, self.flat, self.system):
            path.mkdir(parents=True)
        self.time = MovingTime(self._write)
        self.zones: dict[str, Zone] = {}
        self.errors: dict[str, int] = {}  # zone → errno of reading its energy_uj
        self.says: dict[str, str] = {}  # zone → what its energy_uj holds instead of a count
        self._computed = False

    def add(
        self,
        zone: str,
        name: str,
        power: Power,
        *,
        start_uj: int = 0,
        range_uj: int = CLIENT_UJ,
        rated_w: float | None = None,
        limits_w: Mapping[str, float] | None = None,
        tick_ns: int = 1_000_000,
        phase_ns: int = 0,
        still: bool = False,
        mirror_of: Zone | None = None,
    ) -> Zone:
        """zone: "intel-rapl:0", "intel-rapl:0:1", "intel-rapl-mmio:0".

        rated_w: what its first constraint gives as the most; limits_w: "long_term", "short_term", "peak_power" → limit.
        A mirror is another name of the counter of `mirror_of`, whatever that one does later.
        """
        parts = zone.split(":")
        folder = self.nested.joinpath(*(":".join(parts[:depth]) for depth in range(1, len(parts) + 1)))
        folder.mkdir(parents=True)
        for path in (self.nested / parts[0], folder):
            if not (self.flat / path.name).is_symlink():
                (self.flat / path.name).symlink_to(path)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        if rated_w is not None:
            (folder / "constraint_0_max_power_uw").write_text(f"{round(rated_w * 1e6)}\n")
        for constraint, watts in (limits_w or {}).items():
            number = _CONSTRAINTS.index(constraint)
            (folder / f"constraint_{number}_name").write_text(f"{constraint}\n")
            (folder / f"constraint_{number}_power_limit_uw").write_text(f"{round(watts * 1e6)}\n")
        made = Zone(folder, name, power, start_uj, range_uj, tick_ns, self.time.now_ns() if still else None, phase_ns)
        made.mirror_of = mirror_of
        self.zones[zone] = made
        self._write()
        return made

    def suspend(self, seconds: float) -> None:
        """The machine sleeps, and its counters start again from 0."""
        for zone in self.zones.values():
            zone.reset(self.time.now_ns())
        self.time.suspend(seconds)
        self._write()

    def mask(self) -> None:
        """What a container runtime does: an empty folder over the devices, and the links dangle."""
        shutil.rmtree(self.nested)
        self.nested.mkdir()

    def block(self, zone: str) -> None:
        """A folder in the place of the counter: reading it fails, for root too."""
        counter = self.zones[zone].folder / "energy_uj"
        counter.unlink()
        counter.mkdir()

    def unblock(self, zone: str) -> None:
        (self.zones[zone].folder / "energy_uj").rmdir()
        self._write()

    def read_text(self, path: Path) -> str:
        """In the place of `rapl.read_text`: as the files are, but for `errors`."""
        error = self.errors.get(path.parent.name)
        if error is not None and path.name == "energy_uj":
            raise OSError(error, os.strerror(error), str(path))
        if self._computed and path.name == "energy_uj":
            return self._shows(path.parent.name)
        return path.read_text(encoding="ascii")

    def only_when_read(self) -> Powercap:
        """From now on no file is written: `read_text` says what each would hold. Quicker, and for several threads."""
        self._computed = True
        return self

    def _shows(self, zone: str) -> str:
        return self.says.get(zone, self.zones[zone].shows(self.time.now_ns()))

    def _write(self) -> None:
        if self._computed:
            return
        for zone, made in self.zones.items():
            counter = made.folder / "energy_uj"
            if made.folder.is_dir() and not counter.is_dir():
                counter.write_text(self._shows(zone))


def without_energy_pkg(folder: Path) -> Path:
    """/sys of a machine without powercap, whose kernel lists a power device that does not count the packages."""
    system = folder / "sys-without-energy-pkg"
    power = system / "bus/event_source/devices/power"
    (power / "events").mkdir(parents=True)
    for name, text in {"type": "12", "cpumask": "0", "events/energy-cores": "event=0x01"}.items():
        (power / name).write_text(f"{text}\n", encoding="ascii")
    topology = system / "devices/system/cpu/cpu0/topology"
    topology.mkdir(parents=True)
    (topology / "physical_package_id").write_text("0\n", encoding="ascii")
    return system
