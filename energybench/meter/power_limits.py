"""What a powercap zone states of the power that its part can draw, made into the bound of a sensor's figures.

constraint_0_{name,power_limit_uw,max_power_uw}     long_term: held over seconds; max_power is the part's rating
constraint_1_…                                      short_term: held over milliseconds
constraint_2_…                                      peak_power
enabled                                             0: none of the limits is held
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from energybench.common.units import format_si
from energybench.meter.plausible import PowerLimit

# A short-term or peak limit is what the processor steers to: it is passed by a few per cent for a moment.
OVERSHOOT = 1.25
# Of a part that states a rating or a long-term limit alone: laptops of 15 W burst to 57 W, desktops of 65 W to 219 W.
BURST = 4.0
# Of a part that states nothing. A statement beyond it means "unlimited" (BIOSes write 4095 W), one below 1 W none.
UNSTATED: Mapping[str, PowerLimit] = {
    "cpu": PowerLimit(1000.0, "the most that a package is taken to draw; this one states no limit"),
    "dram": PowerLimit(300.0, "the most that a package's memory is taken to draw; this one states no limit"),
}
LEAST_W = 1.0

_STATED = re.compile(r"constraint_(\d+)_(power_limit_uw|max_power_uw)")
_BY_NUMBER = {"0": "long_term", "1": "short_term", "2": "peak_power"}  # where a constraint gives no name
_WORDS = {
    ("long_term", "power_limit_uw"): "long-term limit",
    ("long_term", "max_power_uw"): "rating",
    ("short_term", "power_limit_uw"): "short-term limit",
    ("peak_power", "power_limit_uw"): "peak limit",
}


def stated_limit(zone: Path, scope: str, read: Callable[[Path], str]) -> PowerLimit:
    """The most that the part of a zone can draw, as the system states it now.

    Args:
        zone: its folder
        scope: "cpu" or "dram"
        read: gives a file's text; raises OSError or ValueError, which means that nothing is stated there

    Returns:
        1.25 times the largest limit if a short-term or peak limit is stated, else 4 times the largest of rating and
        long-term limit, else that of `UNSTATED`, which nothing exceeds.
    """

    def text(name: str) -> str:
        try:
            return read(zone / name).strip()
        except (OSError, ValueError):
            return ""

    most = UNSTATED[scope]
    held = text("enabled") != "0"
    stated: list[tuple[float, str, str]] = []  # (watts, constraint, in words)
    for match in filter(None, map(_STATED.fullmatch, _listed(zone))):
        number, kind = match[1], match[2]
        written = text(match[0])
        watts = float(written) / 1e6 if written.isdecimal() else 0.0
        if LEAST_W <= watts <= most.watts and (held or kind == "max_power_uw"):
            constraint = text(f"constraint_{number}_name") or _BY_NUMBER.get(number, "")
            stated.append((watts, constraint, _WORDS.get((constraint, kind), "maximum")))
    if not stated:
        return most
    factor = BURST if all(constraint == "long_term" for _, constraint, _ in stated) else OVERSHOOT
    watts, _, words = max(stated)
    if factor * watts >= most.watts:
        return most
    return PowerLimit(factor * watts, f"{factor:g} times its {words} of {format_si(watts, 'W')}")


def _listed(zone: Path) -> list[str]:
    try:
        return sorted(path.name for path in zone.iterdir())
    except OSError:
        return []
