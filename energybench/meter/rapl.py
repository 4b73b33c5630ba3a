"""RAPL, the processor's own energy counters: joules per package, and per package's DRAM where it has a counter.

    /sys/class/powercap/intel-rapl:0/{name,energy_uj,max_energy_range_uj}     first way, `powercap`
    perf_event_open on the device `power`                                     second way, `perf_events`

Domains are chosen by their names. package-* each once: the same name by MSR and by MMIO is one counter, and so are dies
that mirror each other. dram is apart. psys holds the packages, core and uncore lie inside them: never added.

A powercap counter counts microjoules and starts again from 0 after max_energy_range_uj: a reading below the one before
it means one wrap, and the range is added. (The kernel gives the largest value; the true modulus is one hardware unit,
range / 2³² or 61 µJ, more, which is in the error.) So that two wraps never fall between two readings, the counters are
also read in the background, five times in the shortest time that a wrap can take.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.counter import AT_MOST
from energybench.meter.domains import POWER_MAX_W, PROBE_S, READ_ERRORS, Domain, UsableDomains, usable
from energybench.meter.perf_events import Opener, open_event, open_events, sysfs
from energybench.meter.reading import Energy, Reading, SamplerState
from energybench.meter.unavailable import Unavailable, UnavailableKind, explain, system_message

POWERCAP = "class/powercap"  # below /sys
VARIABLE = "ENERGYBENCH_POWERCAP"  # another folder to look in: the host's tree, mounted into a container

BURST = 2.0  # a domain may draw this much more than its rating
LONGEST_PERIOD_S, READS_PER_WRAP = 10.0, 5.0

REMEDIES: Mapping[UnavailableKind, str] = {
    "absent": "sudo modprobe intel_rapl_msr  (a virtual machine has none: run on the machine itself)",
    "masked": "start the container with -v /sys/devices/virtual/powercap:/host/powercap:ro "
    f"-e {VARIABLE}=/host/powercap",
    "denied": "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj "
    "/sys/class/powercap/intel-rapl:*/*/energy_uj  (until the next boot)",  # root's alone since Linux 5.10
    "unsupported": "no command mends it: the processor keeps no such count; use another machine or a wall meter",
}
_ZONE = re.compile(r"(intel-rapl(?:-\w+)?(?::\d+)*):\d+")  # intel-rapl:0, intel-rapl:0:1, intel-rapl-mmio:0
_EASIEST_FIRST = ("denied", "masked", "unsupported", "absent")


class Rapl:
    """The meter: source `rapl`, one Energy per package (scope `cpu`) and per DRAM (scope `dram`).

    energy_j is null with a reason where a reading failed at either end, where a wrap may have gone unseen, or where the
    counter stood still or was reset. error_j holds while the power at either end is at most twice the window's mean, or
    its highest mean between two readings: at each end the counter may lag by one update.
    """

    def __init__(self, domains: Sequence[Domain], time: Time, left_out: dict[str, str] | None = None) -> None:
        self.domains, self.left_out = tuple(domains), dict(left_out or {})  # left_out: device → reason
        wraps_s = [d.range_j / d.power_max_w for d in self.domains if d.range_j is not None]
        self.period_s = min([LONGEST_PERIOD_S, *(seconds / READS_PER_WRAP for seconds in wraps_s)])
        self._time = time
        self._counts: list[_DomainCount] = []
        self._end: Callable[[], float] = lambda: 0.0
        self._started_ns = self._reads = 0

    def start(self) -> None:
        self._end()  # of a window that was abandoned
        self._reads = 1
        self._counts = [_DomainCount(domain, self._time) for domain in self.domains]
        self._started_ns = self._time.now_ns()
        self._end = self._time.every(self.period_s, self._read_counters)

    def stop(self) -> Reading:
        cpu_s, self._end = self._end(), lambda: 0.0
        failed = self._read_counters()
        wall_s = (self._time.now_ns() - self._started_ns) / 1e9
        energy = [count.energy(wall_s, reason) for count, reason in zip(self._counts, failed, strict=True)]
        sampler = SamplerState(
            period_s=self.period_s,
            samples=self._reads,
            missed=sum(count.missed for count in self._counts),
            largest_gap_s=max((count.largest_gap_s for count in self._counts), default=0.0),
            cpu_s=cpu_s,
        )
        return Reading(wall_s=max(0.0, wall_s), energy=energy, sampler=sampler)

    def nested(self) -> Rapl:
        """A meter of a stretch inside this one's running window: the same counters, counted for themselves."""
        return Rapl(self.domains, self._time, self.left_out)

    def _read_counters(self) -> list[str | None]:
        self._reads += 1
        return [count.step() for count in self._counts]


class _DomainCount:
    """One domain in one window: counts since its first reading, unwrapped, and what was wrong if anything."""

    def __init__(self, domain: Domain, time: Time) -> None:
        self._domain, self._time = domain, time
        self._total = self._wraps = self._last = self.missed = 0
        self.largest_gap_s = self._power_w = 0.0
        self._failure: str | None = None
        try:
            self._last = domain.read()
        except READ_ERRORS as error:
            self.missed, self._failure = 1, f"it could not be read at the start: {system_message(error)}"
        self._last_ns = time.now_ns()

    def step(self) -> str | None:
        """Read on. Returns why not: a failure between two good readings loses nothing if they are close enough."""
        try:
            count = self._domain.read()
        except READ_ERRORS as error:
            self.missed += 1
            return system_message(error)
        now_ns = self._time.now_ns()
        moved, gap_s = count - self._last, (now_ns - self._last_ns) / 1e9
        back = moved < 0
        if back and self._domain.range_counts is not None:
            moved += self._domain.range_counts
            self._wraps += 1
        joules = moved * self._domain.joules_per_count
        self._failure = self._failure or self._fault(joules, back, gap_s)
        if gap_s > 10 * self._domain.update_s:  # in a shorter one the counter's own steps would look like power
            self._power_w = max(self._power_w, joules / gap_s)
        self._total += moved
        self._last, self._last_ns, self.largest_gap_s = count, now_ns, max(self.largest_gap_s, gap_s)
        return None

    def _fault(self, joules: float, back: bool, gap_s: float) -> str | None:
        domain = self._domain
        if domain.range_j is not None and gap_s >= domain.range_j / domain.power_max_w:
            return f"it was not read for {gap_s:.3g} s, in which it may have wrapped unseen"
        if joules == 0 and gap_s >= PROBE_S:
            return f"the counter stood still for {gap_s:.3g} s"
        # Back by a wrap or by a reset? A wrap means no more energy than the domain can draw.
        possible_j = BURST * domain.power_max_w * (gap_s + 2 * domain.update_s)
        if back and (domain.range_counts is None or joules > possible_j):
            return "the counter was reset"
        return None

    def energy(self, wall_s: float, failed: str | None) -> Energy:
        """failed: why the last reading, at the end of the window, was none."""
        domain = self._domain
        detail: dict[str, Any] = {
            "way": domain.way,
            "wraps": self._wraps,
            "range_j": domain.range_j,
            "update_s": domain.update_s,
        }
        if domain.mirrors:
            detail["mirrors"] = list(domain.mirrors)
        common: dict[str, Any] = {"source": "rapl", "scope": domain.scope, "device": domain.device, "detail": detail}
        reason = self._failure or (f"it could not be read at the end: {failed}" if failed else None)
        if reason is None and self._total == 0:
            reason = "the counter did not move: the window is shorter than its update"
            if wall_s <= 2 * domain.update_s:
                detail[AT_MOST] = wall_s * domain.power_max_w
        if reason is not None:
            return Energy(**common, reason=reason)
        joules = self._total * domain.joules_per_count
        power_w = max(self._power_w, joules / wall_s if wall_s else 0.0)
        unit_j = max(domain.joules_per_count, (domain.range_j or 0.0) / 2**32)
        error_j = 2 * domain.update_s * power_w + (2 + self._wraps) * unit_j
        return Energy(**common, energy_j=joules, error_j=error_j)


def open_rapl(
    time: Time = REAL_TIME, root: Path | None = None, *, system: Path | None = None, opener: Opener = open_event
) -> Rapl:
    """The meter of this machine's processor: the first way of reading that counts every package.

    Args:
        time: the clock that the sensors run on
        root: where powercap's zones are, by default $ENERGYBENCH_POWERCAP or class/powercap below `system`
        system: where the power events are described, by default $ENERGYBENCH_SYSFS or /sys
        opener: what opens a power event

    Raises:
        Unavailable: where neither way works, with the reason of both
    """
    failed: dict[str, Unavailable] = {}
    for way, find in _ways(time, root, system, opener).items():
        try:
            domains, left_out = find()
        except Unavailable as unavailable:
            failed[way] = unavailable
        else:
            return Rapl(domains, time, _texts(left_out))
    easiest = min(failed.values(), key=lambda unavailable: _EASIEST_FIRST.index(unavailable.kind))
    reasons = "; ".join(f"{way}: {unavailable.reason}" for way, unavailable in failed.items())
    raise Unavailable(reasons, easiest.kind, easiest.remedy)


def survey(
    root: Path | None = None, time: Time = REAL_TIME, *, system: Path | None = None, opener: Opener = open_event
) -> list[dict[str, Any]]:
    """Each way: {way, usable, kind, reason, remedy, domains, left_out}; the reason is null if it is usable."""
    rows: list[dict[str, Any]] = []
    for way, find in _ways(time, root, system, opener).items():
        row: dict[str, Any] = {
            "way": way,
            "usable": True,
            "kind": None,
            "reason": None,
            "remedy": None,
            "domains": [],
            "left_out": {},
        }
        try:
            domains, left_out = find()
        except Unavailable as unavailable:
            row.update(usable=False, kind=unavailable.kind, reason=unavailable.reason, remedy=unavailable.remedy)
        else:
            row["domains"] = [domain.device for domain in domains]
            row["left_out"] = _texts(left_out)
        rows.append(row)
    return rows


def _texts(left_out: Mapping[str, Unavailable]) -> dict[str, str]:
    return {device: str(unavailable) for device, unavailable in left_out.items()}


def _ways(time: Time, root: Path | None, system: Path | None, opener: Opener) -> dict[str, Callable[[], UsableDomains]]:
    system = system or sysfs()
    root = root or Path(os.environ.get(VARIABLE) or system / POWERCAP)
    return {"powercap": partial(_powercap, root, time), "perf_events": partial(_perf, system, opener, time)}


def _perf(system: Path, opener: Opener, time: Time) -> UsableDomains:
    """Raises Unavailable."""
    domains, left_out = open_events(system, opener)
    return usable(domains, left_out, time)


def _powercap(root: Path, time: Time) -> UsableDomains:
    """Raises Unavailable."""
    try:
        os.listdir(root)
    except FileNotFoundError:
        raise Unavailable(f"there is no folder {root}", "absent", REMEDIES["absent"]) from None
    except OSError as error:
        raise explain(error, str(root), REMEDIES) from None
    # Flat in /sys/class, where every zone is a link; nested in /sys/devices/virtual, where they lead.
    paths = [path for depth in (1, 2, 3) for path in root.glob("/".join(["intel-rapl*"] * depth))]
    zones = {path.name: path for path in reversed(paths) if _ZONE.fullmatch(path.name)}
    names: dict[str, str] = {}
    for zone, path in sorted(zones.items()):
        try:
            names[zone] = read_text(path / "name").strip()
        except READ_ERRORS as error:
            raise explain(error, f"{zone}/name", REMEDIES) from None  # it may be a package
    domains: list[Domain] = []
    refused: dict[str, Unavailable] = {}
    for zone in sorted(zones, key=lambda zone: (not zone.startswith("intel-rapl:"), zone)):  # MSR before MMIO
        match = _ZONE.fullmatch(zone)
        above = names.get(match[1], "") if match else ""
        if names[zone].startswith("package-"):
            scope, device = "cpu", names[zone]
        elif names[zone] == "dram" and above.startswith("package-"):
            scope, device = "dram", f"{above}/dram"
        else:
            continue
        try:
            domains.append(_domain(zones[zone], scope, device))
        except READ_ERRORS as error:
            refused.setdefault(device, explain(error, zone, REMEDIES))
    if not any(name.startswith("package-") for name in names.values()):
        raise Unavailable(f"{root} lists no domain named package-*", "absent", REMEDIES["absent"])
    return usable(domains, refused, time)


def read_text(path: Path) -> str:
    """Every powercap file is read here. Raises OSError, and ValueError on what is no text."""
    return path.read_text(encoding="ascii")


def _domain(zone: Path, scope: str, device: str) -> Domain:
    """Raises OSError, ValueError."""
    range_uj = int(read_text(zone / "max_energy_range_uj"))
    if range_uj <= 0:
        raise ValueError(f"a range of {range_uj} µJ")

    def read() -> int:
        count = int(read_text(zone / "energy_uj"))
        if not 0 <= count <= range_uj:
            raise ValueError(f"{count} µJ, outside 0 … {range_uj}")
        return count

    ratings = []
    for path in zone.glob("constraint_*_max_power_uw"):
        try:
            ratings.append(BURST * int(read_text(path)) / 1e6)
        except READ_ERRORS:  # many constraints state none
            continue
    power_max_w = max(ratings, default=0.0)
    power_max_w = power_max_w if power_max_w > 0 else POWER_MAX_W
    return Domain("powercap", scope, device, read, 1e-6, REMEDIES, range_uj, power_max_w)
