"""Blocks on several devices: pooled from three devices of one kind on, else each device by itself, told in words."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sharded import CARD, IDENTITY, card, host, put, put_shards, spread
from synthetic import Run

from energybench.common.errors import CannotMeasure, UsageError
from energybench.gate import ci_formats, compare_runs
from energybench.records.record import Trial
from energybench.report import merge, pages
from energybench.report.carbon_page import report_carbon
from energybench.report.export import export
from energybench.report.html import page
from energybench.report.markdown import markdown
from energybench.report.terminal import render
from energybench.stats import paired
from energybench.verdict import devices, merging, run_parts, wording
from energybench.verdict.carbon import Asked
from energybench.verdict.figures import Row, Summary
from energybench.verdict.run_parts import Part
from energybench.verdict.summary import to_json

FOUR = [card(number) for number in range(4)]
EFFECTS = (0.0, 0.01, 0.02, -0.015)


def row_of(summary: Summary) -> Row:
    return summary.workloads[0].rows[0]


def only(folder: Path) -> Part:
    (part,) = run_parts.read([folder])
    return part


def screen(summary: Summary, width: int = 80, verbose: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    render(summary, console, verbose)
    return console.file.getvalue()  # type: ignore[attr-defined]


def log_ratios(trials: list[Trial]) -> dict[str, list[float]]:
    """Device → ln(method / baseline) of the joules of its blocks, from the records alone."""
    joules = {(t.device, t.block, t.method): sum(e.energy_j or 0 for e in t.train.energy) for t in trials if t.train}
    found: dict[str, list[float]] = {}
    for (device, block, method), value in joules.items():
        if method == "half":
            found.setdefault(device, []).append(math.log(value / joules[device, block, "baseline"]))
    return found


# ── the verdict counts devices ────────────────────────────────────────────────────────────────────────────────────


def test_twelve_blocks_on_four_cards_are_one_verdict_over_the_cards_means(tmp_path: Path) -> None:
    records = spread(FOUR, effects=EFFECTS)
    summary = only(put_shards(tmp_path / "run", records)).summary()
    row = row_of(summary)
    means = [sum(d) / len(d) for d in log_ratios(records[1]).values()]
    mean = sum(means) / 4
    sd = math.sqrt(sum((each - mean) ** 2 for each in means) / 3)
    assert (row.n, row.units, row.unit, row.verdict) == (12, 4, "GPU", "saves")
    assert row.measured is not None
    assert (row.measured.n, row.measured.unit, row.measured.blocks) == (4, "GPU", 12)
    assert row.measured.saving_rel == pytest.approx(1 - math.exp(mean))
    assert row.measured.sd_log is not None
    assert row.measured.sd_log >= sd * (1 - 1e-9)  # its own, or the larger one that the twin shares with it
    assert "12 blocks on 4 GPUs" in summary.device_note


def test_what_is_between_devices_is_not_hidden_by_many_blocks(tmp_path: Path) -> None:
    """Four cards that save 17 to 23 %: over blocks the interval would be a fraction of what it is over cards."""
    records = spread(FOUR, blocks=32, effects=(-0.03, -0.01, 0.01, 0.03), noise=0.001)
    measured = row_of(only(put_shards(tmp_path / "run", records)).summary()).measured
    every = [d for of_device in log_ratios(records[1]).values() for d in of_device]
    naive = paired.paired([math.exp(d) for d in every], [1.0] * len(every)).saving_interval()
    assert measured is not None
    assert measured.low_rel is not None
    assert measured.high_rel is not None
    assert measured.high_rel - measured.low_rel > 3 * (naive[1] - naive[0])


def test_quality_counts_devices_too(tmp_path: Path) -> None:
    def noisy(run: Run) -> Run:
        run.quality_noise = 0.004
        return run

    row = row_of(only(put_shards(tmp_path / "run", spread(FOUR, build=noisy))).summary())
    assert row.quality is not None
    assert row.quality.n == 4


@pytest.mark.parametrize("unit", ["GPU", "host"])
def test_advice_is_in_devices(tmp_path: Path, unit: str) -> None:
    on = FOUR if unit == "GPU" else [host(number) for number in range(4)]
    records = spread(on, energy=0.985, effects=(0.02, -0.02, 0.01, -0.012))
    summary = only(put_shards(tmp_path / "run", records)).summary()
    row = row_of(summary)
    assert row.verdict == "inconclusive"
    assert row.blocks_needed is None or row.blocks_needed > 4
    text = " ".join(screen(summary, 120, verbose=True).split())
    assert f"{unit}s" in row.reason
    assert f"12 blocks on 4 {unit}s see savings from" in text
    assert "blocks would decide" not in text
    assert summary.decide == ""  # no command has more cards


def test_devices_needed_are_named_with_the_blocks_on_each(tmp_path: Path) -> None:
    records = spread(FOUR, energy=0.97, effects=(0.012, -0.012, 0.01, -0.01))
    row = row_of(only(put_shards(tmp_path / "run", records)).summary())
    assert row.verdict == "inconclusive"
    assert row.blocks_needed is not None
    said = wording.plain(row.reason)
    assert said == f"about {row.blocks_needed} GPUs, a new run with 3 blocks on each, would decide"


def test_the_requirement_is_held_by_the_bounds_over_devices(tmp_path: Path) -> None:
    asks = {"workload": "*", "method": "*", "saves_at_least": 0.17}
    resolved = {"accept": Run().accept, "require": [asks]}
    effects = (-0.03, -0.01, 0.01, 0.03)
    undecided = spread(FOUR, blocks=32, effects=effects, noise=0.0005, resolved=resolved)
    (required,) = only(put_shards(tmp_path / "run", undecided)).summary().required
    assert required.outcome == "undecided"  # t over 32 blocks would have met it
    every = [d for of_device in log_ratios(undecided[1]).values() for d in of_device]
    upper = paired.paired([math.exp(d) for d in every], [1.0] * 32).upper(paired.CLAIM)
    assert paired.saving_of(upper) > 0.17


def test_a_method_with_pairs_on_two_of_the_devices_has_no_verdict(tmp_path: Path) -> None:
    meta, trials, counting_runs = spread(FOUR)
    failed = [
        t.model_copy(update={"status": "failed", "reason": "cable", "phases": {}})
        if t.method == "half" and t.device in ("GPU-2", "GPU-3")
        else t
        for t in trials
    ]
    third = [  # keeps two devices comparable, so that the run is pooled
        t.model_copy(update={"trial": f"{t.trial}2", "method": "other"}) for t in trials if t.method == "half"
    ]
    row = row_of(only(put_shards(tmp_path / "run", (meta, [*failed, *third], counting_runs))).summary())
    assert (row.method, row.units, row.verdict) == ("half", 2, "no verdict")
    assert wording.plain(row.reason) == "2 GPUs, and 3 are the least"


# ── which devices are pooled ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"driver": "535.1"}, "another driver: 550.54, then 535.1"),
        ({"power_limit_w": 400.0}, "another power limit: 700 W, then 400 W"),
        ({"name": "Card 400"}, "another GPU: Card 700, then Card 400"),
        ({"driver": None}, "its driver is not recorded"),
        ({"power_limit_w": None}, "its power limit is not recorded"),
        ({"mig": True}, "it is a slice of a card"),
    ],
)
def test_a_card_of_another_kind_stands_apart_and_the_others_are_pooled(
    tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    on = [card(0), card(1), card(2), card(3, **facts)]
    pooled, apart = run_parts.read([put_shards(tmp_path / "run", spread(on))])
    assert (row_of(pooled.summary()).units, row_of(pooled.summary()).n) == (3, 9)
    assert said in apart.apart
    row = row_of(apart.summary())
    assert (row.n, row.unit) == (3, "block")
    assert row.verdict == "saves"  # within the one device, as the run's blocks are all there


def test_another_torch_is_another_kind(tmp_path: Path) -> None:
    on = [*FOUR[:3], FOUR[3] | {"environment": FOUR[3]["environment"] | {"torch": "2.12"}}]
    _, apart = run_parts.read([put_shards(tmp_path / "run", spread(on))])
    assert apart.apart == "another torch: 2.13, then 2.12"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"cpu": "Xeon"}, "another processor: EPYC, then Xeon"),
        ({"cores": 4}, "another cores: 8, then 4"),
        ({"memory_mt_s": 4800}, "another memory speed: not recorded, then 4800"),
    ],
)
def test_hosts_are_devices_and_those_of_another_kind_stand_apart(
    tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    on = [host(0), host(1), host(2), host(3, **facts)]
    pooled, apart = run_parts.read([put_shards(tmp_path / "run", spread(on))])
    assert row_of(pooled.summary()).unit == "host"
    assert wording.plain(pooled.device) == "3 hosts: EPYC, 8 cores"
    assert said in wording.plain(apart.apart)


def test_two_devices_are_each_judged_by_themselves_and_the_next_step_is_told(tmp_path: Path) -> None:
    records = spread(FOUR[:2], effects=EFFECTS[:2])
    parts = run_parts.read([put_shards(tmp_path / "run", records)])
    assert [part.pooling.unit for part in parts] == ["GPU", "GPU"]
    for part, device in zip(parts, ("GPU-0", "GPU-1"), strict=True):
        summary = part.summary()
        row = row_of(summary)
        d = log_ratios(records[1])[device]
        assert row.measured is not None
        assert (row.n, row.unit, row.verdict) == (6, "block", "saves")
        assert row.measured.saving_rel == pytest.approx(1 - math.exp(sum(d) / 6))
        assert "3 are the least to pool. A new run over 3 or more GPUs" in summary.device_note
        assert summary.not_run == ()  # what the other device ran is not missing
    assert "3 of one kind are the least to pool" in parts[1].apart


def test_looks_are_taken_when_the_run_s_blocks_are_there_whichever_device_ran_them(tmp_path: Path) -> None:
    meta, trials, counting_runs = spread(FOUR[:2])
    some = [t for t in trials if t.block < 11]
    for part in run_parts.read([put_shards(tmp_path / "run", (meta, some, counting_runs))]):
        assert row_of(part.summary()).verdict == "no verdict"
    pooled = only(put_shards(tmp_path / "four", (meta, [t for t in spread(FOUR)[1] if t.block < 11], counting_runs)))
    assert row_of(pooled.summary()).verdict == "no verdict"
    assert "11 of 12 blocks" in pooled.summary().headline


def test_containers_of_one_host_and_a_host_started_again_are_one_device(tmp_path: Path) -> None:
    on = [host(0), host(1, called="other", boot="b0"), host(2, called="h0", boot="again")]
    part = only(put_shards(tmp_path / "run", spread(on)))
    assert row_of(part.summary()).unit == "block"
    assert row_of(part.summary()).n == 12


def test_sets_of_cards_that_share_one_are_one_device() -> None:
    def on(device: str) -> Trial:
        return spread([card(0)], blocks=1)[1][0].model_copy(update={"device": device})

    apart = devices.devices_of([on("GPU-a+GPU-b"), on("GPU-c+GPU-d")])
    assert len(set(apart.values())) == 2
    shared = devices.devices_of([on("GPU-a+GPU-b"), on("GPU-b+GPU-c"), on("GPU-d")])
    assert len(set(shared.values())) == 2


def test_hosts_that_no_record_names_are_never_taken_for_one_machine(tmp_path: Path) -> None:
    """Old records name none: two folders of one run may be of two machines that are called the same."""
    meta, trials, counting_runs = spread([{"device": "cpu", "environment": {}}], blocks=6)
    halves = [[t for t in trials if (t.block < 3) == first] for first in (True, False)]
    folders = [put(tmp_path / name, (meta, half, counting_runs)) for name, half in zip("ab", halves, strict=True)]
    _, apart = run_parts.read(folders)
    assert "name no host" in apart.apart
    both = put(tmp_path / "both", (meta, trials, counting_runs))
    assert row_of(only(both).summary()).n == 6  # one folder is of one machine, as it was
    (copied,) = run_parts.read([both, folders[0]])  # copies add nothing, so that nothing need be known of them
    assert len(copied.records[1]) == len(trials)


def test_a_run_without_an_identity_is_not_pooled_over_devices(tmp_path: Path) -> None:
    folders = [put(tmp_path / str(d), spread([each], blocks=6, identity=None)) for d, each in enumerate(FOUR)]
    parts = run_parts.read(folders)
    assert [part.apart for part in parts] == ["", *["another device"] * 3]


def test_finished_runs_of_other_identities_are_not_pooled(tmp_path: Path) -> None:
    """Whoever pools finished runs until something shows has taken looks that nobody declared."""
    folders = [
        put(tmp_path / str(d), spread([each], blocks=6, identity=f"{d}" * 32, finished=True))
        for d, each in enumerate(FOUR)
    ]
    parts = run_parts.read(folders)
    assert len(parts) == 4
    assert all("finished runs are not pooled" in part.apart for part in parts[1:])


# ── once, however often it is named ───────────────────────────────────────────────────────────────────────────────


def test_overlapping_folders_count_a_trial_once(tmp_path: Path) -> None:
    records = spread(FOUR, effects=EFFECTS)
    run = put_shards(tmp_path / "run", records)
    shutil.copytree(run / "shards" / "b1", tmp_path / "copy")
    merged = put(tmp_path / "merged", records)
    expected = only(run).summary().workloads
    for named in (
        [run, run],
        [run, tmp_path / "copy", run / "shards" / "b1"],
        [run, merged],
        [merged, run],
        [*run.glob("shards/*"), run],
    ):
        (part,) = run_parts.read(named)
        assert len(part.records[1]) == len(records[1]), named
        assert part.summary().workloads == expected


def test_a_duplicate_of_another_content_is_told_and_enters_nothing(tmp_path: Path) -> None:
    records = spread(FOUR)
    run = put_shards(tmp_path / "run", records)
    meta, trials, _ = records
    edited = [t.model_copy(update={"quality": {"accuracy": 0.99}}) for t in trials if t.block == 0]
    copy = put(tmp_path / "copy", (meta, edited, []))
    first, second = run_parts.read([run, copy])
    assert f"its record {edited[0].trial} is another than that in {run / 'shards' / 'b1'}" in second.apart
    assert first.summary().workloads == only(run).summary().workloads


def test_a_block_that_was_trained_again_elsewhere_stands_apart(tmp_path: Path) -> None:
    meta, trials, counting_runs = spread(FOUR)
    again = [t.model_copy(update={"started_at": "2026-02-01T00:00:00Z"} | card(9)) for t in trials if t.block == 2]
    run = put_shards(tmp_path / "run", (meta, trials, counting_runs))
    first, second = run_parts.read([run, put(tmp_path / "again", (meta, again, []))])
    assert (len(first.records[1]), second.apart) == (
        len(trials),
        "it trained block 2 again; finished runs are not pooled",
    )


def test_a_block_that_began_on_one_card_and_was_made_anew_on_another_counts_where_it_is_whole(tmp_path: Path) -> None:
    meta, trials, counting_runs = spread(FOUR)
    begun = [t for t in trials if t.block == 0 and t.method == "baseline"]
    anew = [
        t.model_copy(update=card(1) | {"trial": t.trial.replace("-i0-", "-i1-"), "invocation": 1})
        for t in trials
        if t.block == 0
    ]
    kept = [*begun, *anew, *(t for t in trials if t.block)]
    calls = [*meta.invocations, meta.invocations[0].model_copy(update={"number": 1})]
    meta = meta.model_copy(update={"invocations": calls})
    row = row_of(only(put_shards(tmp_path / "run", (meta, kept, counting_runs))).summary())
    assert (row.n, row.units, row.records[0]) == (12, 4, "b0-i1-cnn-digits.half")


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_folders_changes_nothing(tmp_path: Path, seed: int) -> None:
    run = put_shards(tmp_path / "run", spread(FOUR, effects=EFFECTS))
    shards = sorted(run.glob("shards/*"))
    shuffled = random.Random(seed).sample(shards, len(shards))
    (part,) = run_parts.read([run, *shuffled])
    (other,) = run_parts.read([*shuffled, run])
    assert part.summary().workloads == other.summary().workloads


@pytest.mark.parametrize(("place", "parts"), [("run/shards", 1), ("elsewhere", 12)])
def test_shards_that_no_plan_gave_an_identity_are_one_run_by_the_folder_they_lie_in(
    tmp_path: Path, place: str, parts: int
) -> None:
    meta, trials, counting_runs = spread(FOUR)
    found: list[merging.Found] = []
    for block in range(12):
        identity = f"{block:032}"
        own = [t.model_copy(update={"run_identity": identity}) for t in trials if t.block == block]
        run = meta.model_copy(update={"run_identity": identity, "shard": [block]})
        found.append((tmp_path / place / f"b{block + 1}", (run, own, counting_runs)))
    found.append((tmp_path / "copy", found[3][1]))  # a copy of a shard adds nothing, wherever it lies
    merged = run_parts.joined(found)
    assert len(merged) == parts
    assert sum(len(part.records[1]) for part in merged) == len(trials)
    if parts == 1:
        assert row_of(merged[0].summary()).units == 4


def test_a_finished_shard_does_not_finish_the_run(tmp_path: Path) -> None:
    meta, trials, counting_runs = spread(FOUR, finished=True)
    some = [t for t in trials if t.block < 9]
    part = only(put_shards(tmp_path / "run", (meta, some, counting_runs)))
    assert not part.records[0].finished
    assert row_of(part.summary()).verdict == "no verdict"


def test_shards_behind_a_link_are_refused(tmp_path: Path) -> None:
    run = put_shards(tmp_path / "run", spread(FOUR))
    shutil.move(run / "shards" / "b1", tmp_path / "elsewhere")
    (run / "shards" / "b1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError) as caught:
        run_parts.read([run])
    assert caught.value.problems[0].code == "E612"


# ── merging is linear ─────────────────────────────────────────────────────────────────────────────────────────────


class Counted(list[Trial]):
    """Trials that count how often they are gone through."""

    passes = 0

    def __iter__(self) -> Any:
        Counted.passes += 1
        return super().__iter__()


@pytest.mark.parametrize("alike", [True, False])
def test_merging_compares_each_folder_with_one_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    """alike: blocks of one run; else runs of one block each, that all stand apart."""
    meta, trials, _ = spread([host(0)], blocks=400, noise=0.0)
    by_block = [[t for t in trials if t.block == (block if alike else 0)] for block in range(400)]

    def comparisons(count: int) -> int:
        calls = 0

        def counted(self: Trial, other: object) -> bool:
            nonlocal calls
            calls += 1
            return False  # no two are copies

        monkeypatch.setattr(Trial, "__eq__", counted)
        Counted.passes = 0
        identity = [IDENTITY if alike else f"{block:032}" for block in range(count)]
        found = [
            (Path(f"{block}"), (meta.model_copy(update={"run_identity": identity[block]}), Counted(each), []))
            for block, each in enumerate(by_block[:count])
        ]
        parts = run_parts.joined(found)
        assert len(parts) == (1 if alike else count)
        monkeypatch.undo()
        return calls + Counted.passes

    small, large = comparisons(100), comparisons(400)
    assert large <= 4.2 * small


# ── joules and seconds are each device's own ──────────────────────────────────────────────────────────────────────


def test_no_joules_and_no_seconds_are_averaged_over_devices(tmp_path: Path) -> None:
    summary = only(put_shards(tmp_path / "run", spread(FOUR, effects=EFFECTS))).summary()
    workload, row = summary.workloads[0], row_of(summary)
    for cell in (workload.baseline, row):
        assert (cell.seconds, cell.energies) == (None, ())
        assert [each.n for each in cell.on_devices] == [3, 3, 3, 3]
        assert all(each.seconds is not None and each.energies for each in cell.on_devices)
    text = " ".join(screen(summary, 100, verbose=True).split())
    assert text.count("on Card 700 (GPU-2) 10.0 s") == 1


def test_carbon_is_told_of_each_device(tmp_path: Path) -> None:
    part = only(put_shards(tmp_path / "run", spread(FOUR)))
    facts = report_carbon([part], Asked(("FR",)), None)
    uses, gains = facts["uses"], facts["gains"]
    assert [use["device"] for use in uses] == [f"GPU-{number}" for number in range(4)] * 2
    assert all(use["n"] == 3 and use["measured_j"]["mean"] > 0 for use in uses)
    assert [gain["method"] for gain in gains] == [f"half, Card 700 (GPU-{number})" for number in range(4)]


@pytest.mark.parametrize("form", ["model-card", "sci"])
def test_an_export_of_joules_needs_one_device_and_names_what_to_type(tmp_path: Path, form: str) -> None:
    run = put_shards(tmp_path / "run", spread(FOUR))
    with pytest.raises(UsageError) as caught:
        export(run, form)
    (problem,) = caught.value.problems
    assert problem.code == "E609"
    assert f"energybench export {run / 'shards' / 'b12'} --to {form}" in (problem.hint or "")


@pytest.mark.parametrize("form", ["csv", "curves", "emissions"])
def test_a_table_has_every_trial_of_every_part_once(tmp_path: Path, form: str) -> None:
    run = put_shards(tmp_path / "run", spread(FOUR[:2]))
    found = list(csv.DictReader(io.StringIO(export([run, run / "shards" / "b1"], form)[0].decode())))
    expected = {"csv": 36, "curves": 0, "emissions": 36}[form]
    assert len(found) == expected


def test_the_gate_refuses_seconds_and_joules_of_several_devices_and_holds_savings(tmp_path: Path) -> None:
    base = put_shards(tmp_path / "base", spread(FOUR, effects=EFFECTS))
    head = put_shards(tmp_path / "head", spread(FOUR, effects=EFFECTS, identity="cd" * 16, seed=7, energy=1.0))
    with pytest.raises(CannotMeasure, match="on one device only, and this ran on 4 GPUs"):
        compare_runs.compare(base, head, levels=["absolute"])
    result = compare_runs.compare(base, head, levels=["savings"])
    (cost,) = [each for each in result.findings if each.quantity.startswith("energy")]
    assert cost.outcome == "suspected"
    assert compare_runs.compare(base, base).findings


def test_the_gate_tells_of_devices_that_are_not_pooled(tmp_path: Path) -> None:
    base, head = (put_shards(tmp_path / name, spread(FOUR[:2], seed=n)) for n, name in enumerate(("base", "head")))
    result = compare_runs.compare(base, head)
    (saving,) = [each for each in result.findings if each.level == "savings"]
    assert saving.outcome == "cannot tell"
    assert "different devices" in saving.reason
    assert any(each.level == "counts" and each.outcome == "same" for each in result.findings)


def test_a_file_of_benchmarks_has_each_device_by_itself(tmp_path: Path) -> None:
    head = compare_runs.read_side(put_shards(tmp_path / "run", spread(FOUR)))
    benchmarks = ci_formats.pytest_benchmark(head)["benchmarks"]
    assert [each["name"] for each in benchmarks] == [
        f"cnn-digits[{method}, GPU-{device}]" for method in ("baseline", "half") for device in range(4)
    ]
    assert {each["stats"]["rounds"] for each in benchmarks} == {3}
    (entry,) = ci_formats.benchmark(head, bigger=True)
    assert entry["extra"].endswith("12 blocks on 4 GPUs")


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_screen_says_how_many_blocks_on_how_many_devices(tmp_path: Path, width: int) -> None:
    text = screen(only(put_shards(tmp_path / "run", spread(FOUR))).summary(), width)
    assert "12 blocks on 4 GPUs" in " ".join(text.split())
    assert all(len(line) <= width for line in text.splitlines())


def test_pages_link_to_records_in_the_shards(tmp_path: Path) -> None:
    run = put_shards(tmp_path / "run", spread(FOUR))
    part = only(run)
    pages.write(part.summary(), part.records[1], run, homes=part.homes)
    pages.write_html(part.summary(), part.records[1], run, homes=part.homes)
    text, html = ((run / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    record = "shards/b3/records/b2-i0-cnn-digits.half.json"
    assert (run / record).exists()
    for found in (text, html):
        assert record in found
        assert "12 blocks on 4 GPUs" in found
    assert pages.rewrite(run).read_text(encoding="utf-8") == text
    assert pages.runs(tmp_path) == [run]


def test_what_stands_side_by_side_is_told_with_its_requirements(tmp_path: Path) -> None:
    asks = {"workload": "*", "method": "*", "saves_at_least": 0.1}
    resolved = {"accept": Run().accept, "require": [asks]}
    parts = run_parts.read([put_shards(tmp_path / "run", spread(FOUR[:2], resolved=resolved))])
    console = Console(file=io.StringIO(), width=80, color_system=None)
    merge.side_by_side(parts, console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert text.count("§ met: cnn-digits: half must save at least 10.0 %") == 2
    assert "Apart: another device: 3 of one kind are the least to pool." in text
    facts = json.loads(json.dumps(merge.to_json(parts), allow_nan=False))
    assert [each["report"]["device_note"] != "" for each in facts["runs"]] == [True, True]


def test_facts_for_machines_say_what_is_counted(tmp_path: Path) -> None:
    facts = json.loads(json.dumps(to_json(only(put_shards(tmp_path / "run", spread(FOUR))).summary())))
    row = facts["workloads"][0]["rows"][0]
    assert (row["n"], row["units"], row["unit"]) == (12, 4, "GPU")
    assert (row["measured"]["n"], row["measured"]["blocks"], row["measured"]["unit"]) == (4, 12, "GPU")


def test_one_device_says_nothing_of_devices_and_its_pages_are_as_they_were(tmp_path: Path) -> None:
    meta, trials, counting_runs = spread(FOUR[:1], blocks=5, finished=True)
    folder = put(tmp_path / "run", (meta, trials, counting_runs))
    summary = only(folder).summary()
    assert (summary.device_note, row_of(summary).unit, row_of(summary).units) == ("", "block", 5)
    for text in (markdown(summary), page(summary, trials, folder)):
        assert "GPUs of one kind" not in text
    assert CARD["name"] in only(folder).device


# ── runs of earlier schemas ───────────────────────────────────────────────────────────────────────────────────────

OLD = sorted(path.parent for path in (Path(__file__).parents[1] / "old_records").glob("schema-*/*/run.json"))


@pytest.mark.parametrize("folder", OLD, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_an_old_run_and_its_copies_are_one_run_and_halves_of_it_are_not_taken_for_one_machine(
    folder: Path, tmp_path: Path
) -> None:
    alone = only(folder)
    assert (alone.summary().device_note, row_of(alone.summary()).unit) == ("", "block")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (merged,) = run_parts.read([folder, copy])
    assert merged.summary().workloads == alone.summary().workloads
    halves = [Path(shutil.copytree(folder, tmp_path / name)) for name in ("first", "second")]
    for half, kept in zip(halves, ("b0", "b1"), strict=True):
        for record in half.glob("records/*.json"):
            if not record.name.startswith(kept):
                record.unlink()
    first, second = run_parts.read(halves)
    assert second.apart == "its records name no host, so nothing tells whether it is the same machine"
    assert len(first.records[1]) + len(second.records[1]) < len(alone.records[1])
    (again,) = run_parts.read([folder, *halves])  # beside the whole they are copies, and add nothing
    assert len(again.records[1]) == len(alone.records[1])


# ── what one types ────────────────────────────────────────────────────────────────────────────────────────────────

REQUIRES = {"accept": Run().accept, "require": [{"workload": "*", "method": "*", "saves_at_least": 0.1}]}


def typed(*arguments: str | Path, code: int = 0) -> str:
    """What a command prints on stdout."""
    from click.testing import CliRunner

    from energybench.cli.command_line import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


@pytest.mark.parametrize("plan", [True, False], ids=["with a plan", "shards alone"])
def test_every_verb_takes_a_folder_with_shards(tmp_path: Path, plan: bool) -> None:
    run = put_shards(tmp_path / "run", spread(FOUR, resolved=REQUIRES), plan=plan)
    assert "12 blocks on 4 GPUs" in wording.plain(" ".join(typed("report", run).split()))
    assert json.loads(typed("report", run, "--json"))["workloads"][0]["rows"][0]["units"] == 4
    assert "§ met" in typed("report", run, "--require", "--strict")
    assert "This benchmark itself took" in typed("report", run, "--carbon")
    assert typed("show", run).count("cnn-digits.half") == 12
    assert typed("export", run, "--to", "csv").count("\n") == 37
    assert "met" in typed("compare", run)
    typed("compare", tmp_path / "golden.json", run, "--accept")
    assert (tmp_path / "golden.json").exists()
    typed("report", run, "--write", "--html")
    assert (run / "report.html").exists()
    assert not list(run.glob("shards/*/report*"))
    typed("report", "--all", tmp_path, "--html", tmp_path / "site")
    (site_page,) = (tmp_path / "site" / "runs").rglob("*.html")
    assert "12 blocks on 4 GPUs" in site_page.read_text(encoding="utf-8")


def test_what_cannot_be_pooled_is_printed_gated_and_exported_side_by_side(tmp_path: Path) -> None:
    run = put_shards(tmp_path / "run", spread(FOUR[:2], resolved=REQUIRES))
    assert "2 runs side by side" in typed("report", run)
    assert typed("report", run, "--require", "--strict").count("§ met") == 2
    assert typed("report", run, "--carbon").count("This benchmark itself took") == 2
    assert typed("export", run, "--to", "csv").count("\n") == 37
    never = spread(FOUR[:2], resolved=REQUIRES, energy=1.0, identity="cd" * 16)
    typed("report", put_shards(tmp_path / "never", never), "--require", code=1)


def test_a_page_of_what_stands_apart_is_refused_with_the_site_to_make(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from energybench.cli.command_line import app

    run = put_shards(tmp_path / "run", spread(FOUR[:2]))
    error = CliRunner().invoke(app, ["report", str(run), "--html"]).exception
    assert isinstance(error, UsageError)
    assert error.problems[0].code == "E609"
    site = f"energybench report --all {run} --html site"
    assert site in (error.problems[0].hint or "")
    typed("report", "--all", run, "--html", tmp_path / "site")
    assert len(list((tmp_path / "site" / "runs").rglob("*.html"))) == 2
