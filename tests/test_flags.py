"""Every flag: what raises it, what does not, and what the list promises."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from energybench import flags, stats
from energybench.record import Energy, Flag, Passes, Reading

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import GPU, MODEL, Run, Truth

PLAIN = Truth("baseline", "baseline")


def trial(**changes: Any) -> Any:
    return Run().change("baseline", 0, **changes).trial(PLAIN, 0)


def window(wall: float, cpu: float | None, **sensors: float) -> dict[str, Reading]:
    return {"train": Reading(wall_s=wall, cpu_s=cpu)}


def codes(found: list[Flag]) -> list[str]:
    return [flag.code for flag in found]


def twin(*ratios: float) -> stats.Paired:
    return stats.paired(ratios, [1.0] * len(ratios))


def test_every_code_stands_once_in_the_list_with_a_sentence_and_someone_who_raises_it() -> None:
    assert len(flags.KINDS) == len(flags.REGISTRY)
    for kind in flags.REGISTRY:
        assert kind.sentence.endswith(".")
        assert kind.raised == flags.IN_TRIAL or callable(getattr(flags, kind.raised))


def test_every_code_that_a_check_raises_stands_in_the_list() -> None:
    run = Run(stamp=["quick"])
    differing = run.witness(PLAIN).model_copy(update={"keys": {}, "passes": Passes()})
    lost = {"train": Reading(wall_s=1, energy=[Energy(source="rapl", scope="cpu")])}
    raised = [
        *flags.check_trial(trial(status="diverged")),
        *flags.check_trial(trial(data_wait_s=5.0)),
        *flags.check_trial(trial(phases=lost)),
        *flags.check_trial(trial(phases=window(10, 2))),
        *flags.check_cell(blocks=1, trials=[trial()], witness=differing, estimated_rel=0.5, counted_rel=0.1,
                          estimate_gap=0.02, epochs_kept=3, epochs_control=5),
        *flags.check_workload(twin=twin(1.1, 1.11, 1.09), noise=0.01, plain_flop=2, counted_flop=1),
        *flags.check_run(run.run(), [trial()]),
    ]  # fmt: skip
    by_check = {kind.code for kind in flags.REGISTRY if kind.raised != flags.IN_TRIAL}
    assert set(codes(raised)) == by_check


def test_an_undisturbed_trial_has_no_flag() -> None:
    assert flags.check_trial(trial()) == []


def test_the_trials_own_flags_come_first_and_are_not_raised_twice() -> None:
    own = Flag(code="data_wait", detail="as the loader saw it")
    assert flags.check_trial(trial(flags=[own], data_wait_s=5.0)) == [own]


@pytest.mark.parametrize(("waited", "expected"), [(0.5, []), (0.51, ["data_wait"])])
def test_waiting_for_data_counts_beyond_five_percent_of_the_window(
    waited: float, expected: list[str]
) -> None:
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
    assert flags.compare_passes(run.trial(half, 0), run.witness(half)) is None


@pytest.mark.parametrize("name", ["forwards", "backwards", "updates", "samples_forward", "epochs_trained"])
def test_one_count_more_than_the_witness_is_a_difference_that_names_both(name: str) -> None:
    run = Run()
    witness, one = run.witness(PLAIN), run.trial(PLAIN, 0)
    more = one.passes.model_copy(update={name: getattr(one.passes, name) + 1})
    told = flags.compare_passes(one.model_copy(update={"passes": more}), witness)
    assert told is not None
    assert "metered" in told
    assert f"{getattr(one.passes, name) + 1:g}" in told


def test_another_seed_may_draw_other_samples_but_a_kind_never_counted_is_marked() -> None:
    run = Run()
    witness, one = run.witness(PLAIN), run.trial(PLAIN, 1)
    more = one.passes.model_copy(update={"samples_forward": 1, "keys": {"plain": {"steps": 1, "samples": 9}}})
    assert flags.compare_passes(one.model_copy(update={"passes": more}), witness) is None
    other = one.passes.model_copy(update={"keys": {"probe": {"steps": 1, "samples": 9}}})
    found = flags.check_cell(blocks=3, trials=[one.model_copy(update={"passes": other})], witness=witness)
    assert found == [Flag(code="uncounted_steps", detail="'probe'")]


def test_a_witness_that_failed_binds_nobody() -> None:
    run = Run()
    failed = run.witness(PLAIN).model_copy(update={"status": "timeout", "keys": {}})
    assert flags.compare_passes(run.trial(PLAIN, 0), failed) is None


@pytest.mark.parametrize(("estimated", "expected"), [(0.52, []), (0.53, ["estimate_gap"]), (None, [])])
def test_an_estimate_may_miss_the_counter_by_the_suites_gap(
    estimated: float | None, expected: list[str]
) -> None:
    found = flags.check_cell(blocks=3, estimated_rel=estimated, counted_rel=0.5001, estimate_gap=0.02)
    assert codes(found) == expected


@pytest.mark.parametrize(("blocks", "expected"), [(2, ["too_few_blocks"]), (3, [])])
def test_three_blocks_are_the_least(blocks: int, expected: list[str]) -> None:
    assert codes(flags.check_cell(blocks=blocks)) == expected


@pytest.mark.parametrize(("control", "expected"), [(5, []), (6, ["control_differs"])])
def test_a_control_trains_the_epochs_that_were_kept(control: float, expected: list[str]) -> None:
    assert codes(flags.check_cell(blocks=3, epochs_kept=4.8, epochs_control=control)) == expected


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
def test_plain_training_may_not_differ_from_itself_beyond_the_noise(
    ratios: tuple[float, ...], failed: bool
) -> None:
    assert codes(flags.check_workload(twin=twin(*ratios), noise=0.01)) == ["aa_failed"] * failed


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
    found = flags.check_workload(
        twin=None, noise=0.01, plain_flop=plain, counted_flop=1.0, counted_error_flop=error
    )
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
    assert flags.kind("cosmic_rays").severity == "marked"
    assert "cosmic_rays" in flags.kind("cosmic_rays").sentence


def test_the_worst_flag_decides() -> None:
    inert, struck, dead = Flag(code="inert"), Flag(code="witness_differs"), Flag(code="dead_layer")
    assert flags.worst([]) is None
    assert flags.worst([inert, struck]) == "struck"
    assert flags.worst([inert, dead, struck]) == "invalid"
