"""What of a card can be set, on a fake driver whose limits bind: P ~ f³, so that every figure has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml
import pytest
from fakes.nvml import UUID, FakeDriver, FakeGpu
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.card_settings import (
    CLOCK_HZ,
    CLOCK_REL,
    ENFORCED_W,
    POWER_REL,
    POWER_W,
    ROOT,
    AdjustableCard,
    CannotSet,
    by_hand,
)
from energybench.meter.nvml import open_gpus

Plug = Callable[..., FakeDriver]
NOBODY = 4_000_000
NO_PERMISSION, NOT_SUPPORTED = 4, 3


def opened(fake_driver: Plug, **gpu: Any) -> tuple[FakeDriver, AdjustableCard]:
    driver = fake_driver(FakeGpu(**gpu))
    return driver, AdjustableCard(open_gpus()[0])


# ── the driver's physics ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit_w", [300.0, 150.0, 37.5])
def test_work_takes_longer_as_a_limit_binds_and_costs_power_times_time(fake_driver: Plug, limit_w: float) -> None:
    driver, card = opened(fake_driver, power=300.0, tick_s=0.0)
    cycles = 1410.0 * 100  # of 100 s at full clock, in millions
    card.set({POWER_W: limit_w})
    began_s = driver.time.now_ns() / 1e9
    seconds = cycles / card.gpu.sm_clock_mhz()
    driver.time.sleep(seconds)
    # nvml rounds a clock down to whole MHz
    assert seconds == pytest.approx(100 * (300.0 / limit_w) ** (1 / 3), rel=2e-3)
    assert driver.energy_j(0, began_s, began_s + seconds) == pytest.approx(limit_w * seconds, rel=1e-9)
    assert card.gpu.throttled_s()["software power cap"] == pytest.approx(seconds if limit_w < 300 else 0.0)


def test_a_locked_clock_leaves_the_cube_of_its_share_of_the_power(fake_driver: Plug) -> None:
    driver, card = opened(fake_driver, power=[(0.0, 320.0), (10.0, 160.0)])
    card.set({CLOCK_HZ: 705e6})
    assert card.gpu.sm_clock_mhz() == 705.0
    assert driver.energy_j(0, 0.0, 20.0) == pytest.approx((320 * 10 + 160 * 10) / 8)
    assert card.gpu.throttled_s()["software power cap"] == 0


def test_a_limit_binds_from_when_it_is_set_until_it_is_put_back_and_only_where_power_exceeds_it(
    fake_driver: Plug,
) -> None:
    driver, card = opened(fake_driver, power=[(0.0, 300.0), (1.0, 50.0)], repeat_s=2.0)
    driver.time.sleep(4.0)
    before = card.state([POWER_W])
    card.set({POWER_W: 100.0})
    driver.time.sleep(4.0)
    card.put_back([POWER_W], before)
    driver.time.sleep(4.0)
    found = [driver.energy_j(0, 4.0 * each, 4.0 * each + 4.0) for each in range(3)]
    assert found == pytest.approx([700.0, 300.0, 700.0])
    assert driver.energy_j(0, 0.0, 12.0) == pytest.approx(sum(found))
    assert card.gpu.throttled_s()["software power cap"] == pytest.approx(2.0)


# ── what may be set ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_shares_are_of_the_default_limit_and_of_the_highest_clock(fake_driver: Plug) -> None:
    _, card = opened(fake_driver, power_limit_w=250.0, default_power_limit_w=360.0)
    assert card.resolved({POWER_REL: 0.5}) == {POWER_W: 180.0}
    assert card.resolved({CLOCK_REL: 1.0}) == {CLOCK_HZ: 1410e6}
    assert card.resolved({CLOCK_REL: 0.5}) == {CLOCK_HZ: 705e6}
    assert card.resolved({CLOCK_REL: 0.52}) == {CLOCK_HZ: 720e6}  # of 733.2 MHz, the next below


@given(watts=st.floats(1.0, 1000.0))
def test_a_power_limit_is_taken_within_the_cards_own_bounds_alone(fake_driver: Plug, watts: float) -> None:
    _, card = opened(fake_driver, min_power_limit_w=100.0, max_power_limit_w=400.0)
    if 100 <= watts <= 400:
        assert card.resolved({POWER_W: watts}) == {POWER_W: watts}
        card.set({POWER_W: watts})
        assert card.gpu.facts()["power_limit_w"] == pytest.approx(watts, abs=1e-3)
    else:
        with pytest.raises(CannotSet, match="outside") as refused:
            card.resolved({POWER_W: watts})
        assert refused.value.remedy == "from 100 W to 400 W"


@pytest.mark.parametrize("mhz", [700.0, 705.5, 1425.0, 1.0])
def test_a_clock_that_the_card_does_not_support_is_refused(fake_driver: Plug, mhz: float) -> None:
    _, card = opened(fake_driver)
    with pytest.raises(CannotSet, match="does not support"):
        card.resolved({CLOCK_HZ: mhz * 1e6})


def test_a_share_below_the_lowest_clock_is_refused(fake_driver: Plug) -> None:
    _, card = opened(fake_driver)
    with pytest.raises(CannotSet, match="below its lowest"):
        card.resolved({CLOCK_REL: 0.1})


def test_what_nothing_is_called_is_refused(fake_driver: Plug) -> None:
    _, card = opened(fake_driver)
    with pytest.raises(CannotSet, match="fan_speed"):
        card.resolved({"fan_speed": 1.0})


@pytest.mark.parametrize("kind", ["compute", "graphics", "mps"])
def test_a_card_that_somebody_uses_is_left_alone(fake_driver: Plug, kind: str) -> None:
    _, card = opened(fake_driver, **{kind: [(NOBODY,)]})
    with pytest.raises(CannotSet, match=str(NOBODY)):
        card.refuse_use()
    opened(fake_driver)[1].refuse_use()


@pytest.mark.parametrize("error", [NO_PERMISSION, NOT_SUPPORTED, 999])
def test_a_card_whose_driver_does_not_tell_who_uses_it_is_left_alone(fake_driver: Plug, error: int) -> None:
    kinds = ("", "_v2", "_v3")
    _, card = opened(fake_driver, errors=[(f"nvmlDeviceGetComputeRunningProcesses{kind}", error) for kind in kinds])
    with pytest.raises(CannotSet, match="does not tell who uses the card"):
        card.refuse_use()


@pytest.mark.parametrize("hidden", [{"mig": True}, {"errors": [("nvmlDeviceGetMigMode", NO_PERMISSION)]}])
def test_a_card_that_may_be_shared_in_slices_is_left_alone(fake_driver: Plug, hidden: dict[str, Any]) -> None:
    _, card = opened(fake_driver, **hidden)
    with pytest.raises(CannotSet, match="sliced"):
        card.refuse_use()


def test_who_is_not_root_is_told_so_and_the_question_changes_nothing(fake_driver: Plug) -> None:
    refused = [("nvmlDeviceSetPowerManagementLimit", NO_PERMISSION)]
    _, card = opened(fake_driver, power_limit_w=250.0, errors=refused)
    with pytest.raises(CannotSet) as told:
        card.refuse_permission()
    assert told.value.remedy == ROOT
    _, card = opened(fake_driver, power_limit_w=250.0)
    card.refuse_permission()
    assert card.state([POWER_W]) == {POWER_W: 250.0, ENFORCED_W: 250.0}


def test_a_card_whose_limit_cannot_be_changed_says_so(fake_driver: Plug) -> None:
    _, card = opened(fake_driver, errors=[("nvmlDeviceGetPowerManagementLimitConstraints", NOT_SUPPORTED)])
    with pytest.raises(CannotSet) as told:
        card.resolved({POWER_W: 200.0})
    assert "cannot be changed" in told.value.remedy


# ── setting and putting back ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_set_is_put_back_and_seen(fake_driver: Plug) -> None:
    _, card = opened(fake_driver, power_limit_w=250.0)
    settings = {POWER_W: 120.0, CLOCK_HZ: 705e6}
    before = card.state(settings)
    card.set(settings)
    assert card.state(settings) == {POWER_W: 120.0, ENFORCED_W: 120.0}
    assert card.gpu.sm_clock_mhz() <= 705
    assert card.differs(settings) == ""
    card.put_back(settings, before)
    assert card.state(settings) == before
    assert card.gpu.sm_clock_mhz() == 1410.0
    assert "250 W, not 120 W" in card.differs(settings)


def test_a_driver_that_sets_nothing_and_says_success_is_found_out(
    fake_driver: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, card = opened(fake_driver)
    monkeypatch.setattr(pynvml, "nvmlDeviceSetPowerManagementLimit", lambda handle, milliwatts: None)
    with pytest.raises(CannotSet, match="400 W, not 120 W"):
        card.set({POWER_W: 120.0})


def test_all_that_can_be_put_back_is_before_what_cannot_is_told(fake_driver: Plug) -> None:
    driver, card = opened(fake_driver, errors=[("nvmlDeviceResetGpuLockedClocks", 999, 5.0)])
    settings = {POWER_W: 120.0, CLOCK_HZ: 705e6}
    before = card.state(settings)
    card.set(settings)
    driver.time.sleep(10.0)
    with pytest.raises(CannotSet):
        card.put_back(settings, before)
    assert card.state(settings) == before
    assert by_hand(UUID, settings, before) == f"sudo nvidia-smi -i {UUID} -pl 400; sudo nvidia-smi -i {UUID} -rgc"
