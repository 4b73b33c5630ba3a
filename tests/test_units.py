import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from energybench.common.units import (
    Bytes,
    Period,
    Points,
    Quantity,
    Ratio,
    Seconds,
    UnitError,
    WarmupAmount,
    format_bytes,
    format_energy,
    format_flop,
    format_ratio,
    format_seconds,
    parse_bytes,
    parse_intensity,
    parse_period,
    parse_points,
    parse_ratio,
    parse_seconds,
    parse_warmup,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20 s", 20),
        ("30 min", 1800),
        ("1.5 h", 5400),
        ("200 ms", 0.2),
        ("0 s", 0),
        ("1e3 s", 1000),
        (".5 s", 0.5),
        ("20s", 20),
        ("20\N{NO-BREAK SPACE}s", 20),
        ("20\N{NARROW NO-BREAK SPACE}s", 20),
        ("  7 minutes ", 420),
        ("\N{MINUS SIGN}0 s", 0),
    ],
)
def test_times_become_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


def test_decimal_shares_are_exact() -> None:
    assert [parse_ratio("1 %"), parse_ratio("0.1%"), parse_ratio("29 %")] == [0.01, 0.001, 0.29]
    assert parse_points("0.5 pp") == 0.005


def test_sizes_know_powers_of_1000_and_of_1024() -> None:
    assert parse_bytes("2 GB") == 2 * 10**9
    assert parse_bytes("512 MiB") == 512 * 2**20
    assert parse_bytes("1.5kB") == 1500


def test_two_unit_quantities_keep_which_unit_it_was() -> None:
    assert parse_warmup("20 s") == Quantity(20, "s")
    assert parse_warmup("1 min") == Quantity(60, "s")
    assert parse_warmup("3 steps") == Quantity(3, "steps")
    assert parse_period("2 epochs") == Quantity(2, "epochs")
    assert parse_period("0.5 epoch") == Quantity(0.5, "epochs")
    assert parse_period("300 iterations") == parse_period("300 steps") == Quantity(300, "steps")


@pytest.mark.parametrize(
    ("parse", "value", "says", "hint"),
    [
        (parse_seconds, 20, "seconds or minutes", '"20 s"'),
        (parse_seconds, "20", "no unit", '"20 s"'),
        (parse_seconds, True, "expected a time", '"20 s"'),
        (parse_seconds, ["20 s"], "expected a time", '"20 s"'),
        (parse_seconds, "20 secnds", "'secnds'", "did you mean 'seconds'?"),
        (parse_seconds, "20 S", "'S'", "did you mean 's'?"),
        (parse_seconds, "soon", "no number", '"20 s"'),
        (parse_seconds, "-3 s", "negative", '"20 s"'),
        (parse_seconds, "\N{MINUS SIGN}3 s", "negative", '"20 s"'),
        (parse_seconds, "nan s", "not finite", ""),
        (parse_seconds, "inf h", "not finite", ""),
        (parse_seconds, "1e999 s", "not finite", ""),
        (parse_seconds, "1e308 h", "too large", ""),
        (parse_seconds, "1,5 h", "comma", '"1.5 h"'),
        (parse_seconds, "20 s or so", "'s or so'", ""),
        (parse_ratio, 0.01, "ratio or a percentage", '"1 %"'),
        (parse_ratio, "0.01", "no unit", '"1 %"'),
        (parse_ratio, "101 %", "more than 100 %", '"1 %"'),
        (parse_ratio, "1 pp", "'pp'", "%"),
        (parse_points, "0.5 %", "'%'", '"pp"'),
        (parse_points, 0.005, "no unit", '"0.5 pp"'),
        (parse_bytes, 2_000_000, "bytes or gigabytes", '"2 GB"'),
        (parse_bytes, "0.3 B", "whole number", ""),
        (parse_bytes, "2 gb", "'gb'", "did you mean 'GB'?"),
        (parse_warmup, 3, "seconds or steps", '"3 steps"'),
        (parse_warmup, "2.5 steps", "whole number of steps", ""),
        (parse_warmup, "2 epochs", "'epochs'", ""),
        (parse_period, "0 epochs", "zero", '"2 epochs"'),
        (parse_period, "20 s", "'s'", ""),
    ],
)
def test_a_wrong_quantity_is_refused_and_the_error_says_what_to_type(
    parse: Any, value: Any, says: str, hint: str
) -> None:
    with pytest.raises(UnitError) as caught:
        parse(value)
    assert says in str(caught.value)
    assert hint in caught.value.hint


def test_pydantic_fields_parse_units_and_show_editors_a_string() -> None:
    class Settings(BaseModel):
        limit: Seconds
        noise: Ratio
        loses: Points
        resident: Bytes
        warmup: WarmupAmount
        period: Period

    settings = Settings.model_validate(
        {
            "limit": "30 min",
            "noise": "1 %",
            "loses": "0.5 pp",
            "resident": "2 GB",
            "warmup": "3 steps",
            "period": "2 epochs",
        }
    )
    assert settings.limit == 1800
    assert settings.model_dump(mode="json")["warmup"] == {"count": 3.0, "unit": "steps"}
    assert {entry["type"] for entry in Settings.model_json_schema()["properties"].values()} == {"string"}
    with pytest.raises(ValidationError, match="seconds or minutes"):
        Settings.model_validate({**settings.model_dump(), "limit": 30})


amounts = st.floats(min_value=1e-6, max_value=1e12, allow_nan=False)
HALF_A_DIGIT = 0.005  # three significant digits: at most half of the third


@given(amounts)
def test_a_formatted_time_reads_back_within_its_digits(seconds: float) -> None:
    assert math.isclose(parse_seconds(format_seconds(seconds)), seconds, rel_tol=HALF_A_DIGIT)


@given(st.integers(0, 10**16))
def test_a_formatted_size_reads_back_within_its_digits(count: int) -> None:
    assert math.isclose(parse_bytes(format_bytes(count)), count, rel_tol=HALF_A_DIGIT)


@given(st.floats(0, 1))
def test_a_formatted_ratio_reads_back_within_its_decimals(ratio: float) -> None:
    assert math.isclose(parse_ratio(format_ratio(ratio, 4)), ratio, abs_tol=0.5e-6 + 1e-12)


@given(st.floats(0, 1e300), st.sampled_from(["s", "steps", "epochs"]))
def test_a_quantity_s_text_gives_the_same_quantity(count: float, unit: str) -> None:
    quantity = Quantity(float(int(count)) if unit == "steps" else count or 1.0, unit)
    if unit == "epochs":
        assert parse_period(str(quantity)) == quantity
    else:
        assert parse_warmup(str(quantity)) == quantity


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_flop(7.1e9), "7.1 GFLOP"),
        (format_flop(999.9e6), "1 GFLOP"),
        (format_flop(3.25e22), "32500 EFLOP"),
        (format_flop(0), "0 FLOP"),
        (format_energy(12.3), "12.3 J"),
        (format_energy(4100), "4.1 kJ"),
        (format_energy(999.6), "1 kJ"),
        (format_energy(999.4), "999 J"),
        (format_energy(0.0123), "0.0123 J"),
        (format_energy(-4100), "−4.1 kJ"),
        (format_energy(2_500_000), "2.5 MJ"),
        (format_seconds(0.2), "200 ms"),
        (format_seconds(90), "90 s"),
        (format_seconds(1800), "30 min"),
        (format_seconds(9000), "2.5 h"),
        (format_ratio(0.264), "26.4 %"),
        (format_ratio(0.2644, 2), "26.44 %"),
        (format_ratio(-0.012), "−1.2 %"),
        (format_ratio(-0.00001), "0.0 %"),
        (format_bytes(2e9), "2 GB"),
        (format_energy(math.nan), "nan J"),
    ],
)
def test_figures_are_shown_with_the_unit_that_keeps_them_short(shown: str, expected: str) -> None:
    assert shown == expected


# ── carbon intensity ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "kg_per_j"),
    [
        ("56 g/kWh", 56e-3 / 3.6e6),
        ("56g/kWh", 56e-3 / 3.6e6),
        ("56 gCO2/kWh", 56e-3 / 3.6e6),
        ("56 gCO2e/kWh", 56e-3 / 3.6e6),
        ("56 gCO2eq/kWh", 56e-3 / 3.6e6),
        ("56 gCO2.eq/kWh", 56e-3 / 3.6e6),
        ("56 g CO2-eq / kWh", 56e-3 / 3.6e6),
        ("56 g CO₂e per kWh", 56e-3 / 3.6e6),
        ("56 grams/kWh", 56e-3 / 3.6e6),
        ("0.056 kg/kWh", 56e-3 / 3.6e6),
        ("56 kgCO2e/MWh", 56 / 3.6e9),
        ("0.056 t/MWh", 56 / 3.6e9),
        ("56 t/GWh", 56e3 / 3.6e12),
        ("56000 g/MWh", 56 / 3.6e9),
        ("100 lb/MWh", 45.359237 / 3.6e9),
        ("100 lbs CO2e/MWh", 45.359237 / 3.6e9),
        ("15.5 g/MJ", 15.5e-3 / 1e6),
        ("1.5e-8 kg/J", 1.5e-8),
    ],
)
def test_an_intensity_is_mass_by_energy(text: str, kg_per_j: float) -> None:
    assert parse_intensity(text) == pytest.approx(kg_per_j, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("56", "no unit"),
        (56, "no unit"),
        (0.056, "no unit"),
        ("g/kWh", "no number"),
        ("56 g/kwh", "unknown unit"),
        ("56 kWh/g", "unknown unit"),
        ("56 g", "unknown unit"),
        ("56 Mg/kWh", "unknown unit"),
        ("0 g/kWh", "zero"),
        ("-1 g/kWh", "negative"),
        ("nan g/kWh", "finite"),
        ("56,1 g/kWh", "comma"),
        ("56 kg/kWh", "no fuel"),
        ("0.06 ton/MWh", "ton may be"),
        ("15 gC/kWh", "counts carbon"),
        (None, "expected"),
        (True, "expected"),
    ],
)
def test_an_intensity_that_could_be_another_is_refused_with_what_to_write(value: object, word: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_intensity(value)
    assert word in str(caught.value)
    assert caught.value.hint


def test_a_unit_of_intensity_in_wrong_capitals_is_named_and_no_other_guessed() -> None:
    with pytest.raises(UnitError) as caught:
        parse_intensity("56 gCO2e/kwh")
    assert caught.value.hint == "did you mean 'g/kWh'?"
    with pytest.raises(UnitError) as caught:
        parse_intensity("56 g/kW")
    assert "did you mean" not in caught.value.hint
