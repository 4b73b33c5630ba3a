"""`energybench flops`: baseline, estimated and counted, with and without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench
from tiny_runs import write_suite

pytestmark = pytest.mark.slow

METHODS = """
[[method]]
use = "gradsamp"
skip = "every:2"
epsilon = 0.01

[[method]]
use = "ssprop"
drop = 0.5
schedule = "constant"
"""

# cnn [2, 2] on 8 × 8: Conv(1→2) at 8 × 8, pooled, Conv(2→2) at 4 × 4, pooled, Linear(2→10); 2 epochs of 64 samples
FIRST, SECOND, HEAD = 2 * 1 * 2 * 9 * 64, 2 * 2 * 2 * 9 * 16, 2 * 2 * 10
PLAIN = 2 * 64 * (2 * FIRST + 3 * SECOND + 3 * HEAD)  # the first layer has no dX
SPARSE = 2 * 64 * (FIRST + SECOND + 3 * HEAD + (FIRST + 2 * SECOND) / 2)


def facts(folder: Path, *flags: str, **options: Any) -> dict[str, Any]:
    suite = write_suite(folder, METHODS, **options)
    done = energybench("flops", suite, "--json", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"stderr": done.stderr}


def test_baseline_estimate_and_count_of_the_whole_training_are_what_the_layers_cost(tmp_path: Path) -> None:
    found = facts(tmp_path, "--by", "module")
    cells = {cell["method"]: cell for cell in found["cells"]}
    assert list(cells) == ["baseline", "gradsamp", "gradsamp matched", "ssprop"]  # a twin is the baseline again
    assert {cell["baseline_flop"] for cell in cells.values()} == {PLAIN}
    wanted = {"baseline": PLAIN, "gradsamp": PLAIN / 2, "gradsamp matched": PLAIN / 2, "ssprop": SPARSE}
    for method, flop in wanted.items():
        assert cells[method]["estimated_flop"] == flop
        if method != "gradsamp matched":
            assert cells[method]["counted_flop"] == pytest.approx(flop, rel=2e-2 if method == "gradsamp" else 1e-9)
    assert sum(cells["ssprop"]["estimated_by_phase"].values()) == SPARSE
    assert sum(cells["ssprop"]["estimated_by_op"].values()) == SPARSE
    assert cells["ssprop"]["estimated_by_op"]["linear"] == 2 * 64 * 3 * HEAD
    assert sum(cells["baseline"]["counted_by_op"].values()) == PLAIN
    layers = {layer["name"]: layer for layer in cells["ssprop"]["modules"]}
    assert layers["conv 0"]["plain_flop"] == 2 * 64 * 2 * FIRST
    assert layers["conv 0"]["estimated_flop"] == 2 * 64 * 1.5 * FIRST
    assert layers["conv 0"]["estimated_b"] < layers["conv 0"]["plain_b"]
    assert "counting 3 runs without a meter" in found["stderr"]
    assert "[2/3] w · gradsamp" in found["stderr"]
    assert not (tmp_path / "reports").exists()


def test_without_counting_there_is_plain_training_and_what_is_known_before_a_run(tmp_path: Path) -> None:
    found = facts(tmp_path, "--no-count")
    cells = {cell["method"]: cell for cell in found["cells"]}
    assert (found["counted"], found["stderr"]) == (False, "")
    assert cells["baseline"]["estimated_flop"] == cells["ssprop"]["baseline_flop"] == PLAIN
    assert cells["gradsamp matched"]["estimated_flop"] == PLAIN / 2
    assert [cells[m]["estimated_flop"] for m in ("gradsamp", "ssprop")] == [None, None]
    assert {cell["counted_flop"] for cell in found["cells"]} == {None}
    assert found["workloads"]["w"]["plain_by_op"] == {"conv": PLAIN - 2 * 64 * 3 * HEAD, "linear": 2 * 64 * 3 * HEAD}


def test_the_page_says_each_figure_once(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, METHODS)
    done = energybench("flops", suite, "--no-count", "--by", "module", cwd=tmp_path, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    for text in ("2 epochs of 64 samples, batch 16", "gradsamp matched", "50.0 %", "conv 4", "FLOP/B", "Not counted"):
        assert text in done.stdout


UNKNOWN = """[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "mnist", batch = 100 }
train = { epochs = 3, lr = 0.1 }
"""


def test_data_that_is_not_here_but_known_by_name_is_enough_to_check_and_for_flops_and_not_to_run(
    tmp_path: Path,
) -> None:
    suite = write_suite(tmp_path, METHODS, workload=UNKNOWN)
    away = {"HOME": str(tmp_path), "no_proxy": "", "https_proxy": "http://127.0.0.1:9"}
    checked = energybench("check", suite, "--json", cwd=tmp_path, **away)
    assert checked.returncode == 0, checked.stdout
    plan = json.loads(checked.stdout)
    assert plan["workloads"]["w"]["steps_per_epoch"] == 600
    assert any("'mnist' is not on this machine" in note for note in plan["notes"])
    done = energybench("flops", suite, "--json", cwd=tmp_path, **away)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, second = 2 * 2 * 9 * 28 * 28, 2 * 2 * 2 * 9 * 14 * 14
    assert found["workloads"]["w"]["plain_flop"] == 3 * 60_000 * (2 * first + 3 * second + 3 * HEAD)
    assert {cell["counted_flop"] for cell in found["cells"]} == {None}
    refused = energybench("run", suite, cwd=tmp_path, **away)
    assert refused.returncode == 2
    assert "E402" in refused.stderr


def test_a_cell_that_cannot_be_counted_says_why_and_the_rest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text(
        '"""breaks: on purpose"""\nfrom energybench import Method\n\n\nclass Breaks(Method):\n'
        "    def gradients(self, run, batch, inner):\n        raise RuntimeError('on purpose')\n"
    )
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "breaks.py"\n')
    done = energybench("flops", suite, "--json", cwd=tmp_path)
    assert done.returncode == 3
    cells = {cell["method"]: cell for cell in json.loads(done.stdout)["cells"]}
    assert cells["baseline"]["counted_flop"] == PLAIN
    assert (cells["breaks"]["status"], cells["breaks"]["counted_flop"]) == ("failed", None)
    assert "on purpose" in cells["breaks"]["reason"]


def test_a_ledger_that_differs_from_the_counter_is_told(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """import torch
from torch import nn


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy @ w, dy.t() @ x


class Layer(nn.Linear):
    def forward(self, x):
        return Hidden.apply(x, self.weight)


def model(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Layer(16, classes))
"""
    )
    workload = """[[workload]]
name = "w"
model = { use = "own.py:model" }
data = { use = "digits", batch = 16, subset = 32, test_subset = 16 }
train = { epochs = 1, lr = 0.1 }
"""
    suite = write_suite(tmp_path, workload=workload)
    done = energybench("flops", suite, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (baseline,) = found["cells"]
    assert baseline["baseline_flop"] == 32 * 2 * 2 * 64 * 16
    assert baseline["counted_flop"] == 32 * (2 * 2 * 64 * 16 + 3 * 2 * 16 * 10)
    assert baseline["not_in_ledger"] == ["Hidden (own.py:19)"]
    assert any("apart; the ledger has no formula for Hidden (own.py:19)" in note for note in found["notes"])
