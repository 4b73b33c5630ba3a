"""What is averaged within a device, and what an interval over devices promises, held over 200,000 simulated runs."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.stats import paired, power
from energybench.stats.replication import FEWEST_DEVICES, by_device

REPEATS, SD = 200_000, 0.01  # SD: between blocks of one device
MARGIN = 0.01
H = -math.log1p(-MARGIN)
values = st.floats(-1, 1, allow_nan=False)
on_devices = st.lists(st.tuples(values, st.sampled_from("abcde")), min_size=1, max_size=30)


@given(on_devices)
def test_each_device_weighs_the_same_and_holds_the_mean_of_its_blocks(blocks: list[tuple[float, str]]) -> None:
    means, counts = by_device([d for d, _ in blocks], [device for _, device in blocks])
    groups = [[d for d, device in blocks if device == name] for name in sorted({device for _, device in blocks})]
    assert means == pytest.approx([sum(group) / len(group) for group in groups])
    assert list(counts) == [len(group) for group in groups]


@given(on_devices, st.randoms())
def test_the_order_of_blocks_does_not_matter(blocks: list[tuple[float, str]], rng: random.Random) -> None:
    shuffled = rng.sample(blocks, len(blocks))
    results = [by_device([d for d, _ in each], [device for _, device in each]) for each in (blocks, shuffled)]
    assert results[0][0] == pytest.approx(results[1][0])
    assert results[0][1] == results[1][1]


@given(st.lists(values, min_size=2, max_size=12))
def test_devices_of_one_block_each_are_what_blocks_are(d: list[float]) -> None:
    costs, ones = [math.exp(value) for value in d], [1.0] * len(d)
    names = [f"{number:02}" for number in range(len(d))]
    over_blocks, over_devices = paired.paired(costs, ones), paired.paired(costs, ones, devices=names)
    assert over_devices.interval() == pytest.approx(over_blocks.interval())
    assert (over_devices.n, over_devices.blocks) == (len(d), len(d))
    changes = [paired.differences(d, [0.0] * len(d), devices=devices) for devices in (None, names)]
    assert changes[0].interval() == pytest.approx(changes[1].interval())


@given(st.lists(values, min_size=3, max_size=6), st.integers(2, 5))
def test_more_equal_blocks_on_the_same_devices_prove_nothing_more(d: list[float], copies: int) -> None:
    """Were blocks counted, five copies of each would make the interval less than half as wide."""
    costs = [math.exp(value) for value in d]
    names = [f"{number}" for number in range(len(d))]
    once = paired.paired(costs, [1.0] * len(d), devices=names)
    often = paired.paired(costs * copies, [1.0] * len(d) * copies, devices=names * copies)
    assert often.interval() == pytest.approx(once.interval())
    assert (often.n, often.blocks, often.df) == (once.n, copies * once.blocks, once.df)


def test_a_block_without_a_device_is_refused() -> None:
    with pytest.raises(ValueError, match="3 values, 2 devices"):
        by_device([1.0, 2.0, 3.0], ["a", "b"])


@pytest.mark.parametrize("devices", [["a"] * 9, ["a"] * 5 + ["b"] * 4])
def test_one_or_two_devices_get_no_verdict_however_many_blocks_they_have(devices: list[str]) -> None:
    change = paired.paired([0.5] * 9, [1.0] * 9, devices=devices)
    assert len(set(devices)) < FEWEST_DEVICES
    assert paired.cost_verdict(change, MARGIN, "energy") == "no verdict"
    quality = paired.differences([0.9] * 9, [0.9] * 9, devices=devices)
    assert paired.quality_verdict(quality, 0.005) == "open"


# ── simulated ─────────────────────────────────────────────────────────────────────────────────────────────────────


def blocks(devices: int, each: int, device_sd: float, seed: int = 1, mean: float = 0.0) -> np.ndarray:
    """Log ratios of so many runs: (run, device, block)."""
    rng = np.random.default_rng(seed)
    of_device = rng.normal(mean, device_sd, (REPEATS, devices, 1)) if device_sd else mean
    return rng.normal(0, SD, (REPEATS, devices, each)) + of_device


def bounds(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """One-sided lower and upper bounds of each row's mean."""
    n = samples.shape[1]
    reach = paired.student(confidence, n - 1) * samples.std(1, ddof=1) / math.sqrt(n)
    return samples.mean(1) - reach, samples.mean(1) + reach


def coverage(samples: np.ndarray) -> float:
    low, high = bounds(samples, 0.975)
    return float(((low < 0) & (high > 0)).mean())


def test_the_vectors_are_what_the_module_computes() -> None:
    drawn = blocks(4, 3, SD)[:50]
    names = [device for device in "abcd" for _ in range(3)]
    for confidence in (0.975, paired.CLAIM):
        low, high = bounds(drawn.mean(2), confidence)
        for row, run in enumerate(drawn):
            one = paired.paired(np.exp(run).ravel().tolist(), [1.0] * 12, devices=names)
            assert (one.lower(confidence), one.upper(confidence)) == pytest.approx((low[row], high[row]))


def table() -> dict[tuple[int, int, float], list[float]]:
    """(devices, blocks on each, sd between devices) → the figures of docs/statistics.md, as fractions."""
    text = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| (\d+) × (\d+) \| ([\d.]+) % \| (.*) \|$", re.M)
    return {
        (int(devices), int(each), float(sd) / 100): [float(cell.removesuffix(" %")) / 100 for cell in rest.split(" | ")]
        for devices, each, sd, rest in row.findall(text)
    }


CASES = [(devices, each, sd) for devices, each in ((3, 4), (4, 3), (4, 8), (8, 2)) for sd in (0.0, 0.005, SD, 0.03)]


def test_the_table_has_every_case_and_promises_no_less_than_95_and_no_more_than_1_percent() -> None:
    assert sorted(table()) == sorted(CASES)
    for _, over_devices, _, claimed in table().values():
        assert over_devices >= 0.95
        assert claimed <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "each", "device_sd"), CASES)
def test_an_interval_over_devices_covers_the_truth_95_times_in_100_whatever_devices_do(
    devices: int, each: int, device_sd: float
) -> None:
    drawn = blocks(devices, each, device_sd)
    found = []
    for samples in (drawn.reshape(REPEATS, -1), drawn.mean(2)):
        found.append((coverage(samples), float((bounds(samples - H, paired.CLAIM)[1] < -H).mean())))
    (naive, naive_claims), (covered, claims) = found
    assert covered == pytest.approx(0.95, abs=0.002)
    assert claims == pytest.approx(0.01, abs=0.001)
    assert [naive, covered, naive_claims, claims] == pytest.approx(table()[devices, each, device_sd], abs=0.004)


@pytest.mark.slow
@pytest.mark.parametrize(("each", "expected"), [(3, 0.82), (8, 0.62)])
def test_an_interval_over_all_blocks_of_four_devices_that_differ_does_not(each: int, expected: float) -> None:
    every = blocks(4, each, SD).reshape(REPEATS, -1)
    assert coverage(every) == pytest.approx(expected, abs=0.006)


@pytest.mark.slow
def test_where_devices_do_not_differ_both_cover_and_counting_devices_is_a_third_wider() -> None:
    drawn = blocks(4, 3, 0.0)
    widths = []
    for samples in (drawn.mean(2), drawn.reshape(REPEATS, -1)):
        assert coverage(samples) == pytest.approx(0.95, abs=0.002)
        low, high = bounds(samples, 0.975)
        widths.append(float((high - low).mean()))
    assert widths == pytest.approx([0.0169, 0.0125], abs=0.0002)


@pytest.mark.slow
@pytest.mark.parametrize("device_sd", [0.0, SD])
@pytest.mark.parametrize("counts", [(1, 1, 10), (1, 4, 7), (1, 1, 1, 12), (2, 2, 8, 8)])
def test_devices_with_unlike_numbers_of_blocks_are_covered_no_less(counts: tuple[int, ...], device_sd: float) -> None:
    """Bakirov and Székely (2005): unequal variances make Student's t over the means conservative."""
    rng = np.random.default_rng(2)
    sds = np.sqrt(device_sd**2 + SD**2 / np.array(counts))
    means = rng.normal(0, 1, (REPEATS, len(counts))) * sds
    for confidence, level in ((0.975, 0.95), (paired.CLAIM, 0.98), (paired.QUALITY, 0.90)):
        low, high = bounds(means, confidence)
        assert float(((low < 0) & (high > 0)).mean()) > level - 0.0025


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "each"), [(3, 4), (4, 3), (8, 2)])
def test_the_smallest_saving_that_devices_see_is_found_by_as_many_fresh_ones_80_times_in_100(
    devices: int, each: int
) -> None:
    """The promise is in devices: it holds where blocks of one device share what is its own."""
    seen = blocks(devices, each, SD, seed=3).mean(2).std(1, ddof=1)[:2000]
    fresh = blocks(devices, each, SD, seed=4).mean(2)[:2000]
    found = 0
    for sd, means in zip(seen, fresh, strict=True):
        saving = power.detectable(float(sd), devices, MARGIN)
        assert saving is not None
        upper = bounds(means[None] + math.log1p(-saving), paired.CLAIM)[1][0]
        found += upper < -H
    assert found / 2000 == pytest.approx(0.80, abs=0.03)
