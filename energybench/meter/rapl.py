"""RAPL, the processor's own energy counters: joules per package, and per package's DRAM where it has a counter.

    /sys/class/powercap/intel-rapl:0/{name,energy_uj,max_energy_range_uj}     first way, `powercap`
    perf_event_open on the device `power`                                     second way, `perf_events`

Domains are chosen by their names. package-* each once: the same name by MSR and by MMIO is one counter, and so are dies
and packages that mirror each other. dram is apart. psys holds the packages, core and uncore lie inside them: never
added. A domain that is listed and does not count is in every reading, without a figure: what the others say is a part.

A powercap counter counts microjoules and starts again from 0 after max_energy_range_uj: a reading below the one before
it means one wrap, and the range is added. (The kernel gives the largest value; the true modulus is one hardware unit,
range / 2³² or 61 µJ, more, which is in the error.) The counters are also read in the background, so that no two wraps
fall between two readings, and that a jump or a restart shows: it is more than the power limit allows in that time. What
stays below cannot be told from a load: at most the limit times the period for each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from energybench.meter.clock import REAL_TIME, Time, slept_s
from energybench.meter.domain_count import DomainCount
from energybench.meter.domains import PROBE_STEP_S, READ_ERRORS, Domain, UsableDomains, usable
from energybench.meter.perf_events import Limits, Opener, open_event, open_events, sysfs
from energybench.meter.plausible import PowerLimit, suspended
from energybench.meter.power_limits import stated_limit
from energybench.meter.rapl_remedies import NO_COUNT, OTHER_WAYS, Processor, absent, mended, this_processor
from energybench.meter.reading import Energy, Reading, SamplerState
from energybench.meter.unavailable import Unavailable, UnavailableKind, explain

POWERCAP = "class/powercap"  # below /sys
VARIABLE = "ENERGYBENCH_POWERCAP"  # another folder to look in: the host's tree, mounted into a container

LONGEST_PERIOD_S, READS_PER_WRAP = 0.25, 5.0  # 130 W hide a jump of 33 J at most; a read: 10 µs

REMEDIES: Mapping[UnavailableKind, str] = {
    "masked": "start the container with -v /sys/devices/virtual/powercap:/host/powercap:ro "
    f"-e {VARIABLE}=/host/powercap",
    "denied": "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj "
    "/sys/class/powercap/intel-rapl:*/*/energy_uj  (until the next boot)",  # root's alone since Linux 5.10
    "unsupported": NO_COUNT,
}
_ZONE = re.compile(r"(intel-rapl(?:-\w+)?(?::\d+)*):\d+")  # intel-rapl:0, intel-rapl:0:1, intel-rapl-mmio:0
_EASIEST_FIRST = ("denied", "masked", "unsupported", "absent")


class Rapl:
    """The meter: source `rapl`, one Energy per package (scope `cpu`) and per DRAM (scope `dram`).

    energy_j is null with a reason where a reading failed at either end, where the counter jumped, stood still, went
    back, was reset or may have wrapped unseen, and where the machine was suspended. error_j holds while the power at
    either end is at most twice the window's mean, or its highest mean between two readings: at each end the counter may
    lag by one update.

    Args:
        domains: what is counted
        time: the clock
        left_out: device → why a memory that is listed has no figure
    """

    def __init__(self, domains: Sequence[Domain], time: Time, left_out: Mapping[str, str] | None = None) -> None:
        self.domains, self.left_out = tuple(domains), dict(left_out or {})
        wraps_s = [d.range_j / d.limit.watts for d in self.domains if d.range_j is not None]
        self.period_s = min([LONGEST_PERIOD_S, *(seconds / READS_PER_WRAP for seconds in wraps_s)])
        self._time = time
        self._counts: list[DomainCount] = []
        self._end: Callable[[], float] = lambda: 0.0
        self._started_ns = self._suspended_ns = self._reads = 0
        self._energy: list[Energy] = []  # of the last window

    def start(self) -> None:
        self._end()  # of a window that was abandoned
        self._reads = 1
        self._suspended_ns = self._time.suspended_ns()
        self._counts = [DomainCount(domain, self._time) for domain in self.domains]
        self._started_ns = self._time.now_ns()
        self._end = self._time.every(self.period_s, self._read_counters)

    def stop(self) -> Reading:
        cpu_s, self._end = self._end(), lambda: 0.0
        self._read_counters()
        wall_s = max(0.0, (self._time.now_ns() - self._started_ns) / 1e9)
        sleeping_s = slept_s(self._suspended_ns, self._time)
        if not sleeping_s:
            self._see_them_move()
        energy = [count.energy(wall_s, suspended(sleeping_s) if sleeping_s else None) for count in self._counts]
        self._energy = list(energy)
        energy += [
            Energy(source="unavailable", scope="dram", device=device, reason=reason)
            for device, reason in self.left_out.items()
        ]
        sampler = SamplerState(
            period_s=self.period_s,
            samples=self._reads,
            missed=sum(count.missed for count in self._counts),
            largest_gap_s=max((count.largest_gap_s for count in self._counts), default=0.0),
            cpu_s=cpu_s,
        )
        return Reading(wall_s=wall_s, energy=energy, sampler=sampler)

    def of_stretch(self, start_ns: int, stop_ns: int) -> list[Energy]:
        """The figures of a stretch inside the last window, which nobody metered while it ran."""
        both = zip(self._counts, self._energy, strict=True)
        return [count.of_stretch(whole, start_ns, stop_ns) for count, whole in both]

    def nested(self) -> Rapl:
        """A meter of a stretch inside this one's running window: the same counters, counted for themselves."""
        return Rapl(self.domains, self._time, self.left_out)

    def _read_counters(self) -> None:
        self._reads += 1
        for count in self._counts:
            count.step()

    def _see_them_move(self) -> None:
        """Wait, for about a millisecond, for those that counted less in the end than ever before: a counter that has
        stopped since the last reading but one has moved in that gap as well, only by less."""
        waiting = [count for count in self._counts if count.fell]
        began_ns = self._time.now_ns()
        while waiting := [count for count in waiting if not count.moves_on((self._time.now_ns() - began_ns) / 1e9)]:
            self._time.sleep(PROBE_STEP_S)


def open_rapl(
    time: Time = REAL_TIME,
    root: Path | None = None,
    *,
    system: Path | None = None,
    opener: Opener = open_event,
    processor: Callable[[], Processor] = this_processor,
) -> Rapl:
    """The meter of this machine's processor: the first way of reading that counts every package.

    Args:
        time: the clock that the sensors run on
        root: where powercap's zones are, by default $ENERGYBENCH_POWERCAP or class/powercap below `system`
        system: where the power events are described, by default $ENERGYBENCH_SYSFS or /sys
        opener: what opens a power event
        processor: says what this machine is, for the remedy

    Raises:
        Unavailable: where neither way works, with the reason of both
    """
    failed: dict[str, Unavailable] = {}
    for way, find in _ways(time, root, system, opener, processor).items():
        try:
            domains, left_out = find()
        except Unavailable as unavailable:
            failed[way] = unavailable
        else:
            return Rapl(domains, time, {device: unavailable.reason for device, unavailable in left_out.items()})
    easiest = min(failed, key=lambda way: _EASIEST_FIRST.index(failed[way].kind))
    reasons = "; ".join(f"{way}: {unavailable.reason}" for way, unavailable in failed.items())
    remedy = mended(easiest, failed[easiest], failed[OTHER_WAYS[easiest]]).remedy
    raise Unavailable(reasons, failed[easiest].kind, remedy)


def survey(
    root: Path | None = None,
    time: Time = REAL_TIME,
    *,
    system: Path | None = None,
    opener: Opener = open_event,
    processor: Callable[[], Processor] = this_processor,
) -> list[dict[str, Any]]:
    """Each way: {way, usable, kind, reason, remedy, domains, left_out}; the reason is null if it is usable."""
    found: dict[str, UsableDomains] = {}
    failed: dict[str, Unavailable] = {}
    for way, find in _ways(time, root, system, opener, processor).items():
        try:
            found[way] = find()
        except Unavailable as unavailable:
            failed[way] = unavailable
    rows: list[dict[str, Any]] = []
    for way, other in OTHER_WAYS.items():
        row: dict[str, Any] = {
            "way": way,
            "usable": way in found,
            "kind": None,
            "reason": None,
            "remedy": None,
            "domains": [],
            "left_out": {},
        }
        if way in found:
            domains, left_out = found[way]
            row["domains"] = [domain.device for domain in domains]
            row["left_out"] = {
                device: str(mended(way, unavailable, failed.get(other, unavailable)))
                for device, unavailable in left_out.items()
            }
        else:
            why = mended(way, failed[way], failed.get(other))
            row.update(kind=why.kind, reason=why.reason, remedy=why.remedy)
        rows.append(row)
    return rows


def _ways(
    time: Time, root: Path | None, system: Path | None, opener: Opener, processor: Callable[[], Processor]
) -> dict[str, Callable[[], UsableDomains]]:
    system = system or sysfs()
    root = root or Path(os.environ.get(VARIABLE) or system / POWERCAP)
    remedy = {way: partial(_absent, way, processor, system) for way in OTHER_WAYS}
    return {
        "powercap": lambda: _powercap(root, time, remedy["powercap"]),
        "perf_events": lambda: _perf(root, system, opener, time, remedy["perf_events"]),
    }


def _absent(way: str, processor: Callable[[], Processor], system: Path) -> str:
    return absent(way, processor(), system)


def _perf(root: Path, system: Path, opener: Opener, time: Time, remedy: Callable[[], str]) -> UsableDomains:
    """Raises Unavailable."""
    domains, left_out = open_events(system, opener, remedy, _limits(root))
    return usable(domains, left_out, time)


def _powercap(root: Path, time: Time, remedy: Callable[[], str]) -> UsableDomains:
    """Raises Unavailable."""
    try:
        os.listdir(root)
    except FileNotFoundError:
        raise Unavailable(f"there is no folder {root}", "absent", remedy()) from None
    except OSError as error:
        raise explain(error, str(root), REMEDIES) from None
    zones = _zones(root)
    names: dict[str, str] = {}
    for zone, path in sorted(zones.items()):
        try:
            names[zone] = read_text(path / "name").strip()
        except READ_ERRORS as error:
            raise explain(error, f"{zone}/name", REMEDIES) from None  # it may be a package
    domains: list[Domain] = []
    refused: dict[str, Unavailable] = {}
    for zone, scope, device in _devices(names):
        try:
            domains.append(_domain(zones[zone], scope, device))
        except READ_ERRORS as error:
            refused.setdefault(device, explain(error, zone, REMEDIES))
    if not any(name.startswith("package-") for name in names.values()):
        raise Unavailable(f"{root} lists no domain named package-*", "absent", remedy())
    return usable(domains, refused, time)


def _zones(root: Path) -> dict[str, Path]:
    """Flat in /sys/class, where every zone is a link; nested in /sys/devices/virtual, where they lead."""
    paths = [path for depth in (1, 2, 3) for path in root.glob("/".join(["intel-rapl*"] * depth))]
    return {path.name: path for path in reversed(paths) if _ZONE.fullmatch(path.name)}


def _devices(names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(zone, scope, device) of what is counted, MSR before MMIO. names: zone → its name."""
    found: list[tuple[str, str, str]] = []
    for zone in sorted(names, key=lambda zone: (not zone.startswith("intel-rapl:"), zone)):
        match = _ZONE.fullmatch(zone)
        above = names.get(match[1], "") if match else ""
        if names[zone].startswith("package-"):
            found.append((zone, "cpu", names[zone]))
        elif names[zone] == "dram" and above.startswith("package-"):
            found.append((zone, "dram", f"{above}/dram"))
    return found


def _limits(root: Path) -> Limits:
    """device → what its zone states of its power; that may be read where the counter may not."""
    zones, names = _zones(root), {}
    for zone, path in zones.items():
        try:
            names[zone] = read_text(path / "name").strip()
        except READ_ERRORS:
            continue
    limits: dict[str, Callable[[], PowerLimit]] = {}
    for zone, scope, device in _devices(names):
        limits.setdefault(device, partial(_limit, zones[zone], scope))
    return limits


def _limit(zone: Path, scope: str) -> PowerLimit:
    return stated_limit(zone, scope, read_text)


def read_text(path: Path) -> str:
    """Every powercap file is read here. Raises OSError, and ValueError on what is no text."""
    return path.read_text(encoding="ascii")


def _number(path: Path) -> int:
    """Raises OSError, and ValueError on what is no plain whole number: int() takes "1_000" and "+5", too."""
    text = read_text(path).strip()
    if not text.isdecimal():
        raise ValueError(f"{path.name} says {text[:40]!r}, no number")
    return int(text)


def _domain(zone: Path, scope: str, device: str) -> Domain:
    """Raises OSError, ValueError."""
    range_uj = _number(zone / "max_energy_range_uj")
    if range_uj <= 0:
        raise ValueError(f"a range of {range_uj} µJ")

    def read() -> int:
        count = _number(zone / "energy_uj")
        if count > range_uj:
            raise ValueError(f"{count} µJ, outside 0 … {range_uj}")
        return count

    limit_now = partial(_limit, zone, scope)
    return Domain("powercap", scope, device, read, 1e-6, REMEDIES, range_uj, limit_now(), limit_now)
