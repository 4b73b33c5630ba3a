"""The noise floor against its formulas, on windows whose length and energy are known."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.clock import put_behind
from fakes.powercap import Powercap
from scipy.special import chdtri, nctdtr, stdtrit
from torch.optim.optimizer import register_optimizer_step_post_hook

from energybench.meter import rapl
from energybench.meter.reading import Energy, Reading
from energybench.trial import calibrate
from energybench.trial.calibrate import noise_floor
from energybench.trial.spec import CalibrationSpec

SECONDS = [(1.0, 1.1), (1.2, 1.1), (1.0, 0.95), (1.05, 1.1), (1.0, 1.02)]


def window(seconds: float, *energy: Energy) -> Reading:
    return Reading(wall_s=seconds, energy=list(energy))


def timed(seconds: list[tuple[float, float]]) -> list[tuple[Reading, Reading]]:
    return [(window(a), window(b)) for a, b in seconds]


def joules(energy_j: float | None, source: str = "rapl", scope: str = "cpu", **more: Any) -> Energy:
    return Energy(source=source, scope=scope, device="d", energy_j=energy_j, **more)


def metered(seconds: float, *more: Energy, watts: float = 100.0) -> Reading:
    return window(seconds, joules(watts * seconds), *more)


def test_the_floor_is_the_standard_deviation_of_the_log_ratios() -> None:
    found = noise_floor(timed(SECONDS), 2.5)["time"]
    ratios = [math.log(b / a) for a, b in SECONDS]
    assert found["ratios_log"] == pytest.approx(ratios)
    assert found["sd_log"] == pytest.approx(statistics.stdev(ratios))
    assert math.log1p(found["bias_rel"]) == pytest.approx(statistics.fmean(ratios))


def test_the_bias_has_students_interval_and_is_marked_only_beyond_the_margin() -> None:
    n, ratios = len(SECONDS), [math.log(b / a) for a, b in SECONDS]
    reach = stdtrit(n - 1, 0.975) * statistics.stdev(ratios) / math.sqrt(n)
    found = noise_floor(timed(SECONDS), 2.5)["time"]
    low, high = (math.log1p(bound) for bound in found["bias_interval_rel"])
    assert (low, high) == pytest.approx((statistics.fmean(ratios) - reach, statistics.fmean(ratios) + reach))
    assert not found["biased"]
    always_slower = [(1.0, 1.05 + wobble) for wobble in (0.001, -0.001, 0.002, -0.002)]
    found = noise_floor(timed(always_slower), 2.5)["time"]
    assert found["biased"]
    assert found["bias_rel"] == pytest.approx(0.05, abs=1e-3)
    within_the_margin = [(1.0, 1.005 + wobble) for wobble in (0.001, -0.001, 0.002, -0.002)]
    assert not noise_floor(timed(within_the_margin), 2.5)["time"]["biased"]


@pytest.mark.parametrize("pair_s", [2.5, 7.0, 20.0])
def test_a_detectable_saving_is_found_with_the_stated_chance(pair_s: float) -> None:
    """A true saving of δ moves the test's statistic to a noncentral t around (δ − margin)·√n / σ; the sd of few pairs
    leaves σ = sd / √(χ²/df) open: the chance is the mean over those.
    """
    found = noise_floor(timed(SECONDS), pair_s)
    for row in found["time"]["detectable"]:
        n = row["pairs"]
        assert n == int(row["within_s"] / pair_s)
        beyond = -math.log1p(-row["saving_rel"]) + math.log1p(-found["noise_rel"])
        df = found["pairs"] - 1
        middles = (np.arange(4000) + 0.5) / 4000
        spreads = found["time"]["sd_log"] / np.sqrt(chdtri(df, middles) / df)
        chances = 1 - nctdtr(n - 1, np.minimum(beyond * math.sqrt(n) / spreads, 1e4), stdtrit(n - 1, 0.99))
        assert np.nan_to_num(chances, nan=1.0).mean() == pytest.approx(found["chance_rel"], abs=2e-3)


def test_more_time_never_detects_less() -> None:
    rows = noise_floor(timed(SECONDS), 2.5)["time"]["detectable"]
    savings = [row["saving_rel"] for row in rows]
    assert [row["within_s"] for row in rows] == [60, 600, 3600]
    assert savings == sorted(savings, reverse=True)
    assert savings[-1] > calibrate.MARGIN


def test_a_machine_that_repeats_itself_exactly_detects_what_the_margin_leaves() -> None:
    rows = noise_floor(timed([(1.0, 1.0)] * 4), 2.5)["time"]["detectable"]
    assert [row["saving_rel"] for row in rows] == pytest.approx([calibrate.MARGIN] * 3)


def test_fewer_than_three_pairs_detect_nothing_and_say_so() -> None:
    rows = noise_floor(timed(SECONDS), 25.0)["time"]["detectable"]
    assert [(row["pairs"], row["saving_rel"]) for row in rows[:1]] == [(2, None)]
    assert rows[0]["reason"] == "not with fewer than 3 pairs"
    assert all(row["reason"] is None and row["saving_rel"] for row in rows[1:])


def test_at_constant_power_energy_is_as_noisy_as_time() -> None:
    found = noise_floor([(metered(a), metered(b)) for a, b in SECONDS], 2.5)
    assert found["energy"]["ratios_log"] == pytest.approx(found["time"]["ratios_log"])
    assert found["energy"]["sensors"] == ["rapl of cpu"]
    assert found["energy_reason"] is None


def test_one_channel_of_a_device_enters_and_no_model() -> None:
    """The counter says what time says; the integral of the same card and a model would say otherwise."""
    others = (joules(7.0, "gpu_power_integral", "gpu"), joules(9.0, "model(codecarbon cpu_load)", "cpu"))
    pairs = [
        (window(a, joules(50 * a, "gpu_counter", "gpu"), *others), window(b, joules(50 * b, "gpu_counter", "gpu")))
        for a, b in SECONDS
    ]
    found = noise_floor(pairs, 2.5)
    assert found["energy"]["sensors"] == ["gpu_counter of gpu"]
    assert found["energy"]["ratios_log"] == pytest.approx(found["time"]["ratios_log"])


def test_only_modelled_joules_are_no_energy() -> None:
    model = joules(9.0, "model(codecarbon cpu_load)")
    missing = joules(None, "unavailable", "gpu", reason="no card here")
    found = noise_floor([(window(a, model, missing), window(b, model, missing)) for a, b in SECONDS], 2.5)
    assert found["energy"] is None
    assert found["energy_reason"] == "no card here"


def test_a_sensor_that_is_lost_in_one_window_leaves_no_energy_and_its_reason() -> None:
    missing = joules(None, "unavailable", "gpu", reason="no card here")
    pairs = [(metered(a, missing), metered(b, missing)) for a, b in SECONDS]
    pairs[3] = (pairs[3][0], window(1.0, missing, joules(None, reason="the counter was reset")))
    found = noise_floor(pairs, 2.5)
    assert found["energy"] is None
    assert found["energy_reason"] == "the counter was reset"
    assert found["time"]["sd_log"] > 0


# ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────


class Scripted:
    """A machine on which the n-th training takes `seconds(n, epochs)`."""

    def __init__(self, seconds: Any) -> None:
        self.seconds, self.seeds, self.epochs = seconds, list[int](), list[int]()

    def __call__(self, spec: dict[str, Any]) -> Scripted:
        return self

    def train(self, seed: int, epochs: int) -> Reading:
        self.seeds.append(seed)
        self.epochs.append(epochs)
        return window(self.seconds(len(self.seeds), epochs))

    def facts(self, epochs: int) -> dict[str, Any]:
        return {"epochs": epochs}


def run(monkeypatch: pytest.MonkeyPatch, seconds: Any, **spec: Any) -> tuple[dict[str, Any], Scripted]:
    scripted = Scripted(seconds)
    monkeypatch.setattr(calibrate, "Twins", scripted)
    spec = {
        "until_s": 0,  # long past: the fewest pairs, however long they take
        "fewest_pairs": 6,
        "shortest_s": 1.0,
        "meters": [],
        "cache": "",
    } | spec
    return calibrate.calibrate(CalibrationSpec(**spec)), scripted


def test_a_training_is_long_enough_however_slow_the_first_ones_were(monkeypatch: pytest.MonkeyPatch) -> None:
    found, scripted = run(monkeypatch, lambda n, epochs: (0.5 if n == 1 else 0.1) * epochs)
    assert found["window_shortest_s"] == pytest.approx(1.3)  # 13 epochs of 0.1 s: a quarter above the shortest
    assert found["epochs"] == 13
    assert set(scripted.epochs[3:]) == {13}


def test_a_machine_that_becomes_faster_begins_again_with_longer_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    found, scripted = run(monkeypatch, lambda n, epochs: (0.1 if n <= 5 else 0.05) * epochs)
    assert found["window_shortest_s"] == pytest.approx(1.25, rel=0.05)
    assert (found["pairs"], found["time"]["sd_log"]) == (6, 0)
    assert scripted.epochs[5] < scripted.epochs[-1] == found["epochs"]


def test_a_slow_epoch_is_one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, lambda n, epochs: 40.0 * epochs)[0]["epochs"] == 1


def test_the_first_pair_is_not_counted_and_a_pair_shares_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, scripted = run(monkeypatch, lambda n, epochs: 5.0 if n <= 3 else 1.0)
    assert found["pairs"] == 6
    assert found["time"]["sd_log"] == 0
    assert len(scripted.seeds) == 3 + 12
    pairs = [scripted.seeds[i : i + 2] for i in range(3, 15, 2)]
    assert all(a == b for a, b in pairs)
    assert len({a for a, _ in pairs}) == 6


def test_a_machine_that_slows_down_is_noisy_but_not_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side goes first in half of the pairs: 3 % more in every training cancels."""
    found, _ = run(monkeypatch, lambda n, epochs: 1.03**n)
    assert found["time"]["bias_rel"] == pytest.approx(0, abs=1e-9)
    assert found["time"]["sd_log"] > 0.03


def test_what_breaks_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: dict[str, Any]) -> None:
        raise RuntimeError("no data today")

    monkeypatch.setattr(calibrate, "Twins", broken)
    (tmp_path / "in.json").write_text(json.dumps({"until_s": 0, "shortest_s": 1, "fewest_pairs": 6, "cache": ""}))
    calibrate.main(str(tmp_path / "in.json"), str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == {"reason": "RuntimeError: no data today"}


def test_real_trainings_beside_a_sensor_give_both_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that draws 100 W: its energy goes as its time. An update takes 8 to 12 ms of a clock that stands
    still but for that."""
    machine = Powercap(tmp_path / "sys")
    machine.add("intel-rapl:0", "package-0", 100.0)
    monkeypatch.setattr(rapl, "read_text", machine.only_when_read().read_text)
    monkeypatch.setenv(rapl.VARIABLE, str(machine.flat))
    monkeypatch.setitem(calibrate.CHANNELS, "cpu", [2, 2])  # what a step computes takes none of that time
    clock = put_behind(monkeypatch, machine.time)
    times = itertools.cycle([0.008, 0.012, 0.009, 0.011, 0.010, 0.0115, 0.0085])
    updates = register_optimizer_step_post_hook(lambda *_: clock.sleep(next(times)))
    spec = {"until_s": 0, "fewest_pairs": 3, "shortest_s": 0.2, "meters": [], "cache": str(tmp_path)}
    (tmp_path / "in.json").write_text(json.dumps(spec))
    try:
        calibrate.main(str(tmp_path / "in.json"), str(tmp_path / "out.json"))
    finally:
        updates.remove()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["pairs"] == 3
    assert found["device"] == "cpu"
    assert found["workload"]["samples"] > 1000
    assert found["window_shortest_s"] >= 0.2
    assert found["time"]["sd_log"] > 0
    assert found["energy"]["sensors"] == ["rapl of cpu"]
    assert found["energy"]["ratios_log"] == pytest.approx(found["time"]["ratios_log"], abs=0.02)  # of 2 ms in 0.2 s
    assert found["energy"]["detectable"][0]["saving_rel"] > calibrate.MARGIN
