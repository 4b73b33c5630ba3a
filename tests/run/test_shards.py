"""Blocks of one run as jobs: a plan, a folder for each, and together the records of one run.

Most of these are light runs (light.py): everything is real but the training.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import light
import pytest
from command_line import PATIENCE_S, energybench
from faults import fault
from light_runs import ORDER, held_at, release, run, told
from tiny_runs import write_suite

from energybench.common.hosts import host
from energybench.records.reader import read_folder
from energybench.records.record import Trial
from energybench.records.shards import shards_of

pytestmark = pytest.mark.slow
OF_BLOCK = {block: [name for name in ORDER if name.startswith(f"b{block}-")] for block in range(light.BLOCKS)}


def shard(block: str) -> tuple[str, str, str, str]:
    return "--block", block, "--out", f"F/shards/b{block}"


def planned(place: Path) -> Path:
    done = run(place, "--plan-only", "--out", "F")
    assert done.returncode == 0, done.stderr
    return place / "F"


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names(folder: Path) -> set[str]:
    return {file.stem for file in (folder / "records").glob("*.json")}


def test_the_plan_is_made_and_counted_once_and_nothing_is_trained(place: Path) -> None:
    folder = planned(place)
    found, trials, counting_runs = read_folder(folder)
    assert (found.finished, trials) == (False, [])
    assert {each.method for each in counting_runs} == {"baseline", "mine"}
    assert [call.outcome for call in found.invocations] == ["planned"]
    before = content(folder)
    again = run(place, "--plan-only", "--out", "F")
    assert again.returncode == 0, again.stderr
    assert "--block 1 --out F/shards/b1" in again.stdout
    assert content(folder) == before


def test_shards_have_the_records_of_one_run_and_are_not_repeated(place: Path) -> None:
    folder = planned(place)
    plan = read_folder(folder)[0]
    for block in ("3", "1-2"):
        done = run(place, *shard(block))
        assert done.returncode == 0, done.stderr
        assert "counted" not in done.stderr  # that was done with the plan
    whole = run(place, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    parts = [read_folder(each) for each in shards_of(folder)]
    assert [found.shard for found, *_ in parts] == [[0, 1], [2]]
    together = {each.trial: each for _, trials, _ in parts for each in trials}
    alone = {each.trial: each for each in read_folder(place / "whole")[1]}
    assert set(together) == set(ORDER) == set(alone)
    for name, made in together.items():
        assert (made.seed, made.position, made.block) == (alone[name].seed, alone[name].position, alone[name].block)
        assert made.run_identity == plan.run_identity
        assert made.placement is not None
        assert made.placement.host == host()
    for found, _, counting_runs in parts:
        assert (found.complete, found.finished) == (True, False)
        assert (found.blocks, found.order_seed) == (plan.blocks, plan.order_seed)
        assert counting_runs == read_folder(folder)[2]
    before = content(folder)
    again = run(place, *shard("3"))
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stderr
    assert content(folder) == before


def test_a_shard_without_a_plan_plans_and_counts_for_itself(place: Path) -> None:
    done = run(place, "--block", "2", "--out", "alone")
    assert done.returncode == 0, done.stderr
    found, trials, counting_runs = read_folder(place / "alone")
    assert {each.trial for each in trials} == set(OF_BLOCK[1])
    assert len(counting_runs) == 2
    assert found.run_identity


@fault("shard at work")
def test_a_shard_has_one_worker_and_others_are_told_to_come_again(place: Path) -> None:
    planned(place)
    running = held_at(place, OF_BLOCK[1][0], *shard("2"))
    second = run(place, *shard("2"))
    assert second.returncode == 75
    told(second.stderr, "E604")
    beside = run(place, *shard("1"))  # another block is another folder
    assert beside.returncode == 0, beside.stderr
    release(place)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert "block 2: finished" in errors  # a trial that was held for long is doubted: no matter of the lock's
    assert {t.trial for t in read_folder(place / "F/shards/b2")[1] if t.status == "ok"} == set(OF_BLOCK[1])


@fault("shard interrupted")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_shard_that_is_interrupted_keeps_what_is_whole_and_goes_on(place: Path, number: signal.Signals) -> None:
    folder = planned(place) / "shards" / "b1"
    running = held_at(place, OF_BLOCK[0][1], *shard("1"))
    os.kill(running.pid, number)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130, errors
    assert names(folder) == {OF_BLOCK[0][0]}
    found = read_folder(folder)[0]
    assert ([call.outcome for call in found.invocations], found.complete) == (["interrupted"], False)
    kept = (folder / "records" / f"{OF_BLOCK[0][0]}.json").read_bytes()
    release(place)
    done = run(place, *shard("1"))
    assert done.returncode == 0, done.stderr
    assert (folder / "records" / f"{OF_BLOCK[0][0]}.json").read_bytes() == kept
    assert not (folder / "superseded").exists()  # the device is the same
    assert {(t.block, t.method) for t in read_folder(folder)[1]} == {(0, method) for method in light.METHODS}


@fault("another device")
def test_a_block_that_goes_on_on_another_device_starts_anew(place: Path) -> None:
    folder = planned(place) / "shards" / "b1"
    running = held_at(place, OF_BLOCK[0][2], *shard("1"), LIGHT_DEVICE="GPU-A")
    os.kill(running.pid, signal.SIGTERM)
    running.communicate(timeout=PATIENCE_S)
    begun = content(folder / "records")
    assert set(begun) == {f"{name}.json" for name in OF_BLOCK[0][:2]}
    release(place)
    done = run(place, *shard("1"), LIGHT_DEVICE="GPU-B")
    assert done.returncode == 0, done.stderr
    assert "block 1: 2 trials of another device (GPU-A) set apart in superseded/" in " ".join(done.stderr.split())
    trials = read_folder(folder)[1]
    assert {each.device for each in trials} == {"GPU-B"}
    assert {each.invocation for each in trials} == {1}
    assert sorted(each.method for each in trials) == sorted(light.METHODS)
    assert content(folder / "superseded") == begun
    again = run(place, *shard("1"), LIGHT_DEVICE="GPU-C")  # what is whole stays, wherever it is asked for again
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stderr
    assert read_folder(folder)[1] == trials


def test_a_whole_run_that_goes_on_elsewhere_repeats_only_the_block_that_was_begun(place: Path) -> None:
    running = held_at(place, OF_BLOCK[1][1], "--out", "whole", LIGHT_DEVICE="GPU-A")
    os.kill(running.pid, signal.SIGTERM)
    running.communicate(timeout=PATIENCE_S)
    release(place)
    done = run(place, "--out", "whole", LIGHT_DEVICE="GPU-B")
    assert done.returncode == 0, done.stderr
    devices: dict[int, set[str]] = {}
    for each in read_folder(place / "whole")[1]:
        devices.setdefault(each.block, set()).add(each.device)
    assert devices == {0: {"GPU-A"}, 1: {"GPU-B"}, 2: {"GPU-B"}}
    assert names_in(place / "whole" / "superseded") == {OF_BLOCK[1][0]}


def names_in(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.json")}


@fault("shard of another plan")
def test_a_shard_of_other_settings_or_of_another_plan_is_refused_in_a_line(place: Path) -> None:
    planned(place)
    assert run(place, *shard("1")).returncode == 0
    (place / "mine.py").write_text("# another\n")
    refused = run(place, *shard("2"))
    assert refused.returncode == 2
    assert "the file of method 'mine'" in told(refused.stderr, "E603")
    assert not (place / "F/shards/b2").exists()
    (place / "mine.py").unlink()
    other = run(place, "--block", "2", "--out", "F/shards/b1")
    assert other.returncode == 2
    assert "block 1 of the run, not block 2" in told(other.stderr, "E629")
    whole = run(place, "--out", "F")
    assert whole.returncode == 2
    told(whole.stderr, "E629")
    beyond = run(place, *shard("4"))
    assert beyond.returncode == 2
    assert "1 to 3" in told(beyond.stderr, "E204")
    for part in ("run.json", "witness"):
        (place / "F" / part).rename(place / f"old-{part}")
    planned(place)  # again: another run
    strange = run(place, *shard("1"))
    assert strange.returncode == 2
    assert "by the plan" in told(strange.stderr, "E625")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--block", "1", "--out", "F/shards/b1", "--until-decided"), "only the report of all of them looks"),
        (("--block", "1", "--out", "F/shards/b1", "--max-time", "1h"), "takes no --max-time"),
        (("--block", "1", "--out", "F/shards/b1", "--add-blocks", "1"), "takes no --add-blocks"),
        (("--block", "1", "--out", "F/shards/b1", "--plan-only"), "takes no --plan-only"),
        (("--block", "1"), "--block needs --out"),
        (("--block", "0", "--out", "F/shards/b0"), "blocks count from 1"),
        (("--plan-only", "--json"), "takes no --json"),
    ],
)
def test_what_one_job_of_many_cannot_decide_is_refused_in_words(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = energybench("run", "quick", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


METHODS = '\n[[method]]\nuse = "gradsamp"\nskip = "every:2"\n'


def test_shards_train_the_weights_of_one_run_to_the_bit(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, METHODS, blocks=2, twin=False)
    for words in (
        ("--out", "whole"),
        ("--plan-only", "--out", "F"),
        ("--block", "2", "--out", "F/shards/b2"),
        ("--block", "1", "--out", "F/shards/b1"),
    ):
        done = energybench("run", suite, *words, cwd=tmp_path, ENERGYBENCH_ORDER_SEED="3")
        assert done.returncode == 0, done.stderr
    whole = facts(read_folder(tmp_path / "whole")[1])
    parts = facts([each for folder in shards_of(tmp_path / "F") for each in read_folder(folder)[1]])
    assert parts == whole
    assert len(whole) >= 4
    counted = [
        {(w.workload, w.method): w.counted_flop for w in read_folder(tmp_path / each)[2]} for each in ("whole", "F")
    ]
    assert counted[0] == counted[1]


def facts(trials: list[Trial]) -> dict[str, object]:
    return {
        each.trial: (each.seed, each.position, each.weights_sha256, each.samples_sha256, each.quality, each.digest)
        for each in trials
    }


def test_a_plan_needs_no_sensor_that_only_the_node_of_a_block_has(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, METHODS, blocks=1, twin=False)
    suite.write_text(suite.read_text().replace('energy = "off"', 'energy = "require"'))
    done = energybench("run", suite, "--plan-only", "--out", "F", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cannot measure energy" in done.stderr
    assert json.loads((tmp_path / "F/run.json").read_text())["invocations"][0]["outcome"] == "planned"
    block = energybench("run", suite, "--block", "1", "--out", "F/shards/b1", cwd=tmp_path)
    assert block.returncode == 5
    assert "E501" in block.stderr
