"""Trials in turns on simulated machines: what would prove them biased, and how a block is cut into parts and groups."""

from __future__ import annotations

import bisect
import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence

import pytest
from fakes.shared_machine import Machine, Training, drifting
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.reading import Energy
from energybench.records.record import Cell, Role
from energybench.runner import turns
from energybench.runner.schedule import Slot
from energybench.runner.turns import EXCESS_OF_MARGIN, Rest, Seen, groups, parts_of, take_turns
from energybench.stats import paired
from energybench.trial.pause import least_part_s

STEPS, STEP_S = 400, 0.002
MARGIN = 0.02
Costs = dict[str, Sequence[float]]


def block(costs: Costs, seed: int, *, parts: int = 20, seen: Seen | None = None, **how: object) -> dict[str, Training]:
    """One block: a fresh launch of every training, on a machine that drifts."""
    chance = random.Random(seed)
    machine = Machine(how.get("slow") or drifting(chance, how.get("spread", 0.25), 1.5))  # type: ignore[arg-type]
    if jerk := how.get("jerk"):
        machine.jerk = lambda: jerk(chance)  # type: ignore[operator]
    spread = float(how.get("launch", 0.02))  # type: ignore[arg-type]
    refill = how.get("refill_s", 0.0)
    trainings = {
        label: Training(label, machine, steps, math.exp(chance.gauss(0.0, spread)), refill)  # type: ignore[arg-type]
        for label, steps in costs.items()
    }
    take_turns([*trainings.values()], parts, MARGIN, Seen() if seen is None else seen, chance)
    return trainings


def ratios(costs: Costs, label: str, blocks: int, seed: int = 0, **how: object) -> list[float]:
    """ln(method / plain) of each block."""
    made = (block(costs, 1000 * seed + number, **how) for number in range(blocks))  # type: ignore[arg-type]
    return [math.log(each[label].total_s / each["plain"].total_s) for each in made]


def interval(logs: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean log ratio, as every report has it."""
    change = paired.paired([math.exp(log) for log in logs], [1.0] * len(logs))
    low, high = change.saving_interval()
    return math.log1p(-high), math.log1p(-low)


PLAIN = [STEP_S] * STEPS
TWINS: Costs = {"plain": PLAIN} | {f"twin {number}": PLAIN for number in range(8)}


def covered(intervals: Sequence[tuple[float, float]], truth: float = 0.0) -> float:
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


@pytest.fixture(scope="module")
def launches() -> list[list[dict[str, Training]]]:
    """Eight twins beside plain training, 20 launches, 40 times."""
    return [[block(TWINS, 20 * series + number, spread=0.15) for number in range(20)] for series in range(40)]


def test_equal_trainings_do_not_differ_and_the_interval_says_so(launches: list[list[dict[str, Training]]]) -> None:
    means = []
    for series in launches:
        logs = [
            statistics.fmean(math.log(made[twin].total_s / made["plain"].total_s) for twin in list(TWINS)[1:])
            for made in series
        ]
        means.append(interval(logs))
    assert covered(means) >= 0.85  # of 40 intervals of 95 %: fewer than 34 have a chance of 0.3 %
    widths = [(high - low) / 2 for low, high in means]
    assert statistics.median(widths) <= 0.015


def test_intervals_over_launches_cover_and_intervals_over_rounds_do_not(
    launches: list[list[dict[str, Training]]],
) -> None:
    by_launch, by_round = [], []
    for series in launches:
        for label in list(TWINS)[1:]:
            by_launch.append(interval([math.log(made[label].total_s / made["plain"].total_s) for made in series]))
            pairs = zip(series[0][label].parts_s, series[0]["plain"].parts_s, strict=True)
            by_round.append(interval([math.log(a / b) for a, b in pairs]))
    assert covered(by_launch) >= 0.93
    assert covered(by_round) < 0.93  # the same test: what a launch keeps for its life is no noise between rounds


def test_turns_scatter_less_than_trials_one_after_the_other() -> None:
    costs: Costs = {"plain": PLAIN, "twin": PLAIN, "a": PLAIN, "b": PLAIN}
    in_turns = statistics.stdev(ratios(costs, "twin", 60))
    alone = []
    for number in range(60):
        chance = random.Random(number)
        machine = Machine(drifting(chance, 0.25, 1.5))
        made = [Training(label, machine, PLAIN, math.exp(chance.gauss(0, 0.02))) for label in costs]
        for training in chance.sample(made, len(made)):
            training.turn(math.inf)
        alone.append(math.log(made[1].total_s / made[0].total_s))
    assert in_turns <= 0.6 * statistics.stdev(alone)


def test_every_tenth_step_done_twice_is_ten_percent() -> None:
    repeated = [STEP_S * (1 + (number % 10 == 9)) for number in range(STEPS)]
    low, high = interval(ratios({"plain": PLAIN, "again": repeated, "twin": PLAIN}, "again", 40))
    assert low <= math.log(1.1) <= high
    assert high - low < 0.03


@pytest.mark.parametrize("hog_s", [0.002, 0.02])
def test_a_cache_hog_as_a_third_cell_moves_no_ratio(hog_s: float) -> None:
    """Who comes after it pays more for a part's first step: all equally often, and parts grow until it is little."""
    method = [0.7 * STEP_S] * STEPS
    refill = {"plain": 0.0005, "method": 0.0005, "hog": hog_s}
    steady: dict[str, object] = {"slow": lambda now_s: 1.0, "launch": 0.0, "refill_s": refill, "seen": Seen()}
    logs = ratios({"plain": PLAIN, "method": method, "hog": PLAIN}, "method", 60, **steady)
    assert abs(statistics.fmean(logs) - math.log(0.7)) < EXCESS_OF_MARGIN * MARGIN + 0.001


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_ratio_has_no_slope_in_one_over_the_length_of_a_part(share: float) -> None:
    """Equal trainings: none. Of one that takes half as long: less than a quarter of the margin at any length."""
    other = [share * STEP_S] * STEPS
    by_parts = {}
    for parts in (2, 5, 10, 20):
        steady = {"slow": lambda now_s: 1.0, "launch": 0.0, "refill_s": 0.0005, "parts": parts, "seen": Seen()}
        logs = ratios({"plain": PLAIN, "other": other}, "other", 30, **steady)
        by_parts[parts] = statistics.fmean(logs[10:]) - math.log(share)  # once it is known what a begin costs
    slope = (by_parts[20] - by_parts[2]) / (20 - 2)
    assert abs(slope) * 20 <= (0.0005 if share == 1.0 else EXCESS_OF_MARGIN * MARGIN)
    assert max(map(abs, by_parts.values())) <= EXCESS_OF_MARGIN * MARGIN


def test_a_method_that_skips_half_its_epochs_costs_half() -> None:
    """A skipped epoch is an empty part; the block's figure is the ratio of sums, never a mean of ratios."""
    skipping = [STEP_S * (number // 50 % 2) for number in range(STEPS)]
    low, high = interval(ratios({"plain": PLAIN, "half": skipping, "twin": PLAIN}, "half", 40))
    assert low <= math.log(0.5) <= high
    assert high - low < 0.1
    steady = block({"plain": PLAIN, "half": skipping}, 3, slow=lambda now_s: 1.0, launch=0.0)
    assert steady["half"].total_s == pytest.approx(0.5 * steady["plain"].total_s, rel=1e-12)


def test_load_that_switches_at_the_rounds_own_period_takes_no_side() -> None:
    cells = 4
    costs: Costs = {"plain": PLAIN, "twin": PLAIN, "a": PLAIN, "b": PLAIN}
    for period_s in (STEP_S * STEPS * cells / 20, 2 * STEP_S * STEPS * cells / 20, STEP_S * STEPS / 20):
        logs = ratios(costs, "twin", 60, slow=lambda now_s, p=period_s: 1.0 + 2.0 * (now_s % p < p / cells))
        low, high = interval(logs)
        assert low <= 0.0 <= high or abs(statistics.fmean(logs)) < 0.01


class Recorded:
    """A player that keeps when it was called, and rests where it was told."""

    def __init__(self, label: str, calls: list[tuple[str, float]], ends_at: float = 1.0) -> None:
        self.label, self.calls, self.ends_at = label, calls, ends_at

    def turn(self, until: float) -> Rest | None:
        self.calls.append((self.label, until))
        return None if until >= self.ends_at else Rest(until, 1.0)


def called(labels: str, parts: int, seed: int, **ends: float) -> list[list[tuple[str, float]]]:
    """The calls, round by round."""
    calls: list[tuple[str, float]] = []
    players = [Recorded(label, calls, ends.get(label, 1.0)) for label in labels]
    take_turns(players, parts, MARGIN, Seen(), random.Random(seed))
    bounds = list(dict.fromkeys(until for _, until in calls))
    return [[call for call in calls if call[1] == until] for until in bounds]


@given(seed=st.integers(0, 10**6), parts=st.integers(2, 40), count=st.integers(1, 6))
def test_every_part_is_everybodys_and_the_second_of_two_is_the_reverse(seed: int, parts: int, count: int) -> None:
    rounds = called("abcdef"[:count], parts, seed)
    assert all(sorted(label for label, _ in each) == list("abcdef"[:count]) for each in rounds)
    for first, second in zip(rounds[::2], rounds[1::2], strict=False):
        assert [label for label, _ in second] == [label for label, _ in first][::-1]
    bounds = [each[0][1] for each in rounds]
    assert bounds == sorted(bounds)
    assert bounds[-1] == math.inf
    assert len(rounds) <= parts
    assert all(0 < bound < 1 for bound in bounds[:-1])


def test_the_number_of_parts_is_not_the_same_in_every_block() -> None:
    assert len({len(called("ab", 20, seed)) for seed in range(30)}) > 2


def test_one_whose_training_is_over_has_no_turn_any_more_and_the_others_go_on() -> None:
    rounds = called("abc", 10, 4, b=0.3)
    ended = next(number for number, each in enumerate(rounds) if each[0][1] >= 0.3)
    assert all("b" in {label for label, _ in each} for each in rounds[: ended + 1])
    assert all({label for label, _ in each} == {"a", "c"} for each in rounds[ended + 1 :])


def jerky(chance: random.Random) -> float:
    """What a step takes on a machine whose others come and go: scattered, and every twentieth ten times as long."""
    return math.exp(chance.gauss(0.0, 0.4)) * (10.0 if chance.random() < 0.05 else 1.0)


def test_steps_that_scatter_make_no_part_grow_and_what_grew_can_shrink_again() -> None:
    costs: Costs = {"plain": PLAIN, "twin": PLAIN, "a": PLAIN, "b": [0.5 * STEP_S] * STEPS}
    counts = []
    for run in range(12):
        seen = Seen()
        for number in range(5):
            made = block(costs, 100 * run + number, parts=13, jerk=jerky, seen=seen)
            counts.append(len(made["plain"].parts_s))
    assert statistics.fmean(count >= 13 * (1 - turns.JITTER) - 0.5 for count in counts) >= 0.95
    seen = Seen()
    seen.training_s = STEP_S * STEPS
    for label in costs:
        seen.excess_s[label] = [0.001] * turns.FEWEST_EXCESSES  # as of a moment in which all that was true
    grown = [len(block(costs, number, parts=13, jerk=jerky, seen=seen)["plain"].parts_s) for number in range(12)]
    assert grown[0] <= 4
    assert grown[-1] >= 9


def test_a_real_excess_is_found_among_steps_that_scatter() -> None:
    """2 ms in steps of 2 ms: a quarter of 2 % of a part of 0.4 s, of which a training of 1.3 s has three."""
    seen, costs = Seen(), {"plain": PLAIN, "twin": PLAIN, "a": PLAIN, "b": PLAIN}
    made = [block(costs, number, parts=13, jerk=jerky, refill_s=0.002, seen=seen) for number in range(12)]
    assert len(made[-1]["plain"].parts_s) <= 5


def test_parts_grow_where_their_first_step_costs_too_much() -> None:
    seen = Seen()
    how: dict[str, object] = {"slow": lambda now_s: 1.0, "launch": 0.0, "seen": seen}
    first = block({"plain": PLAIN, "twin": PLAIN}, 1, refill_s=0.001, **how)  # type: ignore[arg-type]
    later = block({"plain": PLAIN, "twin": PLAIN}, 2, refill_s=0.001, **how)  # type: ignore[arg-type]
    wanted_s = 0.001 / (EXCESS_OF_MARGIN * MARGIN)  # 0.2 s: 4 parts of 0.8 s
    assert len(first["plain"].parts_s) > len(later["plain"].parts_s)
    assert len(later["plain"].parts_s) <= STEP_S * STEPS / wanted_s + 1
    after = seen.after("twin")
    assert after["plain"].parts > 0
    assert after["plain"].share_rel > 0


# ── how many parts ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_training_is_cut_by_its_steps_by_the_setting_and_by_its_sensors() -> None:
    how = {"steps": 10_000.0, "training_s": 60.0, "least_part_s": 0.0}
    assert parts_of("auto", **how) == turns.MOST_PARTS  # type: ignore[arg-type]
    assert parts_of(7, **how) == 7  # type: ignore[arg-type]
    assert parts_of("auto", **how | {"steps": 80.0}) == 6  # type: ignore[arg-type]  # of at least 10 steps, jitter included
    assert parts_of("auto", **how | {"least_part_s": 10.0}) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "more", "word"),
    [
        ("off", {}, "turns it off"),
        ("auto", {"training_s": 120.0}, "takes about 120 s"),
        ("auto", {"steps": 20.0}, "20 steps"),
        ("auto", {"least_part_s": 25.0}, "sensors"),
        (8, {"least_part_s": 25.0}, "sensors"),
        (8, {"least_part_s": 1.0, "training_s": None}, "sensors"),
    ],
)
def test_what_cannot_take_turns_runs_alone_and_why(setting: turns.Setting, more: dict[str, float], word: str) -> None:
    how = {"steps": 10_000.0, "training_s": 60.0, "least_part_s": 0.0} | more
    found = parts_of(setting, **how)  # type: ignore[arg-type]
    assert isinstance(found, str)
    assert word in found


def test_a_number_takes_turns_however_long_a_training_is() -> None:
    assert parts_of(8, steps=10_000, training_s=4000.0, least_part_s=0.0) == 8


def energy(source: str, device: str = "", **detail: object) -> Energy:
    return Energy(source=source, scope="gpu", device=device, energy_j=1.0, detail=detail)


def test_a_part_spans_fifty_ticks_and_twenty_averages_of_every_sensor() -> None:
    assert least_part_s([]) == 0.0
    assert least_part_s([energy("rapl")]) == pytest.approx(0.05)
    assert least_part_s([energy("gpu_counter", "c", tick_s=0.1)]) == pytest.approx(5.0)
    assert least_part_s([energy("hwmon(x)", tick_s=[0.02, 0.04])]) == pytest.approx(2.0)
    assert least_part_s([energy("hwmon(x)", period_s=0.01, averaging_s=1.0)]) == pytest.approx(20.0)
    assert least_part_s([energy("model(cpu)", tick_s=1.0)]) == 0.0


def test_a_power_that_may_be_the_mean_of_nobody_knows_how_long_asks_for_the_longest() -> None:
    unknown = [energy("gpu_counter", "c", tick_s=0.02), energy("gpu_power_integral", "c", averaging_s=None)]
    assert least_part_s(unknown) == pytest.approx(20.0)


def test_an_integral_that_only_checks_a_counter_does_not_ask_for_longer_parts() -> None:
    both = [energy("gpu_counter", "c", tick_s=0.02), energy("gpu_power_integral", "c", period_s=0.2)]
    assert least_part_s(both) == pytest.approx(1.0)
    assert least_part_s(both[1:]) == pytest.approx(10.0)


class Averaging:
    """A fake sensor whose power is the mean over the last `averaging_s`: its joules of a part are in part those of
    whoever came before."""

    def __init__(self, machine: Machine, averaging_s: float) -> None:
        self._machine, self._averaging_s = machine, averaging_s
        self._times_s, self._joules = [0.0], [0.0]

    def add(self, power_w: float) -> None:
        """Up to now somebody has drawn so much."""
        self._joules.append(self._joules[-1] + power_w * (self._machine.now_s - self._times_s[-1]))
        self._times_s.append(self._machine.now_s)

    def joules(self, start_s: float, stop_s: float) -> float:
        """∫ of the mean power, by its middle at 64 places."""
        lags_s = [(place + 0.5) / 64 * self._averaging_s for place in range(64)]
        return statistics.fmean(self._until(stop_s - lag) - self._until(start_s - lag) for lag in lags_s)

    def _until(self, time_s: float) -> float:
        if time_s <= 0:
            return 0.0
        after = bisect.bisect_left(self._times_s, time_s)
        (t0, t1), (e0, e1) = self._times_s[after - 1 : after + 1], self._joules[after - 1 : after + 1]
        return e0 + (e1 - e0) * (time_s - t0) / (t1 - t0)


class Drawing(Training):
    """A training that draws a power of its own, and what the sensor says of its parts."""

    def metered(self, sensor: Averaging, power_w: float) -> Drawing:
        self.sensor, self.power_w, self.energy_j = sensor, power_w, 0.0
        return self

    def turn(self, until: float) -> Rest | None:
        start_s = self.machine.now_s
        rest = super().turn(until)
        if self.machine.now_s > start_s:
            self.sensor.add(self.power_w)
            self.energy_j += self.sensor.joules(start_s, self.machine.now_s)
        return rest


@pytest.mark.parametrize("averaging_s", [0.0005, 0.002, 0.004, 0.05])
def test_a_sensor_that_lags_behind_is_unbiased_within_a_quarter_of_the_margin_or_refused(averaging_s: float) -> None:
    """A part of 20 averages holds at most 1/40 of its neighbours' power: 2.5 % of a difference of 20 %."""
    detail = {"averaging_s": averaging_s}
    energy = Energy(source="gpu_power_integral", scope="gpu", energy_j=1.0, detail=detail)
    training_s = STEP_S * STEPS
    parts = parts_of("auto", steps=STEPS, training_s=training_s, least_part_s=least_part_s([energy]))
    if isinstance(parts, str):
        assert averaging_s == 0.05  # two parts of a second do not fit into 0.8 s
        assert "sensors" in parts
        return
    powers = {"plain": 100.0, "twin": 100.0, "method": 80.0, "other": 90.0}
    logs = []
    for number in range(60):
        machine = Machine()
        sensor = Averaging(machine, averaging_s)
        made = {label: Drawing(label, machine, PLAIN).metered(sensor, power) for label, power in powers.items()}
        take_turns([*made.values()], parts, MARGIN, Seen(), random.Random(number))
        logs.append(math.log(made["method"].energy_j / made["plain"].energy_j))
    assert abs(statistics.fmean(logs) - math.log(0.8)) <= EXCESS_OF_MARGIN * MARGIN


# ── groups ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def slots(*methods: str, twin: bool = True, controls: Sequence[str] = ()) -> list[Slot]:
    cells: list[tuple[str, Role, str | None]] = [("baseline", "baseline", None)]
    cells += [("twin", "twin", None)] if twin else []
    cells += [(name, "method", None) for name in methods] + [(f"{name} matched", "control", name) for name in controls]
    made = [Cell(workload="w", method=label, role=role, of=of) for label, role, of in cells]
    return [Slot(each, 0, position, 0) for position, each in enumerate(made)]


def labels(groups: list[list[Slot]]) -> list[list[str]]:
    return [[slot.cell.method for slot in group] for group in groups]


def test_up_to_four_cells_share_one_group_with_plain_training_and_its_twin() -> None:
    assert labels(groups(slots("a", "b", "c", "d"))) == [["baseline", "twin", "a", "b", "c", "d"]]


@given(count=st.integers(0, 30), controls=st.integers(0, 5), twin=st.booleans())
def test_every_cell_stands_in_one_group_and_plain_training_in_each(count: int, controls: int, twin: bool) -> None:
    methods = [f"m{number}" for number in range(count)]
    late = [f"of {number}" for number in range(controls)]
    made = groups(slots(*methods, twin=twin, controls=late))
    everybody = Counter(slot.cell.method for group in made for slot in group)
    assert everybody.pop("baseline", 0) == len(made)
    assert set(everybody.values()) <= {1}
    assert set(everybody) == {*methods, *(f"{m} matched" for m in late), *(["twin"] if twin else [])}
    assert all(sum(slot.cell.role in ("method", "control") for slot in group) <= turns.MOST_BESIDE for group in made)
    assert [{slot.group for slot in group} for group in made] == [{number} for number in range(len(made))]
    assert len({slot.trial for group in made for slot in group}) == sum(map(len, made))


def test_without_plain_training_or_anything_beside_it_there_is_no_group() -> None:
    assert groups(slots(twin=False)) == []
    assert groups([]) == []
    assert groups([slot for slot in slots("a") if slot.cell.role != "baseline"]) == []


def test_memory_holds_as_many_as_stay_below_seventy_percent() -> None:
    assert turns.room(0.0, 100.0, 10.0) == 7
    assert turns.room(65.0, 100.0, 10.0) == 0
    assert turns.room(90.0, 100.0, 10.0) == 0
