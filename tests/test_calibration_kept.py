"""What the doctor found is kept, and said of the machine that it was found on and of no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from energybench.records import calibration
from energybench.runner.foresight import foresight, sentence
from energybench.stats import power

MACHINE = {"cpu": "Imaginary", "cores": 2, "device": "cpu", "torch": "2.13.0"}
FOUND: dict[str, Any] = {"pairs": 12, "window_s": 2.2, "time": {"sd_log": 0.03}, "energy": None}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def planned(blocks: int, **machine: Any) -> Any:
    facts = {key: value for key, value in (MACHINE | machine).items() if key != "device"}
    accept = SimpleNamespace(margin=0.02)
    return SimpleNamespace(
        machine=facts, device_name="cpu", spec=SimpleNamespace(blocks=blocks), suite=SimpleNamespace(accept=accept)
    )


def test_a_run_says_what_can_be_seen_on_a_machine_that_was_calibrated() -> None:
    assert foresight(planned(10)) is None
    calibration.keep(FOUND, MACHINE)
    found = foresight(planned(10))
    assert found is not None
    assert found["sees_rel"] == power.detectable(0.03, 10, 0.02, df=11)
    assert "this machine sees savings of time from 6.0 % in this suite (10 blocks; calibrated " in sentence(
        found | {"sees_rel": 0.06}
    )
    assert "sees no saving of time" in sentence(found | {"sees_rel": None})
    assert foresight(planned(2)) is None


@pytest.mark.parametrize("other", [{"cpu": "Another"}, {"cores": 4}, {"torch": "2.14.0"}])
def test_nothing_is_said_of_another_machine(other: dict[str, Any]) -> None:
    calibration.keep(FOUND, MACHINE)
    assert foresight(planned(10, **other)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 2}'])
def test_what_cannot_be_read_is_not_there(content: str, home: Path) -> None:
    calibration.keep(FOUND, MACHINE)
    calibration.place().write_text(content, encoding="utf-8")
    assert foresight(planned(10)) is None


def test_where_it_cannot_be_written_the_doctor_goes_on(home: Path) -> None:
    (home / "energybench").write_text("in the way", encoding="utf-8")
    calibration.keep(FOUND, MACHINE)
    assert calibration.kept(MACHINE) is None


def test_energy_is_foretold_where_a_card_and_its_calibration_are_there() -> None:
    calibration.keep(FOUND | {"energy": {"sd_log": 0.01}}, MACHINE)
    with_card = foresight(planned(10, gpus=[{"uuid": "GPU-1"}]))
    assert with_card is not None
    assert (with_card["of"], foresight(planned(10))["of"]) == ("energy", "time")  # type: ignore[index]
    assert with_card["sees_rel"] == power.detectable(0.01, 10, 0.02, df=11)
