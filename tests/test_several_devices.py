"""Several ranks that train one model: the weights of one process, one decision for all, nobody waited for in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import rank_worker
import torch
from click.testing import CliRunner
from command_line import PATIENCE_S
from fakes.nvml import UUID, FakeGpu
from faults import fault
from hypothesis import given
from hypothesis import strategies as st
from run.tiny_runs import suite_text
from support import digits, make_run

from energybench.cli import training
from energybench.common import processors
from energybench.common.errors import UsageError
from energybench.meter import survey
from energybench.meter.gpu import GpuMeter
from energybench.meter.sensors import MeterSelection, open_meters
from energybench.runner import plan_devices, plan_threads, runner
from energybench.runner.launched import leave_torchrun, refuse_ranks, torchrun_of_one_node
from energybench.runner.plan_request import spec_of
from energybench.suite.suite import InvalidSuite, load
from energybench.train import geometry
from energybench.train.batch import Batch, Share
from energybench.train.method import Method, Task
from energybench.train.rank_run import sets
from energybench.train.refusals import refuse_methods, refuse_task
from energybench.trial.build import refuse_wrapped
from energybench.trial.on_ranks import RankReport, keep, report_of
from energybench.trial.record_draft import TrialDraft
from energybench.workloads.tasks import task_named

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    words = [sys.executable, str(ROOT / "tests" / "rank_worker.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def found(ranks: Path) -> dict[str, Any]:
    record = json.loads((ranks / "together.json").read_text())
    assert record["status"] == "ok", (record["reason"], (ranks / "said.txt").read_text())
    seen: dict[str, Any] = json.loads((ranks / "together.found.json").read_text())
    return seen


# ── what a rank has of a batch ────────────────────────────────────────────────────────────────────────────────────


@given(total=st.integers(1, 600), world=st.integers(1, 9))
def test_every_sample_is_one_ranks_and_the_weights_make_the_mean_of_all(total: int, world: int) -> None:
    shares = [Share(rank, world, total) for rank in range(world)]
    rows = torch.arange(total)
    own = [rows[share.rows][: share.count] for share in shares]
    assert torch.equal(torch.cat(own), rows)
    assert max(share.count for share in shares) - min(share.count for share in shares) <= 1
    assert all(len(rows[share.rows]) >= 1 for share in shares)  # none is idle, none has a mean of nothing
    values = torch.randn(total, dtype=torch.float64)
    parts = [share.weight * values[share.rows].mean() for share in shares]
    assert sum(parts) / world == pytest.approx(values.mean().item())


def test_a_batch_of_one_process_has_all_of_its_rows() -> None:
    whole = torch.arange(6)
    alone = Batch(whole, whole, whole)
    assert alone.samples == len(alone) == 6
    assert alone.own_rows(whole) is whole
    shared = Batch(whole[3:], whole[3:], whole[3:], share=Share(1, 2, 6))
    assert (shared.samples, len(shared)) == (6, 3)
    assert shared.own_rows(whole).tolist() == [3, 4, 5]


@given(total=st.integers(2, 12), start=st.integers(0, 10), seed=st.integers(0, 99))
def test_images_of_a_part_move_as_they_do_in_the_whole_batch(total: int, start: int, seed: int) -> None:
    images = torch.randint(255, (total, 1, 5, 5), dtype=torch.uint8)
    rows = slice(min(start, total - 1), total)
    for draw in (geometry.draw_mirror, lambda count, generator: geometry.draw_shift(count, 2, generator)):
        move = draw(total, torch.Generator().manual_seed(seed))
        assert torch.equal(move.of(rows).pixels(images[rows]), move.pixels(images)[rows])


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stack", list(rank_worker.STACKS))
def test_all_ranks_end_every_epoch_with_the_same_weights(found: dict[str, Any], stack: str) -> None:
    assert found[f"same weights: {stack}"] == [True] * 4


@pytest.mark.parametrize("stack", [*rank_worker.LIKE_ONE, *rank_worker.LIKE_ONE_ON_SUMS])
def test_two_ranks_train_what_one_process_trains(found: dict[str, Any], stack: str) -> None:
    """Batches of 8 and a last one of 5, in double precision: what is left is the order of sums."""
    assert found[f"like one: {stack}"] < 1e-9


@pytest.mark.parametrize("samples", [511, 513])
def test_unequal_shares_and_a_rank_without_samples_change_nothing(found: dict[str, Any], samples: int) -> None:
    assert found[f"like one: {samples}"] < 1e-12
    assert all(torch.isfinite(torch.tensor(found[f"curve: {samples}"])))
    steps_with_one_more = {511: (256, 255), 513: (257, 257)}[samples]  # of one sample, both ranks send one forward
    assert found[f"forwarded: {samples}"] == [3 * each for each in steps_with_one_more]


def test_micro_batches_clipping_and_augmentation_are_those_of_one_process(found: dict[str, Any]) -> None:
    assert found["like one: accumulate"] < 1e-12
    assert found["like one: float32"] < 1e-6


def test_what_learns_later_or_never_is_what_it_is_in_one_process(found: dict[str, Any]) -> None:
    """A layer that is released in an epoch is averaged from then on; nobody waits for one without a gradient."""
    assert found["like one: thaws"] < 1e-12
    assert found["like one: unused"] < 1e-12


def test_the_curve_and_the_tally_are_those_of_the_whole_batches(found: dict[str, Any]) -> None:
    one, several = found["curves"]
    assert several == pytest.approx(one, rel=1e-12)
    assert found["tallied"] == [3 * 37, 3 * 37]


def test_every_rank_remembers_the_importance_of_every_sample(found: dict[str, Any]) -> None:
    assert found["same memory"]


def test_the_record_says_what_ssprop_does_otherwise(found: dict[str, Any]) -> None:
    said = found["said of ssprop"]
    assert said["world"] == 2
    assert "its own samples" in said["differs"]["ssprop"]


def test_a_loss_that_is_no_number_on_one_rank_ends_all_in_the_same_epoch(found: dict[str, Any]) -> None:
    first, other = found["diverged"]
    assert first == other
    assert first[0] == 2


def test_what_one_rank_decides_all_of_them_do(found: dict[str, Any]) -> None:
    (updates, _, weights, _), other = found["skips"]
    assert updates == 3 * 3 - 3
    assert other[:3] == [updates, 3, weights]
    (_, epochs, weights, reason), other = found["stops"]
    assert epochs == 2
    assert other == [other[0], 2, weights, "enough"]
    assert reason == "another rank ended its training"


def test_ranks_that_drift_apart_can_be_told(found: dict[str, Any]) -> None:
    first, other = found["drifts"]
    assert first[2] != other[2]


def draft() -> TrialDraft:
    header = {"workload": "w", "method": "m", "role": "method", "digest": "", "seed": 0, "trial": "t", "block": 0}
    return TrialDraft(**header, invocation=0, position=0, started_at="", status="ok")


@fault("ranks apart")
@pytest.mark.parametrize("apart", [False, True])
def test_ranks_with_different_weights_are_no_trial(apart: bool) -> None:
    run = make_run(data=digits(8), epochs=1)
    run.train()
    own = report_of(run)
    other: RankReport = {**own, "parameters_sha256": "another"} if apart else own
    record = draft()
    keep([own, own, other], run, record)
    assert record.status == ("invalid" if apart else "ok")
    assert (record.reason or "").endswith("2 with others than the first" if apart else "")
    assert record.passes is not None
    assert record.passes.samples_forward == 3 * 8  # what each rank sent forward adds up
    assert record.passes.updates == 1  # the update is one
    assert sum(run.tally.pass_sizes.forward.values()) == 3
    assert record.samples_sha256 != own["samples_sha256"]


@pytest.mark.parametrize("stack", ["plain", "ssprop"])
def test_the_flops_of_the_ranks_add_up_to_those_of_one_process(found: dict[str, Any], stack: str) -> None:
    count = found[f"count: {stack}"]
    alone, together = count["flop"]
    assert together == alone > 0
    assert count["keys"][0] == count["keys"][1]
    assert count["samples"][0] == count["samples"][1] == 3 * 96
    assert count["updates"] == [9, 9]
    assert all(name.startswith("c10d") for name in count["unpriced"])  # messages, which hold no product


# ── a rank that ends too early ────────────────────────────────────────────────────────────────────────────────────


@fault("a rank ends")
@pytest.mark.parametrize(
    ("part", "status", "reason"),
    [
        ("killed", "out_of_memory", "rank 1 was killed by SIGKILL, most often for lack of memory"),
        ("fails", "failed", "rank 1: ValueError: this one cannot go on"),
        ("unaware", "out_of_memory", "rank 1 was killed by SIGKILL, most often for lack of memory"),
        ("first", "failed", "ValueError: this one cannot go on"),
    ],
)
def test_a_rank_that_ends_fails_the_trial_with_its_reason(ranks: Path, part: str, status: str, reason: str) -> None:
    record = json.loads((ranks / f"{part}.json").read_text())
    assert record["status"] == status
    assert record["reason"].startswith(reason)


@pytest.mark.parametrize("part", list(rank_worker.PARTS))
def test_no_rank_outlives_its_trial(ranks: Path, part: str) -> None:
    session = (ranks / f"{part}.pid").read_text()
    alive = [stat.rpartition(b")")[2].split() for stat in _stats()]
    assert not [fields for fields in alive if fields[3].decode() == session and fields[0] not in (b"Z", b"X")]


def _stats() -> list[bytes]:
    found: list[bytes] = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            found.append(file.read_bytes())
        except OSError:
            continue
    return found


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


def built(name: str, **given: Any) -> Method:
    return rank_worker.methods([(name, given)])[0]


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (built("neq"), "probe"),
        (built("scotti"), "probe"),
        (built("dlis"), "presample"),
        (built("importance", alpha=0.1, epsilon=0.1, score="parameter-gradient"), "score"),
        (built("importance", alpha=0.1, epsilon=0.1, compare=["loss"]), "compare"),
        (built("ssprop", dense_below="timed"), "dense_below"),
    ],
)
def test_a_method_that_cannot_is_refused_with_its_reason(method: Method, why: str) -> None:
    (problem,) = refuse_methods([method], 2)
    assert problem.code == "E326"
    assert why in problem.message
    assert "devices = 1" in problem.hint
    assert refuse_methods([method], 1) == []


@pytest.mark.parametrize("name", [name for stack in rank_worker.STACKS.values() for name, _ in stack])
def test_the_others_are_not(name: str) -> None:
    given = {key: value for stack in rank_worker.STACKS.values() for each, value in stack for key in (each,)}[name]
    assert refuse_methods([built(name, **given)], 2) == []


class Beside(Task):
    batch_parts: ClassVar[tuple[str, ...]] = ("target",)


class Rounds(Task):
    replaces: ClassVar[frozenset[str]] = frozenset({"epoch"})


@pytest.mark.parametrize("task", [Rounds(), Beside(), task_named("vrex", ROOT), task_named("group_dro", ROOT)])
def test_a_task_that_needs_its_whole_batch_is_refused(task: Task) -> None:
    (problem,) = refuse_task(task, 2, "here")
    assert (problem.code, problem.where) == ("E326", "here")
    assert refuse_task(task, 1) == []


@pytest.mark.parametrize(
    "name", ["classification", "segmentation", "detection", "language_model", "regression", "multi_label", "erm"]
)
def test_tasks_whose_loss_is_a_mean_over_samples_are_not(name: str) -> None:
    assert refuse_task(task_named(name, ROOT), 2) == []


def suite(tmp_path: Path, text: str = "", **trials: Any) -> Any:
    path = tmp_path / "s.toml"
    path.write_text(suite_text(text, **trials), encoding="utf-8")
    return load(path)


def test_one_device_is_what_a_suite_always_was(tmp_path: Path) -> None:
    plain = suite(tmp_path).digest_source()
    assert suite(tmp_path, devices=1, parallel="ddp").digest_source() == plain
    assert "devices" not in plain["trials"]
    assert suite(tmp_path, devices=2).digest_source()["trials"]["devices"] == 2


@pytest.mark.parametrize(
    ("given", "word", "hint"),
    [
        ({"devices": 2, "parallel": "fsdp"}, "shard", 'parallel = "ddp"'),
        ({"parallel": "FSDP2"}, "shard", 'parallel = "ddp"'),
        ({"devices": 2, "turns": 4}, "one after the other", 'turns = "off"'),
        ({"devices": 0}, "1", ""),
        ({"devices": 65}, "64", ""),
    ],
)
def test_a_suite_that_asks_for_what_there_is_not_is_told_so(
    tmp_path: Path, given: dict[str, Any], word: str, hint: str
) -> None:
    with pytest.raises(InvalidSuite) as refused:
        suite(tmp_path, **given)
    (problem,) = refused.value.problems
    assert word in problem.message
    assert hint in problem.hint


def test_a_command_starts_its_ranks_itself(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    workload = '[[workload]]\nname = "w"\ncommand = "true"\nquality = "none"\n'
    path.write_text(f'schema = 1\nsuite = "c"\ntrials = {{ devices = 2 }}\n{workload}')
    with pytest.raises(InvalidSuite) as refused:
        load(path)
    assert "torchrun --nproc_per_node=2" in refused.value.problems[0].hint


def test_a_model_that_is_spread_over_processes_already_is_refused() -> None:
    class FSDPModule(torch.nn.Linear):
        pass

    FSDPModule.__module__ = "torch.distributed.fsdp._fully_shard._fully_shard"
    refuse_wrapped(torch.nn.Linear(1, 1), "m.py:f")
    with pytest.raises(UsageError, match="shard") as refused:
        refuse_wrapped(torch.nn.Sequential(FSDPModule(1, 1)), "m.py:f")
    assert "devices = 2" in refused.value.problems[0].hint


def test_a_run_under_a_launcher_of_ranks_is_refused_and_one_process_of_it_is_not() -> None:
    ranked = {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}
    with pytest.raises(UsageError, match="rank 1 of 2") as refused:
        refuse_ranks(ranked)
    assert "trials.devices=2" in refused.value.problems[0].hint
    refuse_ranks({})
    refuse_ranks({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"})


def of_torchrun(number: int, world: int = 2, here: int = 2) -> dict[str, str]:
    told = {"RANK": number, "LOCAL_RANK": number % here, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": here}
    return {name: str(value) for name, value in told.items()} | {"MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}


def test_of_torchruns_processes_on_one_node_the_first_is_told_from_the_others_and_then_is_no_rank() -> None:
    first = of_torchrun(0) | {"PATH": "/bin"}
    assert (torchrun_of_one_node(first), torchrun_of_one_node(of_torchrun(1))) == ((0, 2), (1, 2))
    leave_torchrun(first)
    assert first == {"PATH": "/bin"}
    refuse_ranks(first)
    several_nodes, of_mpirun = of_torchrun(2, world=4), {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    for other in (several_nodes, of_mpirun, of_torchrun(0, 1, 1), {}):
        assert torchrun_of_one_node(other) is None
    with pytest.raises(UsageError, match="rank 2 of 4"):
        refuse_ranks(several_nodes)


@pytest.mark.parametrize(("number", "devices", "ends"), [(0, 1, None), (0, 2, None), (1, 1, 0), (0, 4, 2), (1, 4, 2)])
def test_under_torchrun_each_trial_has_as_many_devices_and_one_process_runs_the_suite(
    number: int, devices: int, ends: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in of_torchrun(number).items():
        monkeypatch.setenv(name, value)
    suite = tmp_path / "s.toml"
    data = 'data = { use = "digits", batch = 8 }'
    model, train = 'model = { use = "mlp", hidden = [4] }', "train = { epochs = 1, lr = 0.1 }"
    workload = f'[[workload]]\nname = "w"\n{model}\n{data}\n{train}\n'
    suite.write_text(
        f'schema = 1\nsuite = "s"\n[trials]\ndevices = {devices}\n{workload}[[method]]\nuse = "nothing"\n',
        encoding="utf-8",
    )
    began: list[int] = []
    monkeypatch.setattr(runner, "run", lambda suite, **_: (began.append(suite.trials.devices), (7, tmp_path))[1])
    done = CliRunner().invoke(training.run, [str(suite)])
    if ends == 2:
        assert isinstance(done.exception, UsageError)
        assert "torchrun --nproc-per-node=4" in done.exception.problems[0].hint
    else:
        assert done.exit_code == (7 if ends is None else ends), done.output
    assert began == ([2] if ends is None else [])


def test_a_message_is_sent_for_what_a_layer_speaks_of_alone() -> None:
    assert sets(rank_worker.Skips, "skip_update")
    assert not sets(rank_worker.Drifts, "skip_update")
    assert sets(rank_worker.Thaws, "requires_grad", "requires_grad_")
    shipped = [type(built(name, **given)) for stack in rank_worker.STACKS.values() for name, given in stack]
    assert not [kind for kind in shipped if sets(kind, "skip_update", "requires_grad", "requires_grad_")]


# ── the machine ───────────────────────────────────────────────────────────────────────────────────────────────────


def planned(tmp_path: Path, purpose: str = "run", **trials: Any) -> Any:
    return spec_of(suite(tmp_path, **trials), tmp_path, device=None, download=True, purpose=purpose)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "cards", "message"),
    [
        ("cuda", 2, ""),
        ("cuda:0", 4, ""),
        ("cuda", 1, "CUDA shows 1 card here"),
        ("cuda", 0, "CUDA shows 0 cards here"),
        ("cuda:1", 4, "--device names 'cuda:1'"),
        ("mps", 0, "not 'mps'"),
    ],
)
def test_a_machine_has_as_many_cards_as_are_asked_for_or_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, cards: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    problems = plan_devices.problems(planned(tmp_path, devices=2), torch.device(device))
    assert [problem.code for problem in problems] == (["E208"] if message else [])
    assert all(message in problem.message and problem.hint for problem in problems)
    assert plan_devices.problems(planned(tmp_path), torch.device(device)) == []


def test_ranks_on_a_cpu_need_a_processor_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "usable", lambda: 2)
    assert plan_devices.problems(planned(tmp_path, devices=2), torch.device("cpu")) == []
    (problem,) = plan_devices.problems(planned(tmp_path, devices=3), torch.device("cpu"))
    assert "2 processors may be used" in problem.message
    assert problem.where.endswith(":4:1") or "s.toml" in problem.where
    assert plan_devices.problems(planned(tmp_path, "check", devices=3), torch.device("cpu")) == []  # of another machine


def test_threads_are_chosen_among_numbers_that_the_ranks_share_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "usable", lambda: 8)
    auto = {"threads": "auto"}
    assert plan_threads.candidates(planned(tmp_path, **auto), torch.device("cpu")) == (1, 2, 4, 8)
    assert plan_threads.candidates(planned(tmp_path, devices=2, **auto), torch.device("cpu")) == (2, 4, 8)
    assert plan_threads.candidates(planned(tmp_path, devices=3, **auto), torch.device("cpu")) == (3,)


def test_every_card_of_a_trial_is_opened_by_its_uuid_once(fake_driver: Callable[..., Any]) -> None:
    other, third = (f"GPU-00000000-0000-0000-0000-00000000000{number}" for number in (2, 3))
    fake_driver(FakeGpu(), FakeGpu(uuid=other), FakeGpu(uuid=third))
    (cards,) = [meter for meter in open_meters(MeterSelection(), f"{other}+{UUID}") if isinstance(meter, GpuMeter)]
    assert cards.facts().keys() == {UUID, other}
    seen = survey.sensors(MeterSelection(), f"{other}+{UUID}")
    assert {card["uuid"] for card in seen["gpus"]} == {UUID, other}
    assert seen["unmetered"] == []
