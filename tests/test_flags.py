"""Every flag: what raises it, what does not, and what the list promises."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.plausible import IMPLAUSIBLE
from energybench.meter.reading import CardState as Card
from energybench.meter.reading import Energy, Reading
from energybench.meter.reading import SamplerState as Sampler
from energybench.records.record import Flag, Passes, ProcessUse, Trial, Warmup
from energybench.stats import paired
from energybench.verdict import flag_codes, flags

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import GPU, MODEL, Run, Truth

PLAIN = Truth("baseline", "baseline")


def trial(**changes: Any) -> Any:
    return Run().change("baseline", 0, **changes).trial(PLAIN, 0)


def window(wall: float, cpu: float | None, **sensors: float) -> dict[str, Reading]:
    return {"train": Reading(wall_s=wall, cpu_s=cpu)}


BUSY = Sampler(period_s=0.1, samples=100, missed=11, cpu_s=1.0)


def on_card(
    card: Card,
    *,
    channels: tuple[float, ...] = (100.0,),
    wall_s: float = 60.0,
    pieces: int = 1,
    sampler: Sampler | None = None,
) -> dict[str, Reading]:
    """A window on one card: the counter's joules, then the integral's."""
    energy = [
        Energy(source=source, scope="gpu", device="GPU-1", energy_j=joules, detail={"tick_s": 0.1})
        for source, joules in zip(("gpu_counter", "gpu_power_integral"), channels, strict=False)
    ]
    return {"train": Reading(wall_s=wall_s, pieces=pieces, energy=energy, cards={"GPU-1": card}, sampler=sampler)}


def codes(found: list[Flag]) -> list[str]:
    return [flag.code for flag in found]


def twin(*ratios: float) -> paired.Paired:
    return paired.paired(ratios, [1.0] * len(ratios))


def cliff_of(*steps: int | None, cpu_s: float | None = None, role: str = "baseline") -> list[Trial]:
    """Trials of one command, one block after the other."""
    reading = {"command": Reading(wall_s=1.0, cpu_s=cpu_s)}
    return [
        trial(steps=count, role=role, settings={"command": ["python"]}, phases=reading).model_copy(
            update={"block": block}
        )
        for block, count in enumerate(steps)
    ]


def test_every_code_stands_once_in_the_list_with_a_sentence_and_someone_who_raises_it() -> None:
    assert len(flag_codes.KINDS) == len(flag_codes.REGISTRY)
    for kind in flag_codes.REGISTRY:
        assert kind.sentence.endswith(".")
        assert kind.raised == flag_codes.IN_TRIAL or callable(getattr(flags, kind.raised))


def test_every_code_that_a_check_raises_stands_in_the_list() -> None:
    run = Run(stamp=["quick"])
    differing = run.counting_run(PLAIN).model_copy(
        update={"keys": {}, "passes": Passes(), "uncounted_calls": {"mylib.op": 2}}
    )
    lost = {"train": Reading(wall_s=1, energy=[Energy(source="rapl", scope="cpu")])}
    impossible = Energy(source="rapl", scope="cpu", device="package-0", reason="a jump", detail={IMPLAUSIBLE: 5e4})
    dram = Energy(source="rapl", scope="dram", device="package-0/dram", energy_j=1.0)
    disturbed = {
        "train": Reading(
            wall_s=10, cpu_s=8, other_cpu_s=2, suspended_s=60, trackers=["codecarbon"], energy=[impossible, dram]
        )
    }
    hot, cool = (
        trial(phases=on_card(Card(temperature_start_c=heat)), environment={"torch": torch})
        for heat, torch in ((60.0, "2.13"), (40.0, "2.11"))
    )
    bad = Card(mig=True, mps=True, foreign_pids=[4], throttled_s={"power brake": 5.0})
    raised = [
        *flags.check_trial(
            trial(
                phases=on_card(bad, channels=(100.0, 110.0), wall_s=6.0, sampler=BUSY),
                steps=60,
                warmup=Warmup(steps=9, settled=False),
            )
        ),
        *flags.check_trial(trial(phases=on_card(Card(), channels=(100.0, 120.0), wall_s=0.5))),
        *flags.check_pair(hot, cool),
        *flags.check_cell(blocks=3, sensor_error_rel=0.02, margin=0.01),
        *flags.check_trial(trial(status="diverged")),
        *flags.check_trial(trial(process=ProcessUse(wall_s=100.0, cpu_s=1.0))),
        *flags.check_outside({"evaluation": [(1.0, 0.1)] * 3}, margin=0.01),
        *flags.check_cell(blocks=3, counted_rel=0.5, margin=0.01, same_weights=3),
        *flags.check_trial(trial(data_wait_s=5.0)),
        *flags.check_trial(trial(phases=lost)),
        *flags.check_trial(trial(phases=disturbed)),
        *flags.check_trial(trial(phases=window(10, 2))),
        *flags.check_cell(
            blocks=1,
            trials=[trial()],
            counting_run=differing,
            gap_rel=0.4,
            estimate_gap=0.02,
            control_differs="30 steps paid for, 50 trained",
        ),
        *flags.check_workload(
            twin=twin(1.1, 1.11, 1.09), margin=0.01, plain_flop=2, counted_flop=1, mixed="GPU-a, GPU-b"
        ),
        *flags.check_run(run.run(), [trial()]),
        *flags.check_cliff(cliff_of(60, 1)),
    ]
    by_check = {kind.code for kind in flag_codes.REGISTRY if kind.raised != flag_codes.IN_TRIAL}
    assert set(codes(raised)) == by_check


def test_an_undisturbed_trial_has_no_flag() -> None:
    assert flags.check_trial(trial()) == []


def test_the_trials_own_flags_come_first_and_are_not_raised_twice() -> None:
    own = Flag(code="data_wait", detail="as the loader saw it")
    assert flags.check_trial(trial(flags=[own], data_wait_s=5.0)) == [own]


@pytest.mark.parametrize(("waited", "expected"), [(0.5, []), (0.51, ["data_wait"])])
def test_waiting_for_data_counts_beyond_five_percent_of_the_window(waited: float, expected: list[str]) -> None:
    assert codes(flags.check_trial(trial(data_wait_s=waited))) == expected


@pytest.mark.parametrize(
    ("wall", "cpu", "waited", "device", "expected"),
    [
        (10, 9.5, 0, "cpu", []),
        (10, 19, 0, "cpu", []),  # two threads
        (10, 8, 0, "cpu", ["host_contention"]),
        (10, 8.8, 0.4, "cpu", []),  # it waited for its own data
        (10, 2, 0, "GPU-1", []),  # a GPU's host may well sleep
        (10, None, 0, "cpu", []),
    ],
)
def test_a_processor_taken_away_shows_as_missing_cpu_seconds(
    wall: float, cpu: float | None, waited: float, device: str, expected: list[str]
) -> None:
    one = trial(phases=window(wall, cpu), data_wait_s=waited, device=device)
    assert codes(flags.check_trial(one)) == expected


def test_a_trial_that_repeats_the_witnesss_tally_agrees_with_it() -> None:
    run = Run().method("half", flop=0.5)
    half = run.truth("half")
    assert flags.compare_passes(run.trial(half, 0), run.counting_run(half)) is None


@pytest.mark.parametrize("name", ["forwards", "backwards", "updates", "samples_forward", "epochs_trained"])
def test_one_count_more_than_the_witness_is_a_difference_that_names_both(name: str) -> None:
    run = Run()
    counting_run, one = run.counting_run(PLAIN), run.trial(PLAIN, 0)
    more = one.passes.model_copy(update={name: getattr(one.passes, name) + 1})
    told = flags.compare_passes(one.model_copy(update={"passes": more}), counting_run)
    assert told is not None
    assert "metered" in told
    assert f"{getattr(one.passes, name) + 1:g}" in told


def test_another_seed_may_draw_other_samples_but_a_kind_never_counted_is_marked() -> None:
    run = Run()
    counting_run, one = run.counting_run(PLAIN), run.trial(PLAIN, 1)
    more = one.passes.model_copy(update={"samples_forward": 1, "keys": {"plain": {"steps": 1, "samples": 9}}})
    assert flags.compare_passes(one.model_copy(update={"passes": more}), counting_run) is None
    other = one.passes.model_copy(update={"keys": {"probe": {"steps": 1, "samples": 9}}})
    found = flags.check_cell(blocks=3, trials=[one.model_copy(update={"passes": other})], counting_run=counting_run)
    assert found == [Flag(code="uncounted_steps", detail="'probe'")]


def test_an_operator_that_nobody_prices_and_that_may_hide_products_is_named_with_its_calls() -> None:
    calls = {"mylib.op": 1200, "aten.topk": 7, "aten._fft_r2c": 3}
    counting_run = Run().counting_run(PLAIN).model_copy(update={"uncounted_calls": calls})
    (found,) = flags.check_cell(blocks=3, counting_run=counting_run)
    assert found == Flag(code="unpriced_work", detail="aten._fft_r2c × 3, mylib.op × 1,200")
    for harmless in ({}, {"aten.topk": 7, "aten.normal_": 1}):
        fine = counting_run.model_copy(update={"uncounted_calls": harmless})
        assert flags.check_cell(blocks=3, counting_run=fine) == []
    failed = counting_run.model_copy(update={"status": "timeout"})
    assert flags.check_cell(blocks=3, counting_run=failed) == []


def test_a_witness_that_failed_binds_nobody() -> None:
    run = Run()
    failed = run.counting_run(PLAIN).model_copy(update={"status": "timeout", "keys": {}})
    assert flags.compare_passes(run.trial(PLAIN, 0), failed) is None


@pytest.mark.parametrize(("gap", "expected"), [(0.0199, []), (0.0201, ["estimate_gap"]), (None, [])])
def test_an_estimate_may_miss_the_counter_by_the_suites_gap(gap: float | None, expected: list[str]) -> None:
    assert codes(flags.check_cell(blocks=3, gap_rel=gap, estimate_gap=0.02)) == expected


@pytest.mark.parametrize(("blocks", "expected"), [(2, ["too_few_blocks"]), (3, [])])
def test_three_blocks_are_the_least(blocks: int, expected: list[str]) -> None:
    assert codes(flags.check_cell(blocks=blocks)) == expected


@pytest.mark.parametrize(
    ("ratios", "failed"),
    [
        ((1.0, 1.0, 1.0), False),
        ((1.05, 1.051, 1.049), True),
        ((0.95, 0.951, 0.949), True),
        ((1.009, 1.009, 1.009), False),  # excludes zero, but not beyond the noise
        ((1.0, 1.1, 1.05), False),  # unclear
        ((1.05, 1.05), False),  # too few
    ],
)
def test_plain_training_may_not_differ_from_itself_beyond_the_noise(ratios: tuple[float, ...], failed: bool) -> None:
    assert codes(flags.check_workload(twin=twin(*ratios), margin=0.01)) == ["aa_failed"] * failed


def test_the_aa_check_does_not_care_which_of_the_two_is_called_the_baseline() -> None:
    for drift in (0.003, 0.00999, 0.0101, 0.02):
        ratios = [math.exp(drift)] * 3
        inverse = [1 / ratio for ratio in ratios]
        assert flags.aa_fails(twin(*ratios), 0.01) == flags.aa_fails(twin(*inverse), 0.01)


@pytest.mark.parametrize(
    ("plain", "error", "expected"),
    [(1.0009, 0, []), (1.0011, 0, ["ledger_differs"]), (0.9989, 0, ["ledger_differs"]), (1.0011, 0.0002, [])],
)
def test_the_ledger_of_plain_training_equals_the_counter_to_a_thousandth(
    plain: float, error: float, expected: list[str]
) -> None:
    found = flags.check_workload(twin=None, margin=0.01, plain_flop=plain, counted_flop=1.0, counted_error_flop=error)
    assert codes(found) == expected


def test_a_machine_without_sensors_says_so_once_and_names_the_model() -> None:
    run = Run(sensors=(MODEL,))
    found = flags.check_run(run.run(), run.records()[1])
    assert codes(found) == ["modelled_energy"]
    assert MODEL[0] in found[0].detail
    seen = Run(sensors=(GPU,))
    assert flags.check_run(seen.run(), seen.records()[1]) == []


def test_a_measured_source_without_a_figure_is_no_measurement() -> None:
    lost = Reading(wall_s=1, energy=[Energy(source="unavailable", scope="cpu", reason="permission denied")])
    assert codes(flags.check_run(Run().run(), [trial(phases={"train": lost})])) == ["modelled_energy"]


def test_a_sensor_that_dies_invalidates_the_trial_and_one_that_never_was_does_not() -> None:
    def reading(source: str) -> dict[str, Reading]:
        energy = Energy(source=source, scope="gpu", reason="GPU is lost")
        return {"train": Reading(wall_s=1, cpu_s=1, energy=[energy])}

    (found,) = flags.check_trial(trial(phases=reading("gpu_counter")))
    assert found.code == "sensor_lost"
    assert "GPU is lost" in found.detail
    assert flags.check_trial(trial(phases=reading("unavailable"))) == []


def test_a_code_from_a_newer_version_is_shown_and_not_dropped() -> None:
    assert flag_codes.kind("cosmic_rays").severity == "marked"
    assert "cosmic_rays" in flag_codes.kind("cosmic_rays").sentence


def test_the_worst_flag_decides() -> None:
    inert, struck, dead = Flag(code="inert"), Flag(code="witness_differs"), Flag(code="dead_layer")
    assert flag_codes.worst([]) is None
    assert flag_codes.worst([inert, struck]) == "struck"
    assert flag_codes.worst([inert, dead, struck]) == "invalid"


# Sensors


@pytest.mark.parametrize(
    ("counter", "integral", "expected"),
    [
        (100.0, 104.9, []),
        (100.0, 95.1, []),
        (100.0, 105.1, ["channels_apart"]),
        (100.0, 94.9, ["channels_apart"]),
        (100.0, 115.1, ["channels_contradict"]),
        (100.0, 84.9, ["channels_contradict"]),
    ],
)
def test_two_channels_of_one_card_are_marked_beyond_five_percent_and_invalid_beyond_fifteen(
    counter: float, integral: float, expected: list[str]
) -> None:
    found = flags.check_trial(trial(phases=on_card(Card(), channels=(counter, integral))))
    assert codes(found) == expected
    assert (
        flag_codes.worst(found)
        == {"channels_apart": "marked", "channels_contradict": "invalid", None: None}[expected[0] if expected else None]
    )


def test_channels_of_different_cards_are_not_held_against_each_other() -> None:
    energy = [
        Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=100.0),
        Energy(source="gpu_power_integral", scope="gpu", device="GPU-2", energy_j=200.0),
    ]
    assert flags.check_trial(trial(phases={"train": Reading(wall_s=60, energy=energy)})) == []


@pytest.mark.parametrize(
    ("wall_s", "pieces", "expected"), [(5.0, 1, []), (4.9, 1, ["window_short"]), (9.9, 2, ["window_short"])]
)
def test_fifty_ticks_in_every_piece_are_the_least_for_a_verdict(
    wall_s: float, pieces: int, expected: list[str]
) -> None:
    found = flags.check_trial(trial(phases=on_card(Card(), wall_s=wall_s, pieces=pieces), steps=7))
    assert codes(found) == expected


def test_the_ticks_of_the_channel_that_counts_decide_and_not_those_of_the_one_that_checks_it() -> None:
    counter = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=100.0, detail={"tick_s": 0.01})
    integral = Energy(
        source="gpu_power_integral", scope="gpu", device="GPU-1", energy_j=101.0, detail={"period_s": 0.1}
    )
    both = {"train": Reading(wall_s=2.0, energy=[counter, integral])}
    assert codes(flags.check_trial(trial(phases=both, steps=7))) == []
    alone = {"train": Reading(wall_s=2.0, energy=[integral])}
    assert codes(flags.check_trial(trial(phases=alone, steps=7))) == ["window_short"]


@pytest.mark.parametrize(
    ("step_s", "aliases"),
    [
        (0.01, False),
        (0.046, True),
        (0.05, True),
        (0.07, False),
        (0.095, True),
        (0.11, True),
        (0.155, True),
        (0.2, False),
        (1.0, False),
    ],
)
def test_a_step_as_long_as_the_power_sensors_period_may_always_be_seen_at_the_same_place(
    step_s: float, aliases: bool
) -> None:
    found = flags.check_trial(trial(phases=on_card(Card(), wall_s=600 * step_s), steps=600))
    assert ("aliasing" in codes(found)) == aliases
    cpu = trial(phases={"train": Reading(wall_s=600 * step_s)}, steps=600)
    assert "aliasing" not in codes(flags.check_trial(cpu))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (Card(), []),
        (Card(mig=True), ["mig"]),
        (Card(mps=True), ["mps"]),
        (Card(foreign_pids=[17]), ["foreign_process"]),
        (Card(throttled_s={"software power cap": 0.5}), []),  # under 1 % of 60 s
        (Card(throttled_s={"software power cap": 0.7}), ["throttled"]),
    ],
)
def test_the_state_of_a_card_may_bend_its_figures(card: Card, expected: list[str]) -> None:
    assert codes(flags.check_trial(trial(phases=on_card(card)))) == expected


@pytest.mark.parametrize(
    ("missed", "cpu_s", "expected"),
    [(0, 0.1, []), (60, 0.1, []), (61, 0.1, ["reads_missed"]), (0, 0.61, ["harness_overhead"])],
)
def test_the_reader_in_the_background_accounts_for_itself(missed: int, cpu_s: float, expected: list[str]) -> None:
    sampler = Sampler(period_s=0.1, samples=600, missed=missed, cpu_s=cpu_s)
    assert codes(flags.check_trial(trial(phases=on_card(Card(), sampler=sampler)))) == expected


@pytest.mark.parametrize(("steal_s", "expected"), [(None, []), (0.1, []), (0.11, ["host_contention"])])
def test_a_host_that_runs_others_in_our_place_is_contention(steal_s: float | None, expected: list[str]) -> None:
    taken = {"train": Reading(wall_s=10, cpu_s=10, steal_s=steal_s)}
    assert codes(flags.check_trial(trial(phases=taken))) == expected


@pytest.mark.parametrize(("settled", "expected"), [(True, []), (None, []), (False, ["not_settled"])])
def test_a_warm_up_that_did_not_settle_is_told(settled: bool | None, expected: list[str]) -> None:
    assert codes(flags.check_trial(trial(warmup=Warmup(steps=9, settled=settled)))) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"driver": "1", "power_limit_w": 300.0}, {"driver": "1", "power_limit_w": 300.0}, []),
        ({"driver": "1"}, {"driver": "2"}, ["unlike"]),
        ({"power_limit_w": 300.0}, {"power_limit_w": 250.0}, ["unlike"]),
        ({"ecc": True}, {"ecc": False}, ["unlike"]),
        ({"ecc": None}, {"ecc": False}, []),  # one did not say
    ],
)
def test_only_like_is_compared_with_like(ours: dict[str, Any], theirs: dict[str, Any], expected: list[str]) -> None:
    a, b = (trial(environment={"gpus": {"GPU-1": card}}) for card in (ours, theirs))
    assert codes(flags.check_pair(a, b)) == expected
    assert codes(flags.check_pair(b, a)) == expected


@pytest.mark.parametrize(("heat", "expected"), [(45.0, []), (45.1, ["temperature"]), (34.9, ["temperature"])])
def test_two_sides_start_within_five_degrees_of_each_other(heat: float, expected: list[str]) -> None:
    a, b = (trial(phases=on_card(Card(temperature_start_c=c))) for c in (heat, 40.0))
    assert codes(flags.check_pair(a, b)) == expected


@pytest.mark.parametrize(("error", "expected"), [(None, []), (0.01, []), (0.011, ["sensor_error"])])
def test_a_sensor_that_errs_by_more_than_the_noise_decides_nothing(error: float | None, expected: list[str]) -> None:
    assert codes(flags.check_cell(blocks=3, sensor_error_rel=error, margin=0.01)) == expected


@pytest.mark.parametrize(
    ("process_s", "expected"), [(10.0, []), (13.3, []), (13.4, ["clock_differs"]), (60.0, ["clock_differs"])]
)
def test_a_clock_that_does_not_account_for_its_process_is_no_clock(process_s: float, expected: list[str]) -> None:
    """10 s in phases; 2 s and a tenth of the whole may pass around them: 13.33 s."""
    one = trial(phases=window(10, 10), process=ProcessUse(wall_s=process_s, cpu_s=1.0))
    assert codes(flags.check_trial(one)) == expected


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([(1.0, 0.10), (1.1, 0.11), (0.9, 0.09)], ["outside_work"]),
        ([(1.0, 0.10), (3.0, 0.30), (-1.0, -0.10)], []),  # the interval holds nothing at all
        ([(0.05, 0.10), (0.05, 0.10), (0.05, 0.10)], []),  # less than a tenth of a second
        ([(1.0, 0.008), (1.0, 0.008), (1.0, 0.008)], []),  # less than the margin
        ([(1.0, 0.10), (1.0, 0.10)], []),  # two blocks have no interval that could be believed
    ],
)
def test_work_outside_the_window_strikes_where_its_interval_lies_beyond_the_margin(
    blocks: list[tuple[float, float]], expected: list[str]
) -> None:
    assert codes(flags.check_outside({"evaluation and finish": blocks}, margin=0.01)) == expected


@pytest.mark.parametrize(
    ("counted", "error", "blocks", "expected"),
    [
        (0.5, 0.0, 3, ["same_weights"]),
        (0.5, 0.495, 3, []),
        (0.01, 0.0, 3, []),
        (-0.5, 0.0, 3, []),
        (0.5, 0.0, 0, []),
        (None, 0.0, 3, []),
    ],
)
def test_equal_weights_from_fewer_flops_are_struck_and_from_as_many_are_not(
    counted: float | None, error: float, blocks: int, expected: list[str]
) -> None:
    found = flags.check_cell(blocks=3, counted_rel=counted, margin=0.01, same_weights=blocks, counted_error_rel=error)
    assert codes(found) == expected


@pytest.mark.parametrize(
    ("counted", "exact", "compiled", "differs"),
    [
        ({}, True, False, False),
        ({"weights_sha256": "b"}, True, False, True),
        ({"samples_sha256": "t"}, True, False, True),
        ({"weights_sha256": "b", "weights_moved": 1.02}, False, False, False),  # a card's last bits
        ({"weights_sha256": "b", "weights_moved": 1.021}, False, False, True),
        ({"weights_sha256": "b", "weights_moved": 1.01}, True, True, False),  # compiled: counted eagerly
        ({"weights_sha256": "b", "weights_moved": 0.5}, True, True, True),
        ({"weights_sha256": None, "weights_moved": None}, True, False, False),  # not known
        ({"weights_sha256": "b", "seed": 1}, True, False, False),  # of another seed
    ],
)
def test_the_counting_run_ends_where_the_metered_run_does(
    counted: dict[str, Any], exact: bool, compiled: bool, differs: bool
) -> None:
    ends = {"weights_sha256": "a", "samples_sha256": "s", "weights_moved": 1.0}
    counting_run = Run().counting_run(PLAIN).model_copy(update=ends | counted)
    one = trial(**ends, environment={"compiled": compiled})
    found = flags.check_cell(blocks=3, trials=[one], counting_run=counting_run, exact=exact)
    assert codes(found) == (["witness_differs"] if differs else [])


# ── later trials that do less than the first ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("steps", "raised"),
    [
        ((60, 1, 1), True),  # the later ones go on from the first one's checkpoint
        ((60, 60, 1, 1), True),  # a checkpoint is written every other time
        ((60, 60, 60), False),
        ((60, 31, 45), False),  # early stopping
        ((1, 60, 60), False),  # more work is no resumption
        ((60, 1, 60), False),  # nor is a single short one
        ((60,), False),
        ((60, None, 1), False),  # not known
    ],
)
def test_a_fall_to_less_than_half_of_the_work_after_the_first_trials_is_a_cliff(
    steps: tuple[int | None, ...], raised: bool
) -> None:
    assert codes(flags.check_cliff(cliff_of(*steps))) == (["cliff"] if raised else [])


@given(st.lists(st.floats(0.5, 1.0), min_size=2, max_size=8), st.randoms())
def test_work_that_varies_by_less_than_a_factor_of_two_is_no_cliff(shares: list[float], chance: Random) -> None:
    trials = [
        one.model_copy(update={"phases": {"command": Reading(wall_s=1.0, cpu_s=100 * share)}})
        for one, share in zip(cliff_of(*[None] * len(shares)), shares, strict=True)
    ]
    chance.shuffle(trials)
    assert flags.check_cliff(trials) == []


def test_a_fall_of_cpu_seconds_is_one_where_caches_cannot_explain_it() -> None:
    def fall(before_s: float, after_s: float) -> list[str]:
        first, *later = cliff_of(None, None, None)
        seconds = [before_s, after_s, after_s]
        return codes(
            flags.check_cliff(
                one.model_copy(update={"phases": {"command": Reading(wall_s=1.0, cpu_s=cpu_s)}})
                for one, cpu_s in zip((first, *later), seconds, strict=True)
            )
        )

    assert fall(10.0, 0.7) == ["cliff"]
    assert fall(0.2, 0.05) == []


def test_the_twin_is_the_plain_command_and_a_training_of_our_loop_is_no_command() -> None:
    """Baseline first, its twin from its checkpoint: each alone ran once, and both are one command."""
    plain, twin = cliff_of(60)[0], cliff_of(1, role="twin")[0].model_copy(update={"position": 1})
    assert codes(flags.check_cliff([twin, plain])) == ["cliff"]
    loop = [one.model_copy(update={"settings": {}}) for one in (plain, twin)]
    assert flags.check_cliff(loop) == []
