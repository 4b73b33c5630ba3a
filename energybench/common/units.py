"""Quantities with their units: SI inside, spelled out at the edge.

    "20 min" → 1200.0 s    "1 %" → 0.01    "0.5 pp" → 0.005    "2 GB" → 2_000_000_000    "3 steps" → Quantity

A bare number that could be two things is refused: `limit = 30` may be seconds or minutes. The types below are
floats, integers and Quantity to Python, and strings with a unit to pydantic and to an editor's JSON Schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from energybench.common.errors import nearest


class UnitError(ValueError):
    """A value without a unit, with a wrong one, or out of range; `hint` says what to type."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Quantity:
    """A count of "s", "steps", "epochs", "W" or "Hz". `str` gives back what the parser reads."""

    count: float
    unit: str

    def __str__(self) -> str:
        return f"{repr(self.count).removesuffix('.0')} {self.unit}"


@dataclass(frozen=True, slots=True)
class _QuantityKind:
    """One kind of quantity; `units` maps what is written to (canonical unit, factor)."""

    word: str
    units: Mapping[str, tuple[str, str]]
    examples: tuple[str, ...]
    ambiguity: str  # what a bare number could be mistaken for
    most: float = math.inf
    positive: bool = False
    whole: frozenset[str] = frozenset()
    spelled: Callable[[str], str] = str  # a unit as written → as `units` has it
    pattern: str = ""  # of the unit in an editor's JSON Schema; empty: one of `units`


_TIME = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), ("s", "0.001")),
    **dict.fromkeys(("s", "second", "seconds"), ("s", "1")),
    **dict.fromkeys(("min", "minute", "minutes"), ("s", "60")),
    **dict.fromkeys(("h", "hour", "hours"), ("s", "3600")),
}
_STEPS = dict.fromkeys(("steps", "step", "iterations", "iteration"), ("steps", "1"))
_EPOCHS = dict.fromkeys(("epochs", "epoch"), ("epochs", "1"))
_BYTES = {
    "B": ("B", "1"),
    **{f"{prefix}B": ("B", str(1000**power)) for power, prefix in enumerate("kMGT", 1)},
    "KB": ("B", "1000"),
    **{f"{prefix}iB": ("B", str(1024**power)) for power, prefix in enumerate("KMGT", 1)},
}

_PREFIXES = {
    "k": "1000",
    "M": "1000000",
    "m": "0.001",
    "u": "0.000001",
    "\N{MICRO SIGN}": "0.000001",
    "\N{GREEK SMALL LETTER MU}": "0.000001",
    "": "1",
}
_ENERGY = {
    **{f"{prefix}J": ("J", factor) for prefix, factor in _PREFIXES.items()},
    **{f"{prefix}Wh": ("J", str(Decimal(factor) * 3600)) for prefix, factor in _PREFIXES.items()},
}

_SECONDS = _QuantityKind("a time", _TIME, ("20 s", "30 min", "1.5 h", "200 ms"), "seconds or minutes")
_WARMUP = _QuantityKind(
    "a warm-up", {**_TIME, **_STEPS}, ("20 s", "3 steps"), "seconds or steps", whole=frozenset({"steps"})
)
_PERIOD = _QuantityKind(
    "a period",
    {**_EPOCHS, **_STEPS},
    ("2 epochs", "300 steps"),
    "epochs or steps",
    positive=True,
    whole=frozenset({"steps"}),
)
_RATIO = _QuantityKind("a share", {"%": ("", "0.01")}, ("1 %", "0.5 %"), "a ratio or a percentage", most=1)
_METRIC_UNITS = dict.fromkeys(("units", "unit"), ("units", "1"))  # the metric's own: a loss in nats, a ratio
_POINTS = _QuantityKind(
    "a difference in percentage points",
    {"pp": ("", "0.01"), **_METRIC_UNITS},
    ("0.5 pp", "2 pp"),
    "a ratio or percentage points",
    most=1,
)
_WATTS = _QuantityKind(
    "a power",
    {f"{prefix}W": ("W", factor) for prefix, factor in (("", "1"), ("k", "1000"))},
    ("200 W", "0.3 kW"),
    "watts or a share",
    positive=True,
)
_HERTZ = _QuantityKind(
    "a clock",
    {f"{prefix}Hz": ("Hz", factor) for prefix, factor in (("", "1"), ("M", "1000000"), ("G", "1000000000"))},
    ("1200 MHz", "1.2 GHz"),
    "megahertz or a share",
    positive=True,
)
_JOULES = _QuantityKind("an energy", _ENERGY, ("12 J", "3 kJ", "5 mWh"), "joules or watt-hours", positive=True)

# Grams of CO2e per kWh: every factor is an exact decimal. The pound is 453.59237 g by definition.
_MASSES = {
    "mg": "0.001",
    **dict.fromkeys(("g", "gram", "grams"), "1"),
    "kg": "1000",
    **dict.fromkeys(("t", "tonne", "tonnes"), "1000000"),
    **dict.fromkeys(("lb", "lbs", "pound", "pounds"), "453.59237"),
}
_PER_ENERGY = {
    "Wh": "1000",
    "kWh": "1",
    "MWh": "0.001",
    "GWh": "0.000001",
    "TWh": "0.000000001",
    "J": "3600000",
    "kJ": "3600",
    "MJ": "3.6",
    "GJ": "0.0036",
    "TJ": "0.0000036",
}
_CO2 = r"(?:\s*[Cc][Oo][2₂](?:[-. ]?[Ee][Qq]?)?)?"  # gCO2/kWh, g CO2e/kWh, gCO2-eq/kWh, gCO2.eq/kWh
_PER = r"\s*(?:/|per)\s*"
MOST_G_KWH = 5000.0  # no fuel gives as much: the dirtiest coal stays below 2,000


def _intensity_unit(unit: str) -> str:
    match = re.fullmatch(rf"(\S+?){_CO2}{_PER}(\S+)", unit.strip())
    return f"{match[1]}/{match[2]}" if match else unit


_INTENSITY = _QuantityKind(
    "a carbon intensity",
    {
        f"{mass}/{energy}": ("g/kWh", str(Decimal(grams) * Decimal(per)))
        for mass, grams in _MASSES.items()
        for energy, per in _PER_ENERGY.items()
    },
    ("56 g/kWh", "0.056 kg/kWh", "771 lb/MWh"),
    "grams or pounds, per kilowatt-hour or megawatt-hour",
    positive=True,
    spelled=_intensity_unit,
    pattern=f"(?:{'|'.join(_MASSES)}){_CO2}{_PER}(?:{'|'.join(_PER_ENERGY)})",
)
_SIZE = _QuantityKind("a size", _BYTES, ("2 GB", "512 MiB"), "bytes or gigabytes", whole=frozenset({"B"}))

_WRITTEN = re.compile(
    r"([+-]?)((?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf))\s*(.*)", re.DOTALL
)


def _parse(value: Any, kind: _QuantityKind) -> Quantity:
    example = f'write "{kind.examples[0]}"' + "".join(f' or "{other}"' for other in kind.examples[1:2])
    if isinstance(value, Quantity):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise UnitError(f"{value} has no unit: it could be {kind.ambiguity}", example)
    if not isinstance(value, str):
        raise UnitError(f'expected {kind.word} such as "{kind.examples[0]}"', example)
    match = _WRITTEN.fullmatch(value.strip().replace("\N{MINUS SIGN}", "-"))
    if match is None:
        raise UnitError(f'"{value}" is not {kind.word}: it starts with no number', example)
    sign, number, unit = match.groups()
    if "," in number:
        raise UnitError(f'"{value}" has a comma in its number', f'write "{value.replace(",", ".")}"')
    if not unit:
        raise UnitError(f'"{value}" has no unit: it could be {kind.ambiguity}', example)
    unit = kind.spelled(unit)
    if unit not in kind.units:
        raise UnitError(f"\"{value}\" is not {kind.word}: unknown unit '{unit}'", _near_unit(unit, kind) or example)
    canonical, factor = kind.units[unit]
    if not math.isfinite(float(number)):
        raise UnitError(f'"{value}" is not finite', example)
    amount = float(Decimal(number) * Decimal(factor))  # exact until here: "0.1 %" is the float 0.001
    if sign == "-" and amount:
        raise UnitError(f'"{value}" is negative: {kind.word} is 0 or more', example)
    if not math.isfinite(amount):
        raise UnitError(f'"{value}" is too large', example)
    if kind.positive and not amount:
        raise UnitError(f'"{value}" is zero: {kind.word} is more than 0', example)
    if amount > kind.most and canonical != "units":
        raise UnitError(f'"{value}" is more than 100 {unit}', example)
    if canonical in kind.whole and not amount.is_integer():
        raise UnitError(f'"{value}" is not a whole number of {unit}', example)
    return Quantity(amount, canonical)


def _near_unit(unit: str, kind: _QuantityKind) -> str:
    if unit == "%" and "pp" in kind.units:
        return 'the unit of a difference between two percentages is "pp"'
    same = [known for known in kind.units if known.lower() == unit.lower()]
    if same or kind.pattern:  # of many units, the nearest by letters may be another one by size
        return f"did you mean '{same[0]}'?" if same else ""
    return nearest(unit, kind.units)


def parse_seconds(value: Any) -> float:
    """ "1.5 h" → 5400.0. Raises UnitError."""
    return _parse(value, _SECONDS).count


def parse_ratio(value: Any) -> float:
    """ "1 %" → 0.01, at most 1. Raises UnitError."""
    return _parse(value, _RATIO).count


def parse_points(value: Any) -> float:
    """ "0.5 pp" → 0.005, at most 1; "0.02 units" → 0.02, in the metric's own unit. Raises UnitError."""
    return _parse(value, _POINTS).count


def parse_bytes(value: Any) -> int:
    """ "512 MiB" → 536870912. Raises UnitError."""
    return int(_parse(value, _SIZE).count)


def parse_joules(value: Any) -> float:
    """ "12 J" → 12.0, "5 mWh" → 18.0. Raises UnitError."""
    return _parse(value, _JOULES).count


def parse_intensity(value: Any) -> float:
    """ "56 g/kWh", "56 gCO2e/kWh", "771 lb/MWh" → kilograms of CO2e per joule. Raises UnitError."""
    if isinstance(value, str) and re.search(r"(?<![A-Za-z])tons?(?!ne|[a-z])", value):
        raise UnitError(f'"{value}": a ton may be 1000 kg or 2000 lb', 'write t for 1000 kg: "0.056 t/MWh"')
    if isinstance(value, str) and re.search(r"(?:g|lb|t)\s*C\s*/", value):
        raise UnitError(f'"{value}" counts carbon, not CO2', "12 g of carbon are in 44 g of CO2: write CO2")
    grams_kwh = _parse(value, _INTENSITY).count
    if grams_kwh > MOST_G_KWH:
        message = f'"{value}" is {grams_kwh:,.0f} g/kWh: no fuel gives more than {MOST_G_KWH:,.0f}'
        raise UnitError(message, "g or kg, kWh or MWh?")
    return grams_kwh / 1e3 / 3.6e6


def parse_warmup(value: Any) -> Quantity:
    """ "20 s" → Quantity(20.0, "s"); "3 steps" → Quantity(3.0, "steps"). Raises UnitError."""
    return _parse(value, _WARMUP)


def parse_period(value: Any) -> Quantity:
    """ "2 epochs" → Quantity(2.0, "epochs"); "300 iterations" counts steps. Raises UnitError."""
    return _parse(value, _PERIOD)


def parse_watts(value: Any) -> Quantity:
    """ "200 W" → Quantity(200.0, "W"). Raises UnitError."""
    return _parse(value, _WATTS)


def parse_hertz(value: Any) -> Quantity:
    """ "1200 MHz" → Quantity(1.2e9, "Hz"). Raises UnitError."""
    return _parse(value, _HERTZ)


def _written(kind: _QuantityKind) -> WithJsonSchema:
    units = kind.pattern or "|".join(sorted(map(re.escape, kind.units), key=len, reverse=True))
    pattern = rf"^\s*([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*({units})\s*$"
    description = f"{kind.word[0].upper()}{kind.word[1:]} with its unit"
    return WithJsonSchema(
        {"type": "string", "pattern": pattern, "examples": list(kind.examples), "description": description}
    )


# The context in which pydantic validates what a model of these types has dumped: numbers in SI units.
RESOLVED = {"units": "resolved"}


def _reads(parse: Callable[[Any], Any]) -> BeforeValidator:
    def read(value: Any, info: ValidationInfo) -> Any:
        if info.context != RESOLVED or isinstance(value, str):
            return parse(value)
        return Quantity(**value) if isinstance(value, dict) else value

    return BeforeValidator(read)


Seconds = Annotated[float, _reads(parse_seconds), _written(_SECONDS)]
Ratio = Annotated[float, _reads(parse_ratio), _written(_RATIO)]
Points = Annotated[float, _reads(parse_points), _written(_POINTS)]
Bytes = Annotated[int, _reads(parse_bytes), _written(_SIZE)]
Intensity = Annotated[float, _reads(parse_intensity), _written(_INTENSITY)]  # kilograms of CO2e per joule
WarmupAmount = Annotated[Quantity, _reads(parse_warmup), _written(_WARMUP)]
Period = Annotated[Quantity, _reads(parse_period), _written(_PERIOD)]
Watts = Annotated[Quantity, _reads(parse_watts), _written(_WATTS)]
Hertz = Annotated[Quantity, _reads(parse_hertz), _written(_HERTZ)]


# Ladders: (size in the base unit, name, smallest number shown with it), largest first.
_Ladder = tuple[tuple[float, str, float], ...]
_SECONDS_SHOWN: _Ladder = ((3600, "h", 2), (60, "min", 2), (1, "s", 1), (1e-3, "ms", 0))
_FLOP_SHOWN: _Ladder = (
    *((10.0**power, f"{prefix}FLOP", 1) for power, prefix in zip(range(18, 0, -3), "EPTGMk", strict=True)),
    (1, "FLOP", 0),
)
_ENERGY_SHOWN: _Ladder = ((1e6, "MJ", 1), (1e3, "kJ", 1), (1, "J", 0))
_PREFIXES_SHOWN = ((1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_BYTES_SHOWN: _Ladder = ((1e12, "TB", 1), (1e9, "GB", 1), (1e6, "MB", 1), (1e3, "kB", 1), (1, "B", 0))


def format_seconds(seconds: float, digits: int = 3) -> str:
    """ "200 ms", "119 s", "30 min", "2.5 h": `digits` significant digits."""
    return _scaled(seconds, _SECONDS_SHOWN, digits)


def format_flop(flop: float, digits: int = 3) -> str:
    """ "7.1 GFLOP". One multiply-add is 2 FLOPs."""
    return _scaled(flop, _FLOP_SHOWN, digits)


def format_energy(joules: float, digits: int = 3) -> str:
    """ "12.3 J", "4.1 kJ", "1.02 MJ"."""
    return _scaled(joules, _ENERGY_SHOWN, digits)


def format_bytes(count: float, digits: int = 3) -> str:
    """ "512 MB": powers of 1000."""
    return _scaled(count, _BYTES_SHOWN, digits)


def format_si(value: float, unit: str, digits: int = 3) -> str:
    """12e-6, "J" → "12 µJ": what may be much smaller than its unit, such as the energy of one call."""
    least = {prefix: 1.0 for _, prefix in _PREFIXES_SHOWN} | {"n": 0.0}
    return _scaled(value, tuple((size, prefix + unit, least[prefix]) for size, prefix in _PREFIXES_SHOWN), digits)


def format_ratio(ratio: float, digits: int = 1) -> str:
    """0.264 → "26.4 %", with `digits` decimals."""
    return _signed(ratio, f"{abs(ratio) * 100:.{digits}f}", "%")


def _scaled(value: float, ladder: _Ladder, digits: int) -> str:
    for size, unit, least in ladder:
        shown = _significant(abs(value) / size, digits)
        # Judged after rounding: 999.9 J is "1 kJ" at three digits, never "1000 J".
        if value and float(_significant(abs(value), digits)) / size >= least:
            return _signed(value, shown, unit)
    base = next(unit for size, unit, _ in ladder if size == 1)
    return _signed(value, _significant(abs(value), digits), base)


def _significant(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{Decimal(text):f}" if "e" in text and 1e-4 <= value < 1e15 else text


def _signed(value: float, shown: str, unit: str) -> str:
    minus = "\N{MINUS SIGN}" if value < 0 and shown.strip("0.") else ""
    return f"{minus}{shown} {unit}"
