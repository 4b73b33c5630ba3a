"""What keeps an unfinished run from being continued is said by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults import fault

from energybench.records.record import Cell, Looks, RunFile
from energybench.runner.plan_request import Planned, spec_of
from energybench.runner.plan_spec import PlannedWorkload, PlanResult
from energybench.runner.what_changed import changes
from energybench.suite.suite import load
from energybench.workloads.description import DataDescription

SUITE = """schema = 1
suite = "s"
[trials]
blocks = 3
seed = 5
[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 16 }
train = { epochs = 2, lr = 0.1 }
[[method]]
use = "dropout"
"""
MACHINE = {"energybench": "0.1", "torch": "2.11", "device": "cpu", "platform": "Linux"}


def planned(
    folder: Path, text: str = SUITE, *, sha: str = "1", data: str = "d", quick: bool = False, **machine: str
) -> Planned:
    (folder / "s.toml").write_text(text)
    suite = load(folder / "s.toml", quick=quick)
    stack = [{"use": "dropout", "name": "dropout", "sha256": sha, "path": "dropout.py", "origin": "shipped"}]
    cells = [Cell(workload="w", method="dropout", role="method", stack=stack)]
    described = DataDescription(kind="resident", train=1, test=1, sha256=data)
    result = PlanResult(
        workloads={"w": PlannedWorkload(data=described, ledger=(), parameters=1, steps=1, epochs=1, samples=1)},
        cells=tuple(cells),
        machine=MACHINE | machine,
        device="cpu",
        device_name="cpu",
        digest="",
    )
    return Planned(suite, result, spec_of(suite, folder, device=None, download=False))


def begun(of: Planned) -> RunFile:
    """run.json of the plan's run, as it is read back."""
    run = RunFile(
        suite="s",
        run="r",
        digest="",
        stamp=of.suite.stamp,
        suite_path="s.toml",
        suite_text="",
        resolved=of.suite.digest_source(),
        cells=of.cells,
        blocks=of.spec.blocks,
        machine=of.machine,
        data={"w": {"sha256": of.workloads["w"].data.sha256}},
    )
    return RunFile.model_validate_json(run.model_dump_json(by_alias=True))


@fault("changed method")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sha": "2"}, "the file of method 'dropout'"),
        ({"torch": "2.12"}, "torch 2.11 → 2.12"),
        ({"data": "e"}, "the data of 'w'"),
        ({"text": SUITE.replace("lr = 0.1", "lr = 0.2")}, "workload[w].train.lr 0.1 → 0.2"),
        ({"text": SUITE.replace("seed = 5", "seed = 6")}, "trials.seed 5 → 6"),
        ({"sha": "2", "device": "cuda"}, "device cpu → cuda; the file of method 'dropout'"),
        ({}, "a file or a package that a workload names, or energybench's own source"),
        ({"platform": "another"}, "a file or a package that a workload names, or energybench's own source"),
    ],
)
def test_what_changed_is_named_and_nothing_else(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = begun(planned(tmp_path))
    assert changes(run, planned(tmp_path, **options)) == said


def test_a_key_that_was_only_renamed_since_is_no_change(tmp_path: Path) -> None:
    run = begun(planned(tmp_path))
    del run.resolved["accept"]["margin"]  # as the version before wrote it
    assert changes(run, planned(tmp_path, sha="2")) == "the file of method 'dropout'"
    wider = planned(tmp_path, SUITE + '[accept]\nmargin = "3 %"\n')
    assert changes(run, wider) == "accept.margin 0.01 → 0.03"


def test_many_differences_are_counted(tmp_path: Path) -> None:
    run = begun(planned(tmp_path))
    text = SUITE.replace("lr = 0.1", "lr = 0.2, momentum = 0.5, decay = 0.1").replace("batch = 16", "batch = 8")
    assert changes(run, planned(tmp_path, text)).endswith("; 1 more")


def test_looks_alone_are_told_by_their_blocks(tmp_path: Path) -> None:
    now = planned(tmp_path)
    run = begun(now).model_copy(update={"blocks": 20, "looks": Looks(at=[3, 20])})
    assert changes(run, now) == "blocks 20 → 3"


def test_another_option_is_named_first(tmp_path: Path) -> None:
    quick = "[quick]\ntrials = { blocks = 1 }\n"
    run = begun(planned(tmp_path, SUITE + quick))
    assert changes(run, planned(tmp_path, SUITE + quick, quick=True)).startswith("options none → quick; ")
