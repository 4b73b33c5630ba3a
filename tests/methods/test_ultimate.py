"""ultimate: the learning rate that is learned inside a run, what it costs, and which recipes it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support import MODELS, assert_same_state, digits, double_run, make_run, state

from energybench.algorithms.hypergradient_sgd import HyperSGD
from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.plan_request import spec_of
from energybench.runner.planner import Plan
from energybench.runner.tracing import trace_task
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["ultimate"])
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay and clip": {"momentum": 0.9, "decay": 0.01, "clip": 0.1},
}


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "ultimate", parameters)


class Watch(Method):
    """Innermost: the gradient of every step, before anything is done to it."""

    name = "watch"

    def setup(self, run):
        self.gradients_seen: list[torch.Tensor] = []

    def gradients(self, run, batch, inner):
        forward = inner(batch)
        self.gradients_seen.append(torch.cat([p.grad.flatten().clone() for p in run.parameters(batch.part)]))
        return forward


def test_in_a_run_alpha_is_its_start_and_the_sum_of_products_of_consecutive_gradients():
    made, watch = method(hyper_lr=1e-3), Watch()
    run = double_run([made, watch], epochs=3, schedule="cosine", warmup_epochs=1)
    run.train()
    seen = watch.gradients_seen
    assert len(seen) == 9
    expected = 0.05 + 1e-3 * sum(float(a @ b) for a, b in pairwise(seen))
    assert run.optimizer().rate.item() == pytest.approx(expected, rel=1e-12)
    found = made.diagnostics()["epochs"]
    assert [entry["epoch"] for entry in found] == [1, 2, 3]
    assert found[-1]["learning_rate"] == run.optimizer().rate.item()
    assert run.lr() != 0.05  # the schedule, which does not apply


@pytest.mark.parametrize("name", RECIPES)
def test_with_a_vanishing_hyper_learning_rate_it_is_plain_training(name):
    """Its learning rate then stays within 1e-25 of the recipe's, so in double precision it is the recipe's."""
    runs = [double_run(methods, epochs=3, **RECIPES[name]) for methods in ([method(hyper_lr=1e-30)], [])]
    for run in runs:
        run.train()
    for key, value in state(runs[0].model).items():
        torch.testing.assert_close(value, state(runs[1].model)[key], rtol=1e-12, atol=1e-15)


def test_clipped_gradients_are_what_it_learns_from():
    made, watch = method(hyper_lr=1e-3), Watch()
    run = double_run([made, watch], epochs=2, clip=0.01)
    run.train()
    seen = [g * min(1.0, 0.01 / (g.norm().item() + 1e-6)) for g in watch.gradients_seen]
    expected = 0.05 + 1e-3 * sum(float(a @ b) for a, b in pairwise(seen))
    assert run.optimizer().rate.item() == pytest.approx(expected, rel=1e-12)


def test_momentum_is_learned_when_asked_for():
    for learn in (True, False):
        made = method(hyper_lr=1e-3, learn_momentum=learn)
        run = make_run([made], epochs=2)
        run.train()
        assert (made.diagnostics()["epochs"][-1]["momentum"] != 0.9) == learn


def test_the_first_step_is_plain_and_every_other_one_says_that_it_learned():
    run = make_run([method()], epochs=2)
    run.train()
    assert run.tally.passes().keys == {"plain": {"steps": 1, "samples": 32}, "hyper": {"steps": 5, "samples": 160}}


def test_a_step_that_is_not_finite_is_skipped_and_moves_nothing():
    class Skip(Method):
        name = "skip"

        def gradients(self, run, batch, inner):
            forward = inner(batch)
            run.skip_update = run.tally.steps == 1
            return forward

    run = make_run([method(hyper_lr=1e-3), Skip()], epochs=1)
    before = []
    for batch in run.batches(run.data):
        run.step(batch)
        before.append((state(run.model), run.optimizer().rate.item()))
    weights = [{k: v for k, v in found.items() if "running" not in k and "num_" not in k} for found, _ in before]
    assert_same_state(weights[0], weights[1])
    assert before[0][1] == before[1][1] != before[2][1]


@pytest.mark.parametrize("model", MODELS.values())
@pytest.mark.parametrize("learn", [False, True])
def test_what_is_counted_is_what_is_estimated(model, learn):
    """A product of n numbers is 2 n FLOPs, and with the momentum there are two."""
    totals = []
    for stack in ([made := method(learn_momentum=learn)], []):
        layer = StepCounter(10**9)
        run = make_run([*stack], model, counter=layer, data=digits(64), epochs=2)
        run.train()
        totals.append(layer.result(run).counted_flop)
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), model(), Recipe(epochs=2, batch=32), batch, run.device).lines
    work = Work(lines, epochs=2, samples=64)
    assert made.estimate(work).flop == pytest.approx(totals[0], rel=1e-6)
    parameters = sum(p.numel() for p in run.model.parameters())
    assert totals[0] - totals[1] == pytest.approx(3 * (1 + learn) * 2 * parameters)


def test_it_is_a_torch_optimizer_whose_state_others_can_read():
    run = make_run([method()], epochs=1)
    run.train()
    assert isinstance(run.optimizer(), HyperSGD)
    assert all("momentum_buffer" in run.optimizer().state[p] for p in run.parameters())


# ── what it refuses ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong", [{"hyper_lr": 0.0}, {"hyper_lr": -1.0}, {"hyper_momentum": 1.0}, {"hyper_momentum": -0.1}]
)
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError) as refused:
        method(**wrong)
    assert refused.value.problems[0].code == "E304"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad", "adadelta"])
def test_other_optimizers_are_refused_by_name(optimizer):
    with pytest.raises(ValueError, match=f"of SGD, not of {optimizer}"):
        make_run([method()], optimizer=optimizer)


def test_nesterovs_momentum_is_not_learned():
    with pytest.raises(ValueError, match="Nesterov"):
        make_run([method(learn_momentum=True)], nesterov=True)
    make_run([method()], nesterov=True)


def test_a_suite_that_gives_it_another_optimizer_is_told_where_and_what_to_write(tmp_path: Path):
    text = """schema = 1
suite = "s"
[measure]
energy = "off"
[[workload]]
name = "vit"
model = { use = "mlp" }
data = { use = "digits", batch = 16 }
train = { epochs = 1, lr = 0.1, optimizer = "adamw" }
[[method]]
use = "ultimate"
name = "learned"
"""
    file = tmp_path / "suite.toml"
    file.write_text(text, encoding="utf-8")
    (problem,) = Plan(spec_of(load(file), tmp_path, device="cpu", download=False)).result().problems
    assert (problem.code, problem.where) == ("E315", f"{file}:10:3")
    assert "'vit'" in problem.message
    assert '[[skip]] workload = "vit", method = "learned"' in problem.hint
    file.write_text(text.replace("adamw", "sgd"), encoding="utf-8")
    assert not Plan(spec_of(load(file), tmp_path, device="cpu", download=False)).result().problems


def test_a_method_that_owns_the_update_too_is_refused():
    others = [discovery.build(discovery.load(discovery.sources()[name]), name, {}) for name in ("sgld", "mezo")]
    for one in others:
        codes = {problem.code for problem in check_stack([method(), one], Classification())}
        assert "E310" in codes
