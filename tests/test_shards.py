"""Which blocks a shard is asked for, where its plan is, and which of its records count where the device changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_schedule import cells, trial

from energybench.common.errors import CannotWrite, UsageError
from energybench.common.hosts import host
from energybench.records.reader import read
from energybench.records.record import Invocation, Placement, RunFile, Trial, json_of, write_json
from energybench.records.run_folder import Folder, abandoned, choose
from energybench.records.shards import named, plan_of, ranges, shards_of
from energybench.runner.placement import placement
from energybench.runner.schedule import missing, superseded
from energybench.runner.shard import blocks_of, command_of_block, refuse_sharded


def run_file(**more: object) -> RunFile:
    given = {"suite": "s", "run": "r", "digest": "d", "suite_path": "s.toml", "suite_text": "", "resolved": {}}
    return RunFile(**given, **{"blocks": 3, **more})  # type: ignore[arg-type]


# ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.sets(st.integers(0, 300), min_size=1, max_size=40))
def test_blocks_are_read_as_they_are_named(blocks: set[int]) -> None:
    assert blocks_of("--block", ranges(blocks)) == tuple(sorted(blocks))
    assert named(blocks) == f"b{ranges(blocks)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", (0,)), ("3-5", (2, 3, 4)), (" 4-6, 1 ", (0, 3, 4, 5)), ("2,2,1-2", (0, 1)), ("007", (6,))],
)
def test_blocks_count_from_one_as_a_run_prints_them(text: str, expected: tuple[int, ...]) -> None:
    assert blocks_of("--block", text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0-2", "3-2", "-1", "1-", "b3", "1;2", "1,,2", "1.5", "٣", "9" * 30, "1-9999999"]
)
def test_what_names_no_block_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        blocks_of("--block", text)
    (problem,) = caught.value.problems
    assert problem.code == "E204"
    assert "3-5" in problem.hint


def test_the_command_of_a_block_is_the_plan_s_own() -> None:
    argv = ["energybench", "run", "a b.toml", "--quick", "--plan-only", "--set", "x=1", "--out", "F", "--until-decided"]
    command = command_of_block(argv, Path("F"))
    assert command == "energybench run 'a b.toml' --quick --set x=1 --block 1 --out F/shards/b1"
    assert command_of_block(["energybench", "run", "s", "--out=F"], Path("G")) == (
        "energybench run s --block 1 --out G/shards/b1"
    )


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_shards_come_in_the_order_of_their_blocks_and_only_those_that_have_begun(tmp_path: Path) -> None:
    assert shards_of(tmp_path) == []
    for name in ("b10", "b2", "b1,4-6", "b9", "another"):
        write_json(tmp_path / "shards" / name / "run.json", {})
    (tmp_path / "shards" / "b3").mkdir()
    (tmp_path / "shards" / "notes.txt").touch()
    assert [each.name for each in shards_of(tmp_path)] == ["another", "b1,4-6", "b2", "b9", "b10"]


def test_the_plan_of_a_shard_is_in_the_folder_above_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_of(tmp_path / "F/shards/b1") is None
    write_json(tmp_path / "F/run.json", {})
    assert plan_of(tmp_path / "F/shards/b1") == tmp_path / "F"
    assert plan_of(tmp_path / "F/other/b1") is None
    assert plan_of(tmp_path / "F/shards/b1/x") is None
    (tmp_path / "F/shards").mkdir()
    monkeypatch.chdir(tmp_path / "F/shards")
    assert plan_of(Path("b1")) == tmp_path / "F"


def test_a_run_in_shards_is_not_continued_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = Path("reports/s/1")
    write_json(home / "run.json", run_file())
    assert choose("s", "d", None, False).path == home  # planned, and not begun
    refuse_sharded(home)
    write_json(home / "shards/b1/run.json", run_file(shard=[0]))
    assert choose("s", "d", None, False).path != home
    assert choose("s", "d", None, False, sharded=True).path == home
    assert abandoned("s", []) is None  # nobody is asked about it
    with pytest.raises(UsageError, match="E629"):
        refuse_sharded(home)


def test_a_shard_is_complete_when_it_has_ended_and_never_a_finished_run() -> None:
    def ended(outcome: str | None, shard: list[int] | None) -> RunFile:
        call = Invocation(number=0, argv=[], started_at="", outcome=outcome)
        return run_file(shard=shard, invocations=[call])

    assert ended("finished", [2]).complete
    assert not ended("interrupted", [2]).complete
    assert not ended(None, [2]).complete
    assert not ended("finished", None).complete  # of a whole run `finished` says it
    assert run_file(finished=True).complete
    assert not run_file().complete


# ── devices ───────────────────────────────────────────────────────────────────────────────────────────────────────


def on(made: Trial, device: str) -> Trial:
    return made.model_copy(update={"device": device})


@given(
    st.integers(1, 3),  # blocks
    st.integers(0, 20),  # that were run before the device changed
    st.integers(0, 5),
    st.integers(1, 2),
)
def test_a_block_that_is_begun_elsewhere_starts_anew_and_a_whole_one_stays(
    blocks: int, count: int, seed: int, workloads: int
) -> None:
    planned = cells(workloads)
    slots = missing(planned, blocks, seed, [], 0)
    there = [on(trial(slot), "A") for slot in slots[:count]]
    gone = superseded(planned, range(blocks), seed, there, lambda each: each.device == "B")
    kept = [each for each in there if each not in gone]
    whole = {block for block in range(blocks) if sum(each.block == block for each in there) == len(planned)}
    assert {each.block for each in kept} == whole
    assert {each.block for each in gone} == {each.block for each in there} - whole
    left = missing(planned, blocks, seed, kept, 1)
    done = [*kept, *(on(trial(slot), "B") for slot in left)]
    for block in range(blocks):  # each block is of one device, with a baseline of it
        of_block = [each for each in done if each.block == block]
        assert len({each.device for each in of_block}) == 1
        assert len(of_block) == len(planned)
    assert superseded(planned, range(blocks), seed, there, lambda _: True) == []  # on the same device nothing is


def test_the_missing_slots_of_some_blocks_are_those_of_the_whole_run() -> None:
    planned = cells(2)
    whole = missing(planned, 5, 3, [], 0)
    parts = [slot for blocks in ((4,), (0, 2), (1, 3)) for slot in missing(planned, blocks, 3, [], 0)]
    assert sorted(parts, key=whole.index) == whole


def test_a_trial_names_its_device_and_on_a_processor_its_host() -> None:
    made = trial(missing(cells(), 1, 0, [], 0)[0])
    assert made.made_on == "cpu"  # of an earlier energybench
    here = made.model_copy(update={"placement": Placement(host="0123456789ab")})
    assert here.made_on == "cpu of 0123456789ab"
    assert here.model_copy(update={"device": "GPU-1"}).made_on == "GPU-1"


@pytest.mark.parametrize(
    ("environ", "job", "restarts"),
    [
        ({}, None, None),
        ({"SLURM_JOB_ID": "47"}, "slurm 47", 0),
        ({"SLURM_JOB_ID": "48", "SLURM_ARRAY_JOB_ID": "47", "SLURM_ARRAY_TASK_ID": "3"}, "slurm 47_3", 0),
        ({"SLURM_JOB_ID": "47", "SLURM_RESTART_COUNT": "2"}, "slurm 47", 2),
        ({"SLURM_JOB_ID": "47", "SLURM_RESTART_COUNT": "two"}, "slurm 47", None),
        ({"RAY_JOB_ID": "0100", "SLURM_JOB_ID": "47"}, "ray 0100", None),
        ({"RAY_JOB_ID": "0100", "ENERGYBENCH_RESTARTS": "1"}, "ray 0100", 1),
        ({"SLURM_JOB_ID": "4\n7" * 100}, None, None),
    ],
)
def test_a_record_says_in_which_job_it_was_made(environ: dict[str, str], job: str | None, restarts: int | None) -> None:
    found = placement(environ)
    assert found.host == host()
    if "\n" in environ.get("SLURM_JOB_ID", ""):
        assert found.job is not None
        assert found.job.isprintable()
        assert len(found.job) <= 100
        return
    assert (found.job, found.restarts) == (job, restarts)


def test_a_record_of_before_names_no_place_and_is_read(tmp_path: Path) -> None:
    made = trial(missing(cells(), 1, 0, [], 0)[0]).model_copy(update={"schema_": 4})
    content = json.loads(json_of(made))
    del content["placement"], content["seal"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert read(tmp_path / "t.json", Trial).placement is None


def test_records_that_are_set_apart_are_kept_as_they_are_and_read_by_nobody(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", run_file())
    made = [trial(slot) for slot in missing(cells(), 1, 0, [], 0)]
    for each in made:
        write_json(tmp_path / "records" / f"{each.trial}.json", each)
    before = (tmp_path / "records" / f"{made[0].trial}.json").read_bytes()
    folder = Folder(tmp_path)
    with folder.lock():
        folder.set_apart(made[0].trial)
        assert made[0].trial not in {each.trial for each in folder.trials()}
        write_json(tmp_path / "records" / f"{made[0].trial}.json", made[0])
        with pytest.raises(CannotWrite):  # nothing that was set apart is written over
            folder.set_apart(made[0].trial)
    assert (tmp_path / "superseded" / f"{made[0].trial}.json").read_bytes() == before
