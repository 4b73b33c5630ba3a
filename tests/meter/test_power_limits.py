"""What a powercap zone states of its power, in the kernel's files, and the bound that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.power_limits import UNSTATED, stated_limit


def zone(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n", encoding="ascii")
    return folder


def limit(folder: Path, scope: str = "cpu") -> tuple[float, str]:
    found = stated_limit(folder, scope, lambda path: path.read_text(encoding="ascii"))
    return found.watts, found.origin


LONG = {"constraint_0_name": "long_term", "constraint_0_power_limit_uw": "65000000"}
SHORT = {"constraint_1_name": "short_term", "constraint_1_power_limit_uw": "128000000"}
PEAK = {"constraint_2_name": "peak_power", "constraint_2_power_limit_uw": "200000000"}
RATED = {"constraint_0_max_power_uw": "65000000"}


@pytest.mark.parametrize(
    ("files", "watts", "origin"),
    [
        (LONG | SHORT | PEAK | RATED, 250.0, "1.25 times its peak limit of 200 W"),
        (LONG | SHORT | RATED, 160.0, "1.25 times its short-term limit of 128 W"),
        (LONG | RATED, 260.0, "4 times its rating of 65 W"),
        (LONG, 260.0, "4 times its long-term limit of 65 W"),
        (RATED, 260.0, "4 times its rating of 65 W"),
        (LONG | SHORT | RATED | {"enabled": "1"}, 160.0, "1.25 times its short-term limit of 128 W"),
        (LONG | SHORT | RATED | {"enabled": "0"}, 260.0, "4 times its rating of 65 W"),
        # Servers state a maximum beside the short-term limit.
        (LONG | SHORT | RATED | {"constraint_1_max_power_uw": "180000000"}, 225.0, "1.25 times its maximum of 180 W"),
        # "Unlimited", in the words of a BIOS.
        (RATED | LONG | {"constraint_1_power_limit_uw": "4095000000"}, 260.0, "4 times its rating of 65 W"),
        (RATED | {"constraint_0_power_limit_uw": "65535000000"}, 260.0, "4 times its rating of 65 W"),
        ({"constraint_1_power_limit_uw": "128000000"}, 160.0, "1.25 times its short-term limit of 128 W"),
    ],
)
def test_the_largest_limit_bounds_what_a_package_draws(
    tmp_path: Path, files: dict[str, str], watts: float, origin: str
) -> None:
    found = limit(zone(tmp_path, **files))
    assert found == (pytest.approx(watts), origin)


@pytest.mark.parametrize("text", ["0", "", "-65000000", "65 W", "0x3e", "65e6", "125000", "9" * 5000, "65535000000"])
@pytest.mark.parametrize("scope", ["cpu", "dram"])
def test_what_states_nothing_leaves_what_nothing_exceeds(tmp_path: Path, text: str, scope: str) -> None:
    files = {f"constraint_{i}_{kind}_uw": text for i in range(3) for kind in ("power_limit", "max_power")}
    watts, origin = limit(zone(tmp_path, **files), scope)
    assert watts == UNSTATED[scope].watts == {"cpu": 1000.0, "dram": 300.0}[scope]
    assert "states no limit" in origin


def test_a_memory_has_limits_of_its_own(tmp_path: Path) -> None:
    files = {"constraint_0_name": "long_term", "constraint_0_max_power_uw": "36000000"}
    assert limit(zone(tmp_path, **files), "dram") == (pytest.approx(144.0), "4 times its rating of 36 W")


def test_a_zone_that_cannot_be_listed_states_nothing(tmp_path: Path) -> None:
    assert limit(tmp_path / "gone") == (1000.0, UNSTATED["cpu"].origin)


@given(st.lists(st.integers(0, 10**11), min_size=6, max_size=6))
def test_no_statement_makes_a_bound_below_itself_or_above_the_most(amounts_uw: list[int]) -> None:
    names = [f"constraint_{i}_{kind}_uw" for i in range(3) for kind in ("power_limit", "max_power")]
    texts = dict(zip(names, map(str, amounts_uw), strict=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("energybench.meter.power_limits._listed", lambda folder: names)
        found = stated_limit(Path("zone"), "cpu", lambda path: texts.get(path.name, ""))
    valid_w = [amount / 1e6 for amount in amounts_uw if 1e6 <= amount <= 1e9]
    assert max(valid_w, default=1000.0) <= found.watts <= 1000.0
