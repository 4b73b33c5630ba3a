"""Members of a method beside the five hooks, in whole runs: an early end, rounds, and mistakes in `check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import energybench
from tiny_runs import contents, only_run, write_suite

pytestmark = pytest.mark.slow

STOPS = '''"""stops: ends training after its second epoch"""
from energybench import Method


class Stops(Method):
    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == 2:
            run.stop_after_epoch("the loss is low enough")
'''
ROUNDS = '''"""rounds: two clients, three steps each, in every round"""
import torch
from energybench import Method


class Rounds(Method):
    replaces = frozenset({"epoch"})
    enters = frozenset({"batches", "step"})

    def steps_per_epoch(self, run):
        return 6

    def setup(self, run):
        self._tally, self._rounds = run.tally, 0

    def epoch(self, run, data, inner):
        self._rounds += 1
        for part in torch.arange(len(data)).chunk(2):
            batches = [*run.batches(data.subset(part)), *run.batches(data.subset(part))]
            for batch in batches[:3]:
                run.step(batch)

    def estimate(self, work):
        return work.trained(work.epochs * self._tally.passes().epochs_trained / self._rounds)
'''
WRONG = '''"""wrong: never calls its inner, and has a hook that nothing calls"""
from energybench import Method


class Wrong(Method):
    def step(self, run, batch, inner):
        run.gradients(batch)

    def on_epoch_start(self, run):
        pass
'''
WORKLOAD = """
[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 5, lr = 0.1, schedule = "cosine" }
target = { metric = "accuracy", at_least = 1.0 }
"""


def test_a_run_that_ends_early_and_one_of_rounds_are_recorded_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    (tmp_path / "rounds.py").write_text(ROUNDS)
    methods = '\n[[method]]\nuse = "stops.py"\n\n[[method]]\nuse = "rounds.py"\n'
    suite = write_suite(tmp_path, methods, workload=WORKLOAD, twin=False)
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode in (0, 4), done.stderr
    _, trials, counting_runs = contents(only_run(tmp_path))
    baseline, stops, rounds = ({t.method: t for t in trials.values()}[name] for name in ("baseline", "stops", "rounds"))
    assert {t.status for t in trials.values()} == {"ok"}

    assert (baseline.epochs, stops.epochs, rounds.epochs) == (5, 2, 5)
    assert [point["epoch"] for point in stops.curve] == [1, 2]
    assert [point["loss"] for point in stops.curve] == [point["loss"] for point in baseline.curve[:2]]
    assert stops.diagnostics["ended_early"] == {"after_epoch": 2, "reason": "the loss is low enough"}
    assert "ended_early" not in baseline.diagnostics | rounds.diagnostics
    assert stops.phases["train"].pieces == 2  # no piece of the window after the end
    assert baseline.phases["train"].pieces == 5
    assert stops.estimate is not None
    assert stops.estimate.estimated_flop == pytest.approx(2 / 5 * stops.estimate.plain_flop)

    assert rounds.passes is not None
    assert rounds.estimate is not None
    assert rounds.steps == 5 * 6
    assert rounds.passes.epochs_trained == pytest.approx(5 * 6 * 16 / 64)
    assert rounds.estimate.estimated_flop == pytest.approx(1.5 * rounds.estimate.plain_flop)
    for label, trial in (("stops", stops), ("rounds", rounds)):
        counted = counting_runs[f"w.{label}"]
        assert trial.estimate is not None
        assert counted.passes == trial.passes
        assert counted.counted_flop == pytest.approx(trial.estimate.estimated_flop, rel=1e-3)


def test_check_tells_every_mistake_in_a_hook_with_its_code_before_anything_trains(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    done = energybench("check", write_suite(tmp_path, '\n[[method]]\nuse = "wrong.py"\n'), cwd=tmp_path)
    assert done.returncode == 2
    told = done.stdout + done.stderr
    assert "error[E318]" in told
    assert "'wrong' never uses `inner` in `step`" in told
    assert "error[E317]" in told
    assert "'wrong' has `on_epoch_start`, which nothing calls" in told
    assert "did you mean `epoch`?" in told
    assert "tiny.toml:" in told
