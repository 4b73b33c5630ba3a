"""Matched controls of a real run: made after their method for what its tally paid, and again where one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import energybench
from tiny_runs import contents, only_run, write_suite

from energybench.records.record import RunFile, write_json

pytestmark = pytest.mark.slow
METHODS = {
    "half.py": """
from energybench import Method

class Half(Method):
    def step(self, run, batch, inner):
        if run.step_in_epoch % 2 == run.seed % 2:  # steps of 16, 16 and 8: in one block two of them, in the next one
            inner(batch)
""",
    "same.py": """
from energybench import Method

class Same(Method):
    def step(self, run, batch, inner):
        inner(batch)
""",
}
TABLES = """
[[method]]
use = "half"
[[method]]
use = "same"
control = "matched"
[[method]]
use = "half"
name = "alone"
control = "none"
"""
WORKLOAD = """
[[workload]]
name = "w"
model = { use = "mlp" }
data = { use = "digits", batch = 16, subset = 40, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    (folder / "methods").mkdir()
    for name, text in METHODS.items():
        (folder / "methods" / name).write_text(text)
    suite = write_suite(folder, TABLES, workload=WORKLOAD, blocks=2, twin=False, seed=8)
    checked = energybench("check", suite, cwd=folder)
    assert checked.returncode == 0, checked.stderr
    told = " ".join(checked.stdout.split())
    # baseline, half, same and its control that was asked for, alone; half's depends on what it does
    assert "2 blocks, 10 trials and 4 counted runs" in told
    assert "up to 2 matched controls more, where a method's own tally shows that it trained less" in told
    done = energybench("run", suite, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def of_methods(folder: Path) -> dict[tuple[int, int, str], str]:
    """(block, invocation, method) → role."""
    _, trials, _ = contents(only_run(folder))
    return {(t.block, t.invocation, t.method): t.role for t in trials.values()}


def test_a_control_follows_its_method_in_each_block_for_what_that_one_paid(home: Path) -> None:
    run, trials, counting_runs = contents(only_run(home))
    ordered = {(t.block, t.method): t for t in trials.values()}
    # Seed 8: steps of 16 and 8 of 40, twice: 48 samples are an epoch (3 steps) and half of 16: 4. Seed 9: 16 of 40.
    for block, steps in ((0, 4), (1, 2)):
        method, control = ordered[block, "half"], ordered[block, "half matched"]
        assert method.budget == control.budget
        assert method.budget is not None
        assert (method.budget.steps, method.budget.planned_steps) == (steps, 6)
        assert (control.steps, control.role, control.of, control.seed) == (steps, "control", "half", 8 + block)
        assert control.position > method.position
        assert control.started_at >= method.started_at
        assert control.estimate is not None
        assert control.passes is not None
        share = control.passes.epochs_trained / 2
        assert control.estimate.estimated_flop == pytest.approx(control.estimate.plain_flop * share)
    assert {method for _, method in ordered} == {"baseline", "half", "half matched", "same", "alone"}
    assert set(counting_runs) == {"w.baseline", "w.half", "w.same", "w.alone"}
    assert {cell.method: cell.control for cell in run.cells if cell.role == "control"} == {
        "half matched": "possible",
        "same matched": "asked",
    }


def test_the_report_says_what_was_matched_and_why_something_was_not(home: Path) -> None:
    page = (only_run(home) / "report.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "Against plain training for the 3 of 6 steps that it paid for on average" in page
    assert "No matched control was run: its own tally paid for all 6 steps of plain training." in page
    assert page.count("No matched control") == 1


def test_a_block_whose_control_is_missing_is_run_again_with_its_method_and_nothing_else_is(home: Path) -> None:
    folder = only_run(home)
    run, trials, _ = contents(folder)
    before = set(of_methods(home))
    lost = next(t for t in trials.values() if (t.block, t.role) == (1, "control"))
    (folder / "records" / f"{lost.trial}.json").unlink()
    write_json(folder / "run.json", RunFile.model_copy(run, update={"finished": False}))
    again = energybench("run", home / "tiny.toml", cwd=home)
    assert again.returncode == 0, again.stderr
    made = set(of_methods(home)) - before
    assert made == {(1, 1, "baseline"), (1, 1, "half"), (1, 1, "half matched")}
    _, trials, _ = contents(folder)
    repeated = next(t for t in trials.values() if (t.invocation, t.role) == (1, "control"))
    assert (repeated.steps, repeated.weights_sha256) == (lost.steps, lost.weights_sha256)
    assert "finished" in {call.outcome for call in contents(folder)[0].invocations}


def test_a_control_that_would_be_plain_training_itself_is_refused_at_check(home: Path) -> None:
    suite = write_suite(home, '[[method]]\nuse = "nothing"\ncontrol = "matched"\n', file="useless.toml")
    done = energybench("check", suite, cwd=home)
    assert done.returncode == 2
    assert "E324" in done.stderr
    assert "useless.toml" in done.stderr
    assert 'take out control = "matched"' in done.stderr
