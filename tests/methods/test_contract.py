"""What every method promises, whatever it does. A file put into methods/ is tested here without another word."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tomli_w
import torch
from support import CPU, MODELS, StackedTransformer, assert_same_state, digits, make_run, run_or_refusal, state
from torch import Tensor, nn

from energybench.flops.work import Work
from energybench.records.record import Passes
from energybench.runner.tracing import trace_task
from energybench.train import discovery
from energybench.train.batch import Batch
from energybench.train.method import HOOKS, Method, overrides, parameters
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.train.stack_check import check_stack
from energybench.trial.budget import budget
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}
EPOCHS, BATCH = 6, 32  # enough epochs for a default that acts in every fifth
ESTIMATE_GAP = 0.02  # of plain training's FLOPs: the default of a suite's [accept]

each_method = pytest.mark.parametrize("name", SOURCES)
ALL_MODELS = {**MODELS, "stacked": StackedTransformer}  # the last for those who refuse one of the others


@dataclass
class Outcome:
    run: Run
    method: Method
    initial: dict[str, Tensor]
    trained: dict[str, Tensor]
    passes: Passes
    counted: dict[str, Any] | None


def fresh(name: str) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example))


@cache
def reason(name: str, model: str) -> str | None:
    """Why a method cannot train one of the models on digits; None if it can."""
    return fresh(name).incompatible_run(plain_run(model))


@cache
def plain_run(model: str) -> Run:
    return make_run([], ALL_MODELS[model], epochs=EPOCHS, batch=BATCH)


@cache
def trained_by(name: str) -> list[str]:
    """The models that a method is held to here."""
    models = [model for model in MODELS if reason(name, model) is None]
    return models if len(models) == len(MODELS) or reason(name, "stacked") else [*models, "stacked"]


each_pair = pytest.mark.parametrize(("name", "model"), [(name, each) for name in SOURCES for each in trained_by(name)])


def train(name: str | None, model: str, *, counted: bool = False) -> Outcome:
    methods = [fresh(name)] if name else []
    layer = StepCounter(10**9)
    run = make_run(methods, ALL_MODELS[model], counter=layer if counted else None, epochs=EPOCHS, batch=BATCH)
    initial = state(run.model)
    run.train()
    method = methods[0] if methods else Method()
    found = layer.result(run) if counted else None
    return Outcome(run, method, initial, state(run.model), run.tally.passes(), found)


@cache
def plain(name: str | None, model: str) -> Outcome:
    """One trained run per method and model, shared by tests that only look at it."""
    return train(name, model)


@cache
def witnessed(name: str | None, model: str) -> Outcome:
    return train(name, model, counted=True)


def ledger_of_plain_training(model: str, run: Run) -> Work:
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), ALL_MODELS[model](), Recipe(epochs=EPOCHS, batch=BATCH), batch, CPU).lines
    return Work(lines, epochs=EPOCHS, samples=run.data.samples(BATCH), batch=BATCH)


def test_there_are_methods_and_each_has_a_card_that_says_what_it_does():
    cards = {card.name: card for card in discovery.cards()}
    assert set(SOURCES) <= set(cards)
    assert SOURCES
    for name in SOURCES:
        assert cards[name].summary.startswith(f"{name}: ")
        built = parameters(fresh(name))
        named = {key: default for key, _, default in cards[name].parameters}
        assert set(built) <= set(named)
        assert all(named[key] == "None" for key in set(named) - set(built))  # what is not given is not told


@each_pair
def test_the_same_seed_gives_the_same_weights_bit_for_bit(name, model):
    start, with_it = plain(None, model).initial, plain(name, model).initial  # it may have made more, and changed none
    assert_same_state({key: with_it[key] for key in start}, start)
    assert_same_state(plain(name, model).trained, train(name, model).trained)


@each_method
def test_parameters_round_trip_through_toml(name):
    method = fresh(name)
    text = tomli_w.dumps(parameters(method))
    again = discovery.build(type(method), name, tomllib.loads(text))
    assert again == method or not parameters(method)
    assert parameters(again) == parameters(method)
    assert again.name == method.name == name


@each_pair
def test_its_estimate_stays_within_two_points_of_what_is_counted_or_says_why(name, model):
    with_it, without = witnessed(name, model), witnessed(None, model)
    work = ledger_of_plain_training(model, with_it.run)
    assert with_it.counted is not None
    assert without.counted is not None
    estimated = with_it.method.estimate(work.trained(with_it.run.epochs_of_work)).flop / work.flop
    counted = with_it.counted.counted_flop / without.counted.counted_flop
    assert abs(estimated - counted) <= ESTIMATE_GAP or type(with_it.method).gap_because
    assert work.flop == pytest.approx(without.counted.counted_flop, rel=1e-3)  # else neither says anything


class Merged(nn.Module):
    """Weights are made from weights once a step, and every sample is held against every other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(32, 16) / 4), nn.Parameter(torch.randn(16, 64) / 4)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(nn.functional.linear(x.flatten(1), self.a @ self.b)).relu()
        return self.head(y + (y @ y.T).softmax(1) @ y)


@each_method
def test_and_so_it_does_where_a_step_costs_something_once_and_pairs_cost_something(name, monkeypatch):
    """80 samples in steps of 32, 32 and 16."""
    monkeypatch.setitem(ALL_MODELS, "merged", Merged)
    runs = []
    for methods in ([fresh(name)], []):
        layer = StepCounter(10**9)
        run = run_or_refusal(
            lambda: make_run(methods, Merged, digits(80), counter=layer, epochs=EPOCHS, batch=BATCH)  # noqa: B023
        )
        if run is None:
            return
        run.train()
        runs.append((run, layer.result(run).counted_flop, methods))
    (run, counted, (method,)), (_, plain_flop, _) = runs
    work = ledger_of_plain_training("merged", run)
    assert sum(line.step_flop for line in work.lines) > 0.05 * sum(line.flop for line in work.lines)
    assert work.flop == plain_flop
    estimated = method.estimate(work.trained(run.epochs_of_work)).flop / work.flop
    assert abs(estimated - counted / plain_flop) <= ESTIMATE_GAP or type(method).gap_because


@each_pair
def test_the_witness_sees_the_steps_and_the_weights_of_the_trial(name, model):
    assert witnessed(name, model).passes == plain(name, model).passes
    assert_same_state(witnessed(name, model).trained, plain(name, model).trained)


@each_pair
def test_finish_leaves_a_plain_model_behind(name, model):
    torch.manual_seed(0)
    reference = ALL_MODELS[model]()
    test = digits(64, test=True)
    outcome = train(name, model)
    before = outcome.run.evaluate(test)
    outcome.run.finish()
    trained = outcome.run.model
    assert {n: type(m) for n, m in trained.named_modules()} == {n: type(m) for n, m in reference.named_modules()}
    for module in trained.modules():
        hooks = [key for key, value in vars(module).items() if "hooks" in key and value]
        assert not hooks, f"{type(module).__name__} keeps {hooks}"
        assert "forward" not in vars(module)
        assert vars(module).keys() == vars(reference_of(module, trained, reference)).keys()
    reference.load_state_dict(trained.state_dict())
    after = make_run(model=lambda: reference, precision=outcome.run.recipe.precision).evaluate(test)
    assert after == pytest.approx(outcome.run.evaluate(test))
    assert after == pytest.approx(before)  # it was already resting while it was evaluated


def reference_of(module: nn.Module, model: nn.Module, reference: nn.Module) -> nn.Module:
    return reference.get_submodule(next(name for name, found in model.named_modules() if found is module))


@each_pair
def test_it_is_entered_and_it_acts(name, model):
    outcome = plain(name, model)
    assert outcome.run.uncalled_overrides() == []
    assert outcome.method.acted is not False


@each_method
def test_its_training_loss_is_finite_and_falls(name):
    losses = [point["loss"] for point in plain(name, trained_by(name)[0]).run.curve if point["loss"] is not None]
    assert losses[-1] < losses[0]


@each_pair
def test_two_of_it_never_share_state(name, model):
    """A run trained between every two epochs of another, in the same process, changes neither."""
    kind = type(fresh(name))
    before = {key: repr(value) for key, value in vars(kind).items()}
    first, second = fresh(name), fresh(name)
    outer = make_run([first], ALL_MODELS[model], epochs=EPOCHS, batch=BATCH)
    inner = make_run([second], ALL_MODELS[model], epochs=EPOCHS, batch=BATCH, seed=8)
    outer.train(lambda run: inner.train() if run.epoch_number == 3 else None)
    assert_same_state(state(outer.model), plain(name, model).trained)
    assert {key: repr(value) for key, value in vars(kind).items()} == before
    mutable = [value for value in vars(first).values() if isinstance(value, (dict, list, set, torch.Generator))]
    assert not {id(value) for value in mutable} & {id(value) for value in vars(second).values()}


@each_method
def test_setup_draws_nothing_from_the_stream_that_initialised_the_model(name):
    torch.manual_seed(11)
    expected = torch.rand(4)
    for model in trained_by(name):
        run = make_run([], ALL_MODELS[model])
        torch.manual_seed(11)
        fresh(name).setup(run)
        assert torch.equal(torch.rand(4), expected)


@each_method
def test_its_diagnostics_and_parameters_are_json(name):
    outcome = plain(name, trained_by(name)[0])
    json.dumps(outcome.method.diagnostics(), allow_nan=False)
    json.dumps(parameters(outcome.method), allow_nan=False)


@each_method
def test_the_epochs_it_says_it_keeps_are_the_epochs_it_trains(name):
    outcome = plain(name, trained_by(name)[0])
    kept = fresh(name).kept_epochs(make_run([], epochs=EPOCHS))
    planned = EPOCHS if outcome.run.stop_reason is None else outcome.run.epochs_ended
    assert outcome.passes.epochs_trained == (planned if kept is None else kept)


@each_method
def test_who_says_that_it_trains_as_much_as_plain_training_pays_for_every_step(name):
    """Else a matched control that the suite asks for would be refused, although there is something to match."""
    paid = budget((), plain(name, trained_by(name)[0]).run)
    if fresh(name).trains_less is False:
        assert paid.steps == paid.planned_steps
        assert paid.paid_rel >= 1


@each_method
def test_its_claim_is_a_share_of_training_or_of_the_backward_pass_with_a_source(name):
    claim = fresh(name).claims()
    if claim is not None:
        saving, of, source = claim
        assert 0 <= saving < 1
        assert of in ("training", "backward")
        assert source


@each_method
def test_what_it_declares_names_hooks_and_passes_that_exist(name):
    method = fresh(name)
    assert method.replaces | method.enters <= set(HOOKS)
    assert all(overrides(method, hook) for hook in method.replaces)
    assert method.needs | (method.runs or frozenset()) <= {"forward", "backward", "per_sample_loss"}
    assert check_stack([method], Classification()) == []


class Micro(Method):
    """Fails when a method's `gradients` sees another batch than the innermost `step`: a part of it."""

    name = "micro"

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def step(self, run: Run, batch: Batch, inner: Any) -> None:
        self.steps.append(len(batch))
        inner(batch)

    def gradients(self, run: Run, batch: Batch, inner: Any) -> Any:
        assert len(batch) == self.steps[-1]
        return inner(batch)


@each_method
def test_it_trains_in_micro_batches_too(name):
    model, steps = ALL_MODELS[trained_by(name)[0]], list[int]()
    run = make_run([Micro(steps), fresh(name), Micro(steps)], model, epochs=EPOCHS, batch=BATCH, accumulate=2)
    run.train()
    runs = fresh(name).runs
    if runs is None or "backward" in runs:
        assert run.tally.backwards == 2 * run.tally.updates
    else:
        assert run.tally.backwards == 0
        assert run.tally.forwards % (2 * run.tally.updates) == 0


# Every two of them once, each as often outside as inside.
TWO = [(a, b) if (i + j) % 2 else (b, a) for i, a in enumerate(SOURCES) for j, b in enumerate(SOURCES) if i < j]


@pytest.mark.parametrize(("outer", "inner"), TWO)
def test_any_two_train_together_or_the_stack_is_refused(outer, inner):
    methods, model = [fresh(outer), fresh(inner)], shared_model(outer, inner)
    if model is None or check_stack(methods, Classification()):
        return
    run = run_or_refusal(lambda: make_run(methods, ALL_MODELS[model], digits(2 * BATCH), epochs=EPOCHS, batch=BATCH))
    if run is None:
        return
    run.train()
    assert run.uncalled_overrides() == []
    run.finish()
    types = {name: type(module) for name, module in ALL_MODELS[model]().named_modules()}
    assert {name: type(module) for name, module in run.model.named_modules()} == types


def shared_model(one: str, other: str) -> str | None:
    """The first that both can train."""
    return next((model for model in ALL_MODELS if reason(one, model) is None and reason(other, model) is None), None)


@each_method
def test_each_method_trains_something_and_what_it_refuses_it_refuses_in_words(name):
    assert trained_by(name)
    reasons = [told for model in MODELS if (told := reason(name, model)) is not None]
    assert all(" " in told and told[0].islower() for told in reasons)
