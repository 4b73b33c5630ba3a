"""Numbers and sentences, one way of writing them. What must stay on one line is joined by no-break spaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from energybench.common.escaping import NB, printable
from energybench.meter.combine import in_short as in_short_device
from energybench.meter.modelled import MODEL, whole_machine
from energybench.meter.not_seen import in_short
from energybench.verdict.devices import plural

if TYPE_CHECKING:
    from energybench.meter.reading import Energy
    from energybench.verdict.figures import Measured, Quality, Row
    from energybench.verdict.pairing import EnergyFigure

NOTHING = "–"
UNAVAILABLE = f"not{NB}available"
SHOWS = 0.0005  # of a share: less is 0.0 pp
FINEST = 6  # decimals, past which two figures are taken for the same
clean = printable
BETTER = frozenset({"saves", "faster"})
WORSE = frozenset({"costs more", "slower"})
SAME = frozenset({"no saving", "no difference"})


def plain(text: str) -> str:
    """Ordinary spaces, once lines are broken."""
    return text.replace(NB, " ")


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A typographic minus, no negative zero."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"−{text}" if value < 0 else f"+{text}" if sign else text


def percent(value: float | None, decimals: int = 1) -> str:
    return NOTHING if value is None else f"{number(100 * value, decimals)}{NB}%"


def interval(low: float, high: float, decimals: int) -> str:
    return f"[{number(100 * low, decimals)},{NB}{number(100 * high, decimals)}]"


def measured(figure: Measured | None) -> str:
    """31 % [27, 35]; the interval from three blocks on."""
    if figure is None:
        return NOTHING
    return saving(figure.saving_rel, figure.low_rel, figure.high_rel, figure.interval is not None)


def saving(share: float, low: float | None, high: float | None, bounded: bool = True) -> str:
    """A decimal only where the interval is narrow enough to deserve it. `bounded`: whether it is shown."""
    decimals = 1 if low is None or high is None or high - low < 0.04 else 0
    text = percent(share, decimals)
    return text if low is None or high is None or not bounded else f"{text}{NB}{interval(low, high, decimals)}"


def points(value: float, fraction: bool, decimals: int | None = None, unit: str = "") -> str:
    """A change of quality: percentage points of a fraction, else the metric's own unit."""
    if fraction:
        return f"{number(100 * value, 1 if decimals is None else decimals, sign=True)}{NB}pp"
    text = number(value, 3 if decimals is None else decimals, sign=True)
    return f"{text}{NB}{unit}" if unit else text


def decimals_of(value: float, least: int) -> int:
    """As many as a margin was written with: 0.25 pp is not 0.2."""
    return max(least, len(f"{Decimal(f'{value:.6g}'):f}".partition(".")[2]))


def is_all(share: float) -> bool:
    """Whether a saving is so near to everything that it would be printed as 100 %: nobody sees that, or more."""
    return share >= 0.995


def as_written(share: float) -> str:
    """A share that the suite's author chose, as it was written."""
    return percent(share, decimals_of(100 * share, 1))


def accepted(limit: float, fraction: bool, unit: str = "") -> str:
    """The worst change that the suite accepts, as it was written."""
    return points(limit, fraction, _decimals_of_limit(limit, fraction), unit)


def _decimals_of_limit(limit: float, fraction: bool) -> int:
    return decimals_of(100 * limit, 1) if fraction else decimals_of(limit, 3)


def beside(change: float, limit: float, fraction: bool, unit: str = "") -> tuple[str, str]:
    """A change and what is accepted, in as many decimals as tell the two apart."""
    decimals = _decimals_of_limit(limit, fraction)
    return _apart(lambda value, digits: points(value, fraction, digits, unit), change, limit, decimals)


def quality_interval(quality: Quality, accepted: bool = True) -> str:
    """ "accuracy −0.5 pp [−0.9, −0.1], −1.0 pp is accepted": in as many decimals as tell each end from what is."""
    ends = [end for end in (quality.bound, quality.best) if end is not None]
    fraction, unit = quality.fraction, quality.unit
    decimals: int | None = None
    if quality.limit is not None:
        decimals = _decimals_of_limit(quality.limit, fraction)
        while decimals < FINEST and any(
            end != quality.limit and points(end, fraction, decimals) == points(quality.limit, fraction, decimals)
            for end in (*ends, quality.change)
        ):
            decimals += 1
    text = f"{quality.metric} {points(quality.change, fraction, decimals, unit)}"
    if len(ends) == 2:
        scale, digits = (100, 1) if fraction else (1, 3)
        low, high = (number(scale * end, digits if decimals is None else decimals) for end in sorted(ends))
        text += f"{NB}[{low},{NB}{high}]"
    if quality.limit is None or not accepted:
        return text
    return f"{text}, {points(quality.limit, fraction, decimals, unit)} is accepted"


def share_beside(share: float, limit: float) -> str:
    """A share that is held against a margin, in as many decimals as tell it from that."""
    return _apart(percent, share, limit, decimals_of(100 * limit, 1))[0]


def _apart(show: Callable[[float, int], str], value: float, limit: float, decimals: int) -> tuple[str, str]:
    while show(value, decimals) == show(limit, decimals) and decimals < FINEST:
        decimals += 1
    return show(value, decimals), show(limit, decimals)


def quality_change(quality: Quality | None) -> str:
    return NOTHING if quality is None else points(quality.change, quality.fraction, unit=quality.unit)


def quality_word(row: Row) -> str:
    """The verdict on quality, as a table has it."""
    return NOTHING if row.quality_verdict == "no verdict" else row.quality_verdict


def realised(row: Row) -> str:
    """Measured / estimated, where something was saved; a cost, and what may be one, realises nothing."""
    interval = row.measured.interval if row.measured else None
    if row.realised_rel is None or interval is None or interval[0] <= 0:
        return NOTHING
    return percent(row.realised_rel, 0)


PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}  # of powers of 1000


def si(value: float, unit: str) -> str:
    """Three figures with a prefix: 1.25 kJ."""
    if value == 0 or not math.isfinite(value):
        return f"{number(value, 0)}{NB}{unit}"
    value = float(f"{value:.3g}")  # first, so that 999.6 becomes 1.00 k
    power = max(-3, min(5, math.floor(math.log10(abs(value)) / 3 + 1e-12)))
    scaled = value / 1000**power
    decimals = max(0, 2 - math.floor(math.log10(abs(scaled)) + 1e-12))
    return f"{number(scaled, decimals)}{NB}{PREFIXES[power]}{unit}"


def duration(value: float) -> str:
    """Seconds, minutes or hours."""
    if value < 1:
        return si(value, "s")
    if value < 120:
        return f"{number(value, 1)}{NB}s"
    return f"{number(value / 60, 1)}{NB}min" if value < 7200 else f"{number(value / 3600, 1)}{NB}h"


def blocks(n: int) -> str:
    return units(n, "block")


def units(n: int, unit: str) -> str:
    """ "12 blocks", "4 GPUs"."""
    return f"{n}{NB}{unit if n == 1 else plural(unit)}"


def repeated(row: Row) -> str:
    """How often a row was repeated: "12 blocks", or "12 blocks on 4 GPUs"."""
    return blocks(row.n) if row.unit == "block" else f"{blocks(row.n)} on {units(row.units, row.unit)}"


SENSORS = {
    "gpu_counter": "the card's energy counter",
    "gpu_power_integral": "the card's integrated power",
    "rapl": "RAPL",
}
ENERGY_OFF = "Energy was not asked for, so methods are compared by time."


def sensor(source: str) -> str:
    """A source as one says it."""
    if source.startswith("hwmon("):
        return source.replace("(", " (")
    return SENSORS.get(source, source.removeprefix("model(").removeprefix("meter(").removesuffix(")"))


def modelled_of(energy: EnergyFigure) -> str:
    """What codecarbon's figure is of, and at which load; empty for what was measured, or modelled by somebody else."""
    if energy.measured or energy.energy_j is None or not energy.source.startswith(MODEL):
        return ""
    return whole_machine([] if energy.load_rel is None else [energy.load_rel], mean=energy.energy_j.n > 1)


def energy_measured(
    sensors: Sequence[tuple[str, str]],
    everywhere: bool,
    missing: Sequence[Energy],
    devices: Sequence[str] = (),
    of: Mapping[tuple[str, str], Sequence[str]] = MappingProxyType({}),
) -> str:
    """Which parts of the machine were measured, by what; and which were not, and which devices.

    of: (source, scope) → the devices that it measured
    """
    measured_by = ", ".join(
        f"{scope} by {sensor(source)}{_listed(of.get((source, scope), ()))}" for source, scope in sensors
    )
    mixed = "" if everywhere else " In some trials only: pairs without the same sensors are compared by time."
    seen = {scope for _, scope in sensors}
    return f"Energy is measured: {measured_by}.{mixed}{_not_seen([e for e in missing if e.scope not in seen], devices)}"


def _listed(devices: Sequence[str]) -> str:
    """Where there are several, which: their joules are added."""
    return f" ({' + '.join(map(in_short_device, devices))})" if len(devices) > 1 else ""


def energy_not_measured(modelled: bool, missing: Sequence[Energy], devices: Sequence[str] = ()) -> str:
    not_seen = _not_seen(missing, devices)
    if not modelled:
        return f"Energy is not available, so methods are compared by time.{not_seen}"
    return (
        "Energy is modelled, not measured: this machine has no energy sensor that could be read. "
        f"A modelled figure is never a saving, so methods are compared by time.{not_seen}"
    )


def _not_seen(missing: Sequence[Energy], devices: Sequence[str]) -> str:
    """Each part that no sensor sees once, in short, then each device; a whole reason stands in the table of energies.

    missing: null figures, of which those that name a device are among `devices`, as `not_seen` words them
    """
    parts = [energy for energy in missing if not energy.device]
    short = dict.fromkeys((e.scope, in_short(e)) for e in parts)
    words = [*(f"{scope} ({reason})" for scope, reason in short), *devices]
    return f" Not seen: {', '.join(words)}." if words else ""


def what(quantity: str, scope: str) -> str:
    """In a table or a label: "time", "energy (cpu)"."""
    return "time" if quantity == "time" else f"energy ({scope})"


OWNERS = {
    "gpu": "the card's",
    "cpu": "the processor's",
    "dram": "the memory's",
    "module": "the module's",
    "machine": "the whole machine's",
}


def whose(scope: str) -> str:
    """In a sentence, of which part of the machine: "the processor's energy"; "cpu + gpu" names both."""
    owners = [OWNERS.get(part, f"{part}'s") for part in scope.split(" + ")]
    return f"{' and '.join(owners)} energy"


FEWER_APART = 0.01  # FLOPs and bytes saved, past which it is worth a word


def counted(row: Row) -> str:
    """The count, and what sampling some of the steps leaves open where that shows: half of a 95 % interval."""
    text, open_ = nominal(row.counted_rel, row), row.counted_error_rel
    return f"{text} ±{NB}{number(100 * open_, 1)}{NB}pp" if row.counted_rel is not None and open_ >= SHOWS else text


def nominal(value: float | None, row: Row) -> str:
    """An estimate or a count; where none can be had that is said, and the notes say why."""
    return UNAVAILABLE if value is None and row.unavailable else percent(value)


NOMINAL = ("claimed", "estimated", "counted")


def nominal_cells(row: Row) -> tuple[str, str, str]:
    """What the paper, the formulas and the counter say of one row, in the order of NOMINAL."""
    return percent(row.claimed_rel), nominal(row.estimated_rel, row), counted(row)


def nominal_columns(rows: Sequence[Row]) -> list[tuple[tuple[str, ...], list[str]]]:
    """(titles, cells) of the columns that say what a method saves nominally: one column where they agree in every row.

    What nobody claims, estimates or counts has no column; the notes say why.
    """
    columns: list[tuple[tuple[str, ...], list[str]]] = []
    for title, cells in zip(NOMINAL, zip(*map(nominal_cells, rows), strict=True), strict=True):
        if all(cell in (NOTHING, UNAVAILABLE) for cell in cells):
            continue
        if columns and columns[-1][1] == list(cells):
            columns[-1] = ((*columns[-1][0], title), columns[-1][1])
        else:
            columns.append(((title,), list(cells)))
    return columns


def without_common_prefix(names: Sequence[str]) -> tuple[str, list[str]]:
    """What all names begin with, as a heading, and what is left of each: "drop[…]", ["rate=0.1", "rate=0.5"].

    It ends at a space, a slash, a colon or a bracket that all names close, and leaves something of each.
    """
    columns = list(zip(*names, strict=False)) if len(set(names)) > 1 else []
    same = next((place for place, letters in enumerate(columns) if len(set(letters)) > 1), len(columns))
    shared = names[0][:same] if columns else ""
    for place in range(len(shared), 0, -1):
        prefix, rest = shared[:place], [name[place:] for name in names]
        bracket = prefix.endswith("[") and all(part.endswith("]") for part in rest)
        if bracket:
            rest = [part[:-1] for part in rest]
        if not (bracket or prefix[-1] in " /:") or not prefix.strip() or not all(part.strip() for part in rest):
            continue
        return f"{prefix}…]" if bracket else f"{prefix.rstrip()} …", rest
    return "", list(names)
