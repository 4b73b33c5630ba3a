"""Several folders: copies of one run become one, other devices stand side by side, other suites are refused."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import GPU, Run

from energybench.common.errors import UsageError
from energybench.records.record import CountingRun, RunFile, Trial, write_json
from energybench.report import merge
from energybench.verdict import run_parts, wording
from energybench.verdict.summary import summarise, to_json

Records = tuple[RunFile, list[Trial], list[CountingRun]]


def half(**options: Any) -> Records:
    return (
        Run(**{"blocks": 6, "sensors": (GPU,), "noise": 0.02} | options).method("half", energy=0.5, time=0.6).records()
    )


def on(device: str, records: Records, **run: Any) -> Records:
    meta, trials, counting_runs = records
    gpus = {"gpus": {device: {"name": f"Card {device}"}}}
    moved = [t.model_copy(update={"device": device, "environment": gpus}) for t in trials]
    return meta.model_copy(update=run), moved, counting_runs


def put(folder: Path, records: Records) -> Path:
    meta, trials, counting_runs = records
    write_json(folder / "run.json", meta)
    for trial in trials:
        write_json(folder / "records" / f"{trial.trial}.json", trial)
    for counting_run in counting_runs:
        write_json(folder / "witness" / f"{counting_run.workload}.{counting_run.method}.json", counting_run)
    return folder


def some(records: Records, *blocks: int, finished: bool = False) -> Records:
    meta, trials, counting_runs = records
    return meta.model_copy(update={"finished": finished}), [t for t in trials if t.block in blocks], counting_runs


def printed(parts: list[run_parts.Part], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    merge.side_by_side(parts, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_one_folder_is_itself(tmp_path: Path) -> None:
    (part,) = run_parts.read([put(tmp_path / "a", half())])
    assert to_json(summarise(*part.records)) == to_json(summarise(*half()))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_blocks_of_one_run_in_several_folders_are_one_run_in_any_order(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    whole = half()
    pieces = [some(whole, 0, 1), some(whole, 2, 3), some(whole, 0, 1, 4, 5)]  # the last began as a copy of the first
    folders = [put(tmp_path / str(index), piece) for index, piece in enumerate(pieces)]
    (part,) = run_parts.read([folders[index] for index in order])
    assert len(part.folders) == 3
    merged, alone = (summarise(*part.records), summarise(whole[0].model_copy(update={"finished": False}), *whole[1:]))
    assert merged.workloads == alone.workloads
    assert merged.workloads[0].rows[0].verdict == "saves"  # all declared blocks are there


def test_part_of_a_run_has_no_verdict_however_many_folders_hold_it(tmp_path: Path) -> None:
    whole = half()
    (part,) = run_parts.read([put(tmp_path / "a", some(whole, 0, 1)), put(tmp_path / "b", some(whole, 2, 3))])
    row = summarise(*part.records).workloads[0].rows[0]
    assert (row.n, row.verdict) == (4, "no verdict")


def test_two_devices_stand_side_by_side_and_are_never_averaged(tmp_path: Path) -> None:
    fast, slow = half(seed=1), Run(blocks=6, sensors=(GPU,)).method("half", energy=0.9, time=0.9).records()
    folders = [put(tmp_path / "a", on("GPU-a", fast)), put(tmp_path / "b", on("GPU-b", slow))]
    first, second = run_parts.read(folders)
    assert (first.apart, second.apart) == ("", "another device")
    rows = [summarise(*part.records).workloads[0].rows[0].measured for part in (first, second)]
    assert [round(row.saving_rel, 1) for row in rows if row] == [0.5, 0.1]
    text = printed([first, second])
    assert "never averaged" in text
    assert "Card GPU-a" in " ".join(text.split())  # the folders' paths break the line anywhere
    (line,) = [line for line in text.splitlines() if line.startswith("half ")]
    figures = [wording.plain(wording.measured(row)) for row in rows]
    assert re.findall(r"−?[\d.]+ % \[[^]]*\]", line) == figures  # one of each, and none in between


def test_one_folder_with_two_devices_is_two_parts_and_its_own_page_has_no_verdict(tmp_path: Path) -> None:
    meta, trials, counting_runs = half()
    mixed = [on("GPU-a" if t.block < 3 else "GPU-b", (meta, [t], []))[1][0] for t in trials]
    random.Random(3).shuffle(mixed)
    parts = run_parts.read([put(tmp_path / "a", (meta, mixed, counting_runs))])
    assert [len(part.records[1]) for part in parts] == [9, 9]
    workload = summarise(meta, mixed, counting_runs).workloads[0]
    assert [flag.code for flag in workload.flags] == ["devices_mixed"]
    assert (workload.rows[0].verdict_forbidden, workload.rows[0].verdict) == (True, "no verdict")


def test_two_processors_are_two_devices_although_both_are_called_cpu(tmp_path: Path) -> None:
    folders = [put(tmp_path / name, half(machine={"cpu": name, "cores": 2})) for name in ("one", "other")]
    assert [part.apart for part in run_parts.read(folders)] == ["", "another device"]


def test_a_run_that_trained_the_same_blocks_again_is_not_pooled(tmp_path: Path) -> None:
    folders = [put(tmp_path / name, half(seed=seed)) for seed, name in enumerate("ab")]
    _, again = run_parts.read(folders)
    assert "trained blocks 0, 1, 2, 3, 4, 5 again" in again.apart


def test_a_copy_of_a_run_adds_nothing(tmp_path: Path) -> None:
    (part,) = run_parts.read([put(tmp_path / "a", half()), put(tmp_path / "copy", half())])
    assert len(part.records[1]) == len(half()[1])


def test_other_settings_stand_apart_with_the_reason(tmp_path: Path) -> None:
    other = on("cpu", half(), digest="e")
    _, second = run_parts.read([put(tmp_path / "a", half()), put(tmp_path / "b", other)])
    assert "other settings, methods or versions (digest e)" in second.apart


def test_other_suites_are_refused(tmp_path: Path) -> None:
    meta, trials, counting_runs = half()
    folders = [
        put(tmp_path / "a", (meta, trials, counting_runs)),
        put(tmp_path / "b", (meta.model_copy(update={"suite": "another"}), trials, counting_runs)),
    ]
    with pytest.raises(UsageError) as caught:
        run_parts.read(folders)
    assert caught.value.problems[0].code == "E608"


def test_looks_that_either_copy_took_were_taken(tmp_path: Path) -> None:
    from energybench.records.record import Looks

    meta, trials, counting_runs = half()
    both = [
        meta.model_copy(update={"blocks": 12, "finished": False, "looks": Looks(at=[3, 6, 12], taken=taken)})
        for taken in ([3], [3, 5])
    ]
    folders = [
        put(tmp_path / "a", (both[0], trials[:9], counting_runs)),
        put(tmp_path / "b", (both[1], trials, counting_runs)),
    ]
    (part,) = run_parts.read(folders)
    assert part.records[0].looks is not None
    assert part.records[0].looks.taken == [3, 5]
    assert summarise(*part.records).look.alpha_fraction == pytest.approx(1 / 12)  # 6 − 5 of 12


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_figure_is_cropped_at_any_width(tmp_path: Path, width: int) -> None:
    parts = run_parts.read([put(tmp_path / "a", on("GPU-a", half())), put(tmp_path / "b", on("GPU-b", half(seed=2)))])
    text = " ".join(printed(parts, width).split())
    assert "…" not in text
    for part in parts:
        assert wording.plain(wording.measured(summarise(*part.records).workloads[0].rows[0].measured)) in text


def test_the_facts_for_machines_hold_each_run_by_itself(tmp_path: Path) -> None:
    parts = run_parts.read([put(tmp_path / "a", on("GPU-a", half())), put(tmp_path / "b", on("GPU-b", half()))])
    facts = json.loads(json.dumps(merge.to_json(parts), allow_nan=False))
    assert [each["apart"] for each in facts["runs"]] == [None, "another device"]
    assert facts["runs"][0]["report"]["workloads"][0]["rows"][0]["verdict"] == "saves"
