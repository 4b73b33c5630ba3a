"""What a method may do beside the five hooks: contexts around passes, another layout of inputs, an early end, rounds
that are no passes, parameters that are frozen and released, members under their old names."""

from __future__ import annotations

import itertools
import math
import warnings
from contextlib import contextmanager
from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import CPU, assert_same_state, digits, double_run, make_run, state, tiny_cnn, vectors
from torch import nn

from energybench.common.errors import UsageError
from energybench.flops.work import Line
from energybench.meter.window import Window
from energybench.runner.tracing import trace_task
from energybench.suite.tables import TargetTable
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.images import Images
from energybench.train.method import RENAMED, Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.trial.estimate import works
from energybench.trial.phases import Phases
from energybench.trial.trial import TargetTracker
from energybench.workloads.tasks.classification import Classification

# ── a context around the forward pass ─────────────────────────────────────────────────────────────────────────────────


class Context(Method):
    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    @contextmanager
    def forward_context(self, run, mode):
        self.events.append(f"{self.name}({mode},{torch.is_grad_enabled()}")
        yield
        self.events.append(f"){self.name}")


class Told(Classification):
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def forward(self, run, batch):
        self.events.append("forward")
        return super().forward(run, batch)


def test_every_forward_pass_is_inside_all_contexts_the_outermost_first_and_evaluation_is_not():
    events: list[str] = []
    run = double_run([Context("a", events), Context("b", events)], task=Told(events))
    batch = next(run.data.load([torch.arange(8)]))
    run.step(batch)
    assert events == ["a(train,True", "b(train,True", "forward", ")b", ")a"]
    events.clear()
    run.forward(batch, "eval", grad=False)
    assert events == ["a(eval,False", "b(eval,False", "forward", ")b", ")a"]
    events.clear()
    run.evaluate(run.data)
    assert events == []


class HalfPrecision(Method):
    """Autocast around training's forward passes and, by `eval_context`, around evaluation."""

    name = "half"

    def forward_context(self, run, mode):
        return torch.autocast(run.device.type, torch.bfloat16)

    def eval_context(self, run):
        return torch.autocast(run.device.type, torch.bfloat16)


class Dtypes(Classification):
    def __init__(self) -> None:
        self.evaluated: set[torch.dtype] = set()

    def evaluate(self, run, data):
        self.evaluated |= {run.model(batch.inputs).dtype for batch in data.in_order()}
        return super().evaluate(run, data)


def test_autocast_changes_what_the_model_returns_in_training_and_in_evaluation_and_it_still_learns():
    task = Dtypes()
    run, plain = make_run([HalfPrecision()], task=task, epochs=6), make_run()
    batch = next(run.data.load([torch.arange(16)]))
    assert run.forward(batch).outputs.dtype == torch.bfloat16
    assert plain.forward(batch).outputs.dtype == torch.float32
    run.evaluate(run.data)
    assert task.evaluated == {torch.bfloat16}
    run.train()
    assert run.curve[-1]["loss"] < run.curve[0]["loss"]
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_the_recipes_autocast_lies_outside_so_that_a_layer_may_leave_it():
    class Full(Method):
        def forward_context(self, run, mode):
            return torch.autocast(run.device.type, enabled=False)

    batch = next(digits().load([torch.arange(16)]))
    assert make_run([], precision="bf16").forward(batch).outputs.dtype == torch.bfloat16
    assert make_run([Full()], precision="bf16").forward(batch).outputs.dtype == torch.float32


class Compiled(Method):
    """As the contract says: compile in `setup`, undo it in `finish`. The eager backend needs no compiler."""

    name = "compiled"

    def setup(self, run):
        run.model.compile(backend="eager")

    def finish(self, run):
        run.model._compiled_call_impl = None


def test_a_compiled_model_trains_as_it_does_without_and_is_plain_afterwards():
    compiled, plain = make_run([Compiled()], epochs=2), make_run([], epochs=2)
    compiled.train()
    plain.train()
    assert compiled.model._compiled_call_impl is not None
    compiled.finish()
    assert compiled.model._compiled_call_impl is None
    for name, value in state(compiled.model).items():
        torch.testing.assert_close(value, state(plain.model)[name], rtol=1e-4, atol=1e-6)


# ── the layout of inputs ──────────────────────────────────────────────────────────────────────────────────────────────


class ChannelsLast(Method):
    name = "channels_last"

    def setup(self, run):
        run.model.to(memory_format=torch.channels_last)

    def prepare_inputs(self, run, inputs):
        return inputs.contiguous(memory_format=torch.channels_last)

    def finish(self, run):
        run.model.to(memory_format=torch.contiguous_format)


class Layouts(Classification):
    """Writes down in which layout its inputs come."""

    def __init__(self) -> None:
        self.trained: list[bool] = []
        self.evaluated: list[bool] = []

    def forward(self, run, batch):
        self.trained.append(batch.inputs.is_contiguous(memory_format=torch.channels_last))
        return super().forward(run, batch)

    def evaluate(self, run, data):
        for batch in data.in_order():
            self.evaluated.append(batch.inputs.is_contiguous(memory_format=torch.channels_last))
        return super().evaluate(run, data)


def rgb(count: int = 64) -> Data:
    """Images of three channels: with one, both layouts are the same."""
    plain = digits(count)
    images = plain.store.inputs.repeat(1, 3, 1, 1)
    return Data(Resident(images, plain.store.targets, CPU), Images([0.3] * 3, [0.4] * 3, ["flip"], CPU))


def rgb_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def test_inputs_come_in_the_layout_of_the_method_in_training_and_in_evaluation():
    task, plain = Layouts(), Layouts()
    with_it = make_run([ChannelsLast()], rgb_cnn, rgb(), task, epochs=2)
    without = make_run([], rgb_cnn, rgb(), plain, epochs=2)
    for run in (with_it, without):
        run.train()
        run.evaluate(rgb(32))
        run.forward(next(run.data.subset(torch.arange(8)).in_order()))  # a probe
    assert len(task.trained) == 2 * 2 + 1
    assert set(task.trained) == set(task.evaluated) == {True}
    assert set(plain.trained) == set(plain.evaluated) == {False}
    assert with_it.tally.passes() == without.tally.passes()
    for name, value in state(with_it.model).items():
        torch.testing.assert_close(value, state(without.model)[name], rtol=1e-4, atol=1e-5)


class Adds(Method):
    def __init__(self, name: str, times: float, plus: float) -> None:
        self.name, self.times, self.plus = name, times, plus

    def prepare_inputs(self, run, inputs):
        return self.times * inputs + self.plus


def test_layers_further_in_come_first_and_each_input_is_prepared_once():
    run = double_run([Adds("outer", 2.0, 0.0), Adds("inner", 1.0, 3.0)])
    index = torch.arange(8)
    plain = next(vectors().load([index])).inputs
    wanted = 2 * (plain + 3)
    loads = [run.load(run.data, [index]), run.load(vectors(), [index]), run.data.load([index])]
    for batches in loads:
        assert torch.equal(next(batches).inputs, wanted)
    batch = next(run.batches(run.data))
    assert torch.equal(batch.inputs, wanted_in(run, batch.index))
    assert torch.equal(next(run.data.subset(index).subset(index[:3]).in_order()).inputs, wanted[:3])


def wanted_in(run: Any, index: torch.Tensor) -> torch.Tensor:
    return 2 * (next(vectors().load([index])).inputs + 3)


def test_without_such_a_layer_the_data_are_handed_on_as_they_are():
    data = vectors()
    run = double_run([], data=data)
    assert run.data is data
    assert run.prepared(data) is data


# ── an early end ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Stops(Method):
    name = "stops"

    def __init__(self, after: int) -> None:
        self.after = after

    def epoch(self, run, data, inner):
        if run.epoch_number == self.after:
            run.stop_after_epoch(f"enough after {self.after}")
            run.stop_after_epoch("a second reason does not count")
        inner(data)


def ledger_of(run: Any) -> tuple[Line, ...]:
    batch = next(run.data.load([torch.arange(2)]))
    return trace_task(Classification(), tiny_cnn(), Recipe(epochs=6, batch=32), batch, CPU).lines


def test_training_ends_after_the_epoch_and_everything_covers_the_epochs_that_ran():
    counting = StepCounter(10**6)
    run, plain = (
        make_run([Stops(4)], counter=counting, epochs=6, schedule="cosine"),
        make_run(epochs=6, schedule="cosine"),
    )
    seen: list[tuple[int, bool]] = []
    run.train(lambda run: seen.append((run.epoch_number, run.continues)))
    plain.train(lambda run: seen.append((run.epoch_number, run.continues)) if run.epoch_number > 4 else None)
    assert seen == [(1, True), (2, True), (3, True), (4, False), (5, True), (6, False)]
    assert run.epochs_ended == 4
    assert run.stop_reason == "enough after 4"
    assert [point["epoch"] for point in run.curve] == [1, 2, 3, 4]
    assert run.curve == plain.curve[:4]  # the schedule stays that of the planned epochs
    assert run.tally.passes().epochs_trained == 4
    assert run.tally.steps == 4 * 3
    ledger, work = works(ledger_of(run), run)
    assert (ledger.epochs, work.epochs) == (6, 4)
    assert work.flop == pytest.approx(counting.result(run).counted_flop, rel=1e-3)


def test_a_skipped_epoch_is_over_too():
    class SkipsAndStops(Method):
        def epoch(self, run, data, inner):
            if run.epoch_number == 2:
                return run.stop_after_epoch("now")
            return inner(data)

    run = make_run([SkipsAndStops()], epochs=5)
    run.train()
    assert (run.epochs_ended, run.tally.passes().epochs_trained) == (2, 1)


@pytest.mark.parametrize(("after", "pieces"), [(2, 2), (3, 3), (9, 4)])
def test_the_way_to_a_target_restarts_no_window_after_the_end(after, pieces):
    window = Window([], lambda: None)
    judge: Any = SimpleNamespace(quality=lambda run: run.evaluate(digits(32)))
    target: Any = TargetTracker(TargetTable(at_least=2.0), window, judge, Phases({}, lambda: None))
    run = make_run([Stops(after)], epochs=4)
    window.start()
    run.train(target.after_epoch)
    window.stop()
    assert window.reading().pieces == pieces == len(run.curve)


# ── rounds that are no passes ─────────────────────────────────────────────────────────────────────────────────────────


class LocalSteps(Method):
    """Federated rounds: every client makes the same number of steps on its own part of the data."""

    name = "local"

    def __init__(self, clients: int, steps: int, skipped: frozenset[int] = frozenset()) -> None:
        self.clients, self.steps, self.skipped = clients, steps, skipped
        self.rates: list[float] = []

    replaces = frozenset({"epoch"})
    enters = frozenset({"batches", "step"})

    def steps_per_epoch(self, run):
        return self.clients * self.steps

    def setup(self, run):
        self._tally, self._rounds = run.tally, 0
        parts = torch.arange(len(run.data)).chunk(self.clients)
        self._parts = [run.data.subset(part) for part in parts]

    def epoch(self, run, data, inner):
        self._rounds += 1
        if run.epoch_number in self.skipped:
            return
        for part in self._parts:
            done = 0
            while done < self.steps:
                for batch in run.batches(part):
                    self.rates.append(run.lr())
                    run.step(batch)
                    if (done := done + 1) == self.steps:
                        break

    def estimate(self, work):
        return work.trained(work.epochs * self._tally.passes().epochs_trained / self._rounds)


@pytest.mark.parametrize(("clients", "steps"), [(2, 5), (3, 1), (1, 7)])
def test_the_learning_rate_moves_by_the_steps_of_a_round_and_passes_are_counted_in_fractions(clients, steps):
    method = LocalSteps(clients, steps)
    run = double_run(
        [method], epochs=4, schedule="linear", lr=1.0
    )  # 24 samples in batches of 8, clients' parts smaller
    run.train()
    each = clients * steps
    assert method.rates == pytest.approx([1 - step / (4 * each) for step in range(4 * each)])
    assert run.tally.steps == 4 * each
    assert run.steps_per_epoch == each
    samples = sum(counts["samples"] for counts in run.tally.passes().keys.values())
    assert run.tally.passes().epochs_trained == pytest.approx(samples / 24)


def test_a_round_of_one_pass_is_one_pass_and_a_skipped_round_none():
    run = double_run([LocalSteps(1, 3, frozenset({2}))], epochs=4)
    run.train()
    assert run.tally.passes().epochs_trained == 3.0
    plain = double_run([], epochs=4)
    plain.train()
    assert plain.tally.passes().epochs_trained == 4
    assert isinstance(plain.tally.epochs_trained, int)


def test_the_estimate_of_rounds_is_what_is_counted():
    counting = StepCounter(10)  # steps are sampled, among them those beyond one pass
    run = make_run([LocalSteps(2, 4)], counter=counting, epochs=3, batch=24, data=digits(96))
    run.train()
    _, work = works(ledger_of(run), run)
    assert work.flop == pytest.approx(counting.result(run).counted_flop, rel=1e-3)
    assert work.epochs == 3 * 8 * 24 / 96


@pytest.mark.parametrize("skipped", [frozenset(), frozenset({3})])
def test_rounds_compose_with_what_skips_epochs(skipped):
    counting, skips = StepCounter(10**6), method_named("gradsamp", skip="every:2")
    run = make_run([skips, LocalSteps(2, 4, skipped)], counter=counting, epochs=6, batch=24, data=digits(96))
    run.train()
    _, work = works(ledger_of(run), run)
    rounds = 3 - len(skipped)  # of six, every second is sampled
    assert run.tally.passes().epochs_trained == pytest.approx(rounds * 8 * 24 / 96)
    counted = counting.result(run)
    in_steps = counted.counted_flop - counted.outside_steps_flop  # where the draws' distributions are fitted
    assert work.flop == pytest.approx(in_steps, rel=1e-3)


# ── parameters frozen and released ────────────────────────────────────────────────────────────────────────────────────


class Freezes(Method):
    """Freezes the first layer for these epochs, from the set-up where epoch 1 is among them."""

    name = "freezes"

    def __init__(self, frozen: set[int]) -> None:
        self.frozen = frozen
        self.weights: list[torch.Tensor] = []
        self.momenta: list[torch.Tensor | None] = []

    def setup(self, run):
        run.model[0].requires_grad_(1 not in self.frozen)

    def epoch(self, run, data, inner):
        run.model[0].requires_grad_(run.epoch_number not in self.frozen)
        inner(data)
        self.weights.append(run.model[0].weight.detach().clone())
        optimizer = run.optimizers.get("main")
        kept = optimizer.state.get(run.model[0].weight, {}) if optimizer else {}
        self.momenta.append(
            next((value.clone() for value in kept.values() if torch.is_tensor(value) and value.dim()), None)
        )


OPTIMIZERS = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"momentum": 0.0},
    "adamw": {"momentum": 0.0},
    "adagrad": {"momentum": 0.0},
    "adadelta": {"momentum": 0.0, "lr": 1.0},
}


def method_named(name: str, **parameters: Any) -> Method:
    """With its own example's values where it requires some."""
    kind = discovery.load(discovery.sources()[name])
    required = {f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING}
    example = {key: value for key, value in getattr(kind, "example", {}).items() if key in required}
    return discovery.build(kind, name, example | parameters)


TRAINED_BY: dict[str, tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]] = {
    **{name: ([], {"optimizer": name, **settings}) for name, settings in OPTIMIZERS.items()},
    "mezo": ([("mezo", {"lr": 0.01})], {}),
    "sgld": ([("sgld", {})], {}),
    "ultimate": ([("ultimate", {"hyper_lr": 1e-3, "learn_momentum": True})], {"momentum": 0.9}),
    "scotti": ([("scotti", {"hyper_lr": 1e-3, "mode": "released", "epsilon": 0.01})], {"momentum": 0.9}),
}


def train_freezing(trained_by: str, frozen: set[int], *, lazily: bool = True) -> tuple[Freezes, Any]:
    stack, recipe = TRAINED_BY[trained_by]
    freezes = Freezes(frozen)
    methods = [freezes, *(method_named(name, **parameters) for name, parameters in stack)]
    run = make_run(methods, tiny_cnn, digits(96), epochs=5, batch=24, **{"decay": 0.01, "clip": 1.0, **recipe})
    run.train()
    return freezes, run


@pytest.mark.parametrize("trained_by", TRAINED_BY)
def test_a_frozen_parameter_stands_still_and_learns_after_its_release(trained_by):
    """Frozen from the start and in epoch 4: no update, no decay, no noise, and its momentum waits."""
    freezes, run = train_freezing(trained_by, {1, 2, 4})
    torch.manual_seed(0)
    initial = make_run([], tiny_cnn).model[0].weight
    weights = [initial, *freezes.weights]
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(weights)]
    assert moved == [False, False, True, False, True]
    if freezes.momenta[2] is not None and trained_by != "scotti":  # which sets the momentum of a resting neuron to 0
        assert torch.equal(freezes.momenta[2], freezes.momenta[3])
    assert len({id(p) for p in run.parameters()}) == len(run.parameters()) == len(list(run.model.parameters()))
    if run.optimizers:
        held = [p for group in run.optimizer().param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in run.model.parameters()}
        assert len(held) == len(set(map(id, held)))


@pytest.mark.parametrize("trained_by", OPTIMIZERS)
def test_after_the_release_it_moves_as_one_that_an_optimizer_of_its_own_holds(trained_by):
    """torch's own optimizer with a group added at the release, by hand: the same weights."""
    settings = {"lr": 0.05, "decay": 0.01, **OPTIMIZERS[trained_by]}
    run = double_run([], optimizer=trained_by, epochs=1, **settings)
    twin = double_run([], optimizer=trained_by, epochs=1, **settings).model
    late = list(run.model[0].parameters())
    for parameter in [*run.model[0].parameters(), *twin[0].parameters()]:
        parameter.requires_grad_(False)
    batch = next(run.data.load([torch.arange(8)]))
    first = Recipe(epochs=1, batch=8, optimizer=trained_by, **settings).build_optimizer(list(twin[2].parameters()))
    second = Recipe(epochs=1, batch=8, optimizer=trained_by, **settings).build_optimizer(list(twin[0].parameters()))
    for number in range(4):
        if number == 2:
            for parameter in [*late, *twin[0].parameters()]:
                parameter.requires_grad_(True)
        run.step(batch)
        twin.zero_grad()
        nn.functional.cross_entropy(twin(batch.inputs), batch.targets).backward()
        first.step()
        second.step()
    for one, other in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_a_parameter_that_is_frozen_after_its_gradient_was_computed_is_not_moved():
    class Late(Method):
        def update(self, run, part, inner):
            run.model[0].requires_grad_(run.step_in_epoch != 1)
            inner(part)

    run = double_run([Late()], momentum=0.9, decay=0.1)
    batch = next(run.data.load([torch.arange(8)]))
    weights = [run.model[0].weight.detach().clone()]
    for _ in range(4):
        run.step(batch)
        weights.append(run.model[0].weight.detach().clone())
    # Released again after the third step's backward pass, so that it has a gradient in the fourth.
    assert [not torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [True, False, False, True]


def test_clipping_covers_a_parameter_that_was_released():
    run = double_run([], clip=0.1, lr=1.0)
    run.model[0].requires_grad_(False)
    batch = next(run.data.load([torch.arange(8)]))
    run.step(batch)
    run.model[0].requires_grad_(True)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.step(batch)
    moved = torch.cat([(p - b).flatten() for p, b in zip(run.model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.1, rel=1e-4)


def test_a_model_that_is_never_released_keeps_no_state_for_what_is_frozen():
    run = make_run(epochs=2)
    run.model[0].requires_grad_(False)
    before = state(run.model)
    run.train()
    frozen = {id(p) for p in run.model[0].parameters()}
    assert not frozen & {id(p) for p in run.parameters()}
    assert not frozen & {id(p) for p in run.optimizer().state}
    assert torch.equal(state(run.model)["0.weight"], before["0.weight"])


# ── members under their old names ─────────────────────────────────────────────────────────────────────────────────────

OLD_PLUG_IN = '''
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from energybench import Method


@dataclass
class Old(Method):
    """A plug-in of the version before: `resting`, `refuses` and `state`."""

    strength: float = 0.5

    def refuses(self, train):
        return "only sgd" if train["optimizer"] != "sgd" else super().refuses(train)

    def setup(self, run):
        if why := self.refuses({"optimizer": run.recipe.optimizer}):
            raise ValueError(why)
        self.rested = 0

    @contextmanager
    def resting(self, run):
        self.rested += 1
        yield

    def state(self):
        return {"weights": torch.ones(3)}
'''


def test_a_plug_in_of_the_version_before_is_read_with_a_warning_for_each_renamed_member(tmp_path):
    file = tmp_path / "old.py"
    file.write_text(OLD_PLUG_IN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind = discovery.load(discovery.find(str(file)))
        method = discovery.build(kind, "old", {"strength": 0.25})
    told = {str(warning.message) for warning in caught if issubclass(warning.category, DeprecationWarning)}
    assert {f"Old.{old} is called {new} now" for old, new in RENAMED.items()} <= told
    run = make_run([method], epochs=1)
    run.train()
    run.evaluate(run.data)
    assert method.rested == 1
    assert method.saved_tensors()["weights"].tolist() == [1, 1, 1]
    assert method.incompatible_recipe({"optimizer": "adam"}) == "only sgd"
    with pytest.warns(DeprecationWarning, match="incompatible_recipe"):
        assert method.incompatible_recipe({"optimizer": "sgd"}) is None  # by super().refuses


def test_old_names_called_on_a_method_of_now_reach_the_new_member():
    class Now(Method):
        def incompatible_recipe(self, train):
            return "never"

    class Further(Now):
        def setup(self, run):
            self.said = self.refuses({})

    method = Further()
    with pytest.warns(DeprecationWarning, match=r"Further\.refuses is called incompatible_recipe now"):
        method.setup(SimpleNamespace())  # type: ignore[arg-type]
    assert method.said == "never"
    with pytest.warns(DeprecationWarning, match="eval_context"), Method().resting(None):  # type: ignore[attr-defined]
        pass


def test_a_method_of_now_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for source in discovery.sources().values():
            discovery.load(source)

        class New(Method):
            def eval_context(self, run):
                return super().eval_context(run)

        with New().eval_context(None):  # type: ignore[arg-type]
            pass


def test_half_precision_rounds_as_bfloat16_does():
    """The arithmetic behind the context: 8 bits of mantissa, so that 1 + 2⁻⁹ is 1."""
    inputs, weight = torch.tensor([[1.0]]), torch.tensor([[1 + 2**-9]])
    with HalfPrecision().forward_context(SimpleNamespace(device=CPU), "train"):  # type: ignore[arg-type]
        product = nn.functional.linear(inputs, weight)
    assert product.item() == 1.0 != (1 + 2**-9)
    assert math.isclose(nn.functional.linear(inputs, weight).item(), 1 + 2**-9)


def test_two_runs_with_every_member_used_are_the_same_bit_for_bit():
    def trained() -> Any:
        run = make_run([ChannelsLast(), HalfPrecision(), Stops(2)], rgb_cnn, rgb(), epochs=3)
        run.train()
        return run.model

    assert_same_state(state(trained()), state(trained()))


# ── what it asks of the run ───────────────────────────────────────────────────────────────────────────────────────────


class Halving(Method):
    """The rate halves with every epoch."""

    name = "halving"

    def lr_factor(self, run):
        return 0.5 ** (run.epoch_number - 1)


def test_factors_of_layers_multiply_the_recipes_learning_rate():
    run = double_run([Halving(), Halving()], lr=0.4, epochs=3)
    rates = []
    run.train(lambda run: rates.append(run.lr()))
    assert rates == pytest.approx([0.4, 0.4 / 4, 0.4 / 16])


def test_a_factor_is_what_the_default_update_moves_weights_by():
    with_it, without = double_run([Halving()], epochs=1, lr=0.4), double_run(epochs=1, lr=0.4)
    for run in (with_it, without):
        run.train()
    assert_same_state(state(with_it.model), state(without.model))  # 1 in the first epoch


class Narrow(Method):
    name, trains_in = "narrow", "bf16"


def test_a_method_that_says_its_precision_trains_as_the_recipe_of_that_precision_does():
    with_it, without = make_run([Narrow()]), make_run(precision="bf16")
    for run in (with_it, without):
        run.train()
    assert with_it.recipe.precision == "bf16"
    assert_same_state(state(with_it.model), state(without.model))


class Picky(Method):
    name = "picky"

    def incompatible_run(self, run):
        batch = next(iter(run.data.load([torch.arange(2)])))
        return None if batch.inputs.dim() == 4 else "it takes images alone"

    def setup(self, run):
        raise AssertionError("a method that refuses is not set up")


def test_a_run_that_a_method_refuses_is_never_set_up():
    with pytest.raises(UsageError, match="'picky' cannot train it: it takes images alone"):
        double_run([Picky()])
    with pytest.raises(AssertionError):
        make_run([Picky()])
