"""layer_freezing: which layers rest in which epoch, that they stay bit for bit, what that saves, how they come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import CPU, StackedTransformer, TinyTransformer, assert_same_state, digits, make_run, state, tiny_cnn
from test_method_members import Freezes, method_named
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.flops.work import BACKWARD, Work
from energybench.runner.tracing import trace_task
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import models
from energybench.workloads.tasks.classification import Classification

CNN_LAYERS = ["0", "1", "4", "5", "9"]


def freezing(**parameters: Any) -> Any:
    return method_named("layer_freezing", **parameters)


class Projected(nn.Module):
    """A block with a shortcut of its own, which rests later than what lies beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.first, self.second, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        y = self.second(self.first(x).relu()) + self.shortcut(x)[:, :, 1:-1, 1:-1]
        return self.head(y.relu().mean((2, 3)))


class Tied(nn.Module):
    """The first layer's weight is the last one's too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(64, 12, bias=False)
        self.leave.weight = self.enter.weight

    def forward(self, images: Tensor) -> Tensor:
        x = self.middle(self.enter(images.flatten(1)).relu())
        return self.leave(images.flatten(1)) + x


class Watches(Method):
    """Keeps, epoch by epoch, which layers have parameters that learn inside steps, and which moved."""

    name = "watches"

    def __init__(self) -> None:
        self.learning: list[list[str]] = []
        self.moved: list[set[str]] = []
        self.outside: list[bool] = []

    def epoch(self, run: Any, data: Any, inner: Any) -> None:
        before = state(run.model)
        self._seen: set[str] = set()
        inner(data)
        after = state(run.model)
        parameters = dict(run.model.named_parameters())
        self.moved.append({n.rpartition(".")[0] for n in parameters if not torch.equal(before[n], after[n])})
        self.learning.append(sorted(self._seen))

    def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
        self._seen |= {n.rpartition(".")[0] for n, p in run.model.named_parameters() if p.requires_grad}
        return inner(batch)


def watched(method: Any, model: Any = tiny_cnn, **settings: Any) -> tuple[Watches, Any]:
    watches = Watches()
    run = make_run([method, watches], model, **{"epochs": 4, "decay": 0.05} | settings)
    run.train()
    return watches, run


# ── the schedule ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_no_layer_is_to_rest_it_is_plain_training_bit_for_bit():
    with_it, without = make_run([freezing(share=0.0)]), make_run([])
    with_it.train()
    without.train()
    assert_same_state(state(with_it.model), state(without.model))
    assert with_it.tally.passes() == without.tally.passes()
    assert with_it.methods[0].acted is False


@pytest.mark.parametrize(
    ("parameters", "layers", "expected"),
    [
        ({}, 8, [0, 0, 0, 0, 0, 1, 2, 3, 4, 4]),  # ⌈4·j/5⌉ in five epochs
        ({"share": 1.0, "start": 0.7}, 8, [0] * 7 + [3, 5, 7]),  # the last one never rests
        ({"start": 0.0, "unfreeze": 0.3, "share": 0.5}, 14, [1, 2, 3, 4, 5, 6, 7, 0, 0, 0]),
        ({"start": 0.55}, 4, [0] * 6 + [1, 1, 2, 2]),  # the sixth begins before it
        ({"start": 0.5, "unfreeze": 0.45}, 4, [0] * 5 + [2] + [0] * 4),  # the seventh begins after the release
        ({"start": 0.9, "share": 0.25}, 8, [0] * 9 + [2]),
    ],
    ids=str,
)
def test_layers_rest_one_after_another_between_start_and_the_release(parameters, layers, expected):
    method = freezing(**parameters)
    assert [method.count_resting(layers, epoch, 10) for epoch in range(1, 11)] == expected


def test_ever_more_rest_until_the_share_does_and_all_learn_in_the_end():
    for epochs in range(1, 40):
        for start, unfreeze in ((0.0, 0.0), (0.3, 0.2), (0.7, 0.0), (0.1, 0.6)):
            method = freezing(share=0.6, start=start, unfreeze=unfreeze)
            counts = [method.count_resting(10, epoch, epochs) for epoch in range(1, epochs + 1)]
            resting = [count for count in counts if count]
            assert resting == sorted(resting)
            assert not resting or resting[-1] == 6
            assert all(
                (count > 0) == (start <= (epoch - 1) / epochs + 1e-9 and (epoch - 1) / epochs < 1 - unfreeze - 1e-9)
                for epoch, count in enumerate(counts, start=1)
            )


# ── a layer at rest ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"optimizer": "adam", "lr": 0.01}], ids=str)
def test_what_rests_stays_bit_for_bit_and_the_rest_learns(settings):
    """Momentum and decay would move it."""
    watches, run = watched(freezing(share=0.6, start=0.25), **settings)
    expected = [CNN_LAYERS, CNN_LAYERS[1:], CNN_LAYERS[2:], CNN_LAYERS[3:]]
    assert watches.learning == [sorted(layers) for layers in expected]
    assert watches.moved == [set(layers) for layers in expected]
    assert run.methods[0].diagnostics() == {"layers": CNN_LAYERS, "resting_by_epoch": {1: 0, 2: 1, 3: 2, 4: 3}}


def test_the_order_is_that_of_the_forward_pass_and_not_of_the_attributes():
    method = freezing()
    watched(method, Projected)
    assert method.diagnostics()["layers"] == ["stem", "first", "second", "shortcut", "head"]
    watched(method, TinyTransformer)
    calls = ["patch", "before", "qkv", "out", "between", "up", "down", "after", "head"]
    assert method.diagnostics()["layers"] == ["", *calls]  # the model itself holds its embedding of places


def test_what_is_never_called_by_itself_rests_with_what_uses_it():
    """torch's attention holds its last projection as a module, and computes with its weight."""
    method = freezing(share=0.5, start=0.0)
    watches, _ = watched(method, StackedTransformer, epochs=6)
    first = ["patch", *(f"layers.0.{name}" for name in ("norm1", "self_attn", "norm2", "linear1", "linear2"))]
    assert method.diagnostics()["layers"][:6] == first
    at_rest = [[name for name in first if name not in learning] for learning in watches.learning]
    assert at_rest[0] == first[:2]  # ⌈9·1/6⌉ of 17 layers
    assert "layers.0.self_attn.out_proj" in watches.learning[0]
    assert at_rest[1] == first[:3]
    assert "layers.0.self_attn.out_proj" not in watches.learning[1]


def test_a_weight_of_two_layers_learns_as_long_as_one_of_them_does():
    watches, _ = watched(freezing(share=1.0, start=0.0), Tied, epochs=3, optimizer="sgd")
    assert watches.learning == [["enter", "middle"], ["enter"], ["enter"]]  # its weight; the bias rests at once
    method = freezing(share=1.0, start=0.0)
    run = make_run([method], Tied, epochs=1)
    bias = run.model.enter.bias.detach().clone()
    run.train()
    assert torch.equal(run.model.enter.bias, bias)


def test_gradients_of_what_learns_are_those_of_plain_training():
    """In the epoch that begins with the weights of plain training, its first step."""
    found: list[dict[str, Tensor]] = []

    class Keeps(Method):
        name = "keeps"

        def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
            forward = inner(batch)
            found.append({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
            return forward

    for stack in ([freezing(share=0.4, start=0.0)], []):
        make_run([*stack, Keeps()], epochs=1, batch=96).train()
    resting, plain = found
    assert set(plain) - set(resting) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name, gradient in resting.items():
        assert torch.equal(gradient, plain[name])


def test_what_comes_back_to_learning_begins_without_momentum():
    """One step of SGD after the release: θ ← θ − lr·g alone, where momentum was built up before the rest."""
    seen: list[tuple[int, Tensor, Tensor | None]] = []

    class Looks(Method):
        name = "looks"

        def update(self, run: Any, part: str, inner: Any) -> None:
            weight = run.model[0].weight
            before, gradient = weight.detach().clone(), None if weight.grad is None else weight.grad.clone()
            inner(part)
            step = None if gradient is None else (before - weight.detach()) - run.lr() * gradient
            seen.append((run.epoch_number, weight.detach() - before, step))

    make_run([freezing(share=0.3, start=0.25, unfreeze=0.5), Looks()], epochs=4, momentum=0.9).train()
    first = [next(each for each in seen if each[0] == epoch) for epoch in (1, 2, 3)]
    assert first[1][2] is None
    torch.testing.assert_close(first[2][2], torch.zeros_like(first[2][2]), atol=1e-7, rtol=0)
    later = [each for each in seen if each[0] == 3][1]
    assert later[2].abs().max() > 1e-4  # with momentum


def test_all_learn_again_in_the_last_share():
    watches, run = watched(freezing(share=0.6, start=0.2, unfreeze=0.4), epochs=5)
    assert [len(moved) for moved in watches.moved] == [5, 3, 2, 5, 5]
    run.finish()
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    assert run.untrained() == {}


# ── BatchNorm ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("batch_norm", "moves"), [("batch", True), ("running", False)])
def test_statistics_of_a_batchnorm_at_rest_move_or_stay(batch_norm, moves):
    means: list[list[Tensor]] = []

    class Looks(Method):
        name = "looks"

        def epoch(self, run: Any, data: Any, inner: Any) -> None:
            inner(data)
            means.append([run.model[n].running_mean.clone() for n in (1, 5)])

    method = freezing(share=0.4, start=0.5, batch_norm=batch_norm)
    run = make_run([method, Looks()], epochs=4)
    run.train()
    assert method.diagnostics()["resting_by_epoch"] == {1: 0, 2: 0, 3: 1, 4: 2}
    changed = [not torch.equal(means[3][n], means[2][n]) for n in (0, 1)]
    assert changed == [moves, True]
    assert run.model[1].training  # as its mode says again


def test_a_batchnorm_at_rest_normalises_by_its_running_statistics():
    method = freezing(share=0.4, start=0.0, batch_norm="running")
    run = make_run([method], epochs=1)
    batch = next(iter(run.data.load([torch.arange(16)])))
    outputs: list[Tensor] = []

    class Stops(Exception):
        pass

    def look(data: Any) -> None:
        outputs.append(run.forward(batch).outputs.detach())
        raise Stops

    run.epoch_number = 1
    with pytest.raises(Stops):
        method.epoch(run, run.data, look)
    model = make_run([], epochs=1).model
    model.train()
    model[1].eval()
    torch.testing.assert_close(outputs[0], model(batch.inputs))
    assert all(parameter.requires_grad for parameter in run.model.parameters())  # whatever ended the epoch


# ── the promise ───────────────────────────────────────────────────────────────────────────────────────────────────

MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": tiny_cnn,
    "transformer": TinyTransformer,
    "stacked": lambda: StackedTransformer(layers=2),
    "projected": Projected,
    "tied": Tied,
    "vit": lambda: models.build("vit_tiny", (1, 8, 8), 10, {"layers": 1, "heads": 2, "width": 8}),
}


def shares(stack: list[Any], model: Any, epochs: int, **recipe: Any) -> tuple[float, float]:
    """(estimated, counted) of plain training's FLOPs; every step is counted, of batches of 32 and 16."""
    counted, settings = [], {"epochs": epochs, "batch": 32, **recipe}
    for methods in (stack, []):
        counter = StepCounter(10**9)
        run = make_run(methods, model, digits(48), counter=counter, **settings)
        run.train()
        counted.append(counter.result(run).counted_flop)
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), model(), Recipe(**settings), batch, CPU).lines
    work = Work(lines, epochs, 48, 32, settings.get("accumulate", 1))
    assert work.flop == pytest.approx(counted[1], rel=1e-3)
    changed = work
    for method in reversed(stack):
        changed = method.estimate(changed)
    return changed.flop / work.flop, counted[0] / counted[1]


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_what_is_counted_wherever_the_front_ends(name):
    """An epoch for each number of layers that can rest."""
    layers = len(freezing_names(MODELS[name]))
    estimated, counted = shares([freezing(share=1.0, start=0.0)], MODELS[name], epochs=max(2, layers - 1))
    assert estimated == pytest.approx(counted, abs=1e-3)
    assert counted < 1


def freezing_names(model: Any) -> list[str]:
    method = freezing()
    make_run([method], model, epochs=2)
    return method.diagnostics()["layers"]


def test_the_estimate_is_what_is_counted_in_micro_batches_and_with_a_release():
    method = freezing(share=0.8, start=0.25, unfreeze=0.25)
    estimated, counted = shares([method], tiny_cnn, epochs=4, accumulate=2)
    assert estimated == pytest.approx(counted, abs=1e-3)


def test_where_all_but_the_head_rest_one_gradient_of_the_head_is_left():
    """By hand: 3N of every layer but the first, 2N of that, against N of each and dW of the head."""
    method = freezing(share=1.0, start=0.0)
    estimated, _ = shares([method], tiny_cnn, epochs=1)
    first, second, head = 2 * 64 * 9 * 8, 2 * 16 * 72 * 16, 2 * 160
    assert estimated == pytest.approx((first + second + 2 * head) / (2 * first + 3 * second + 3 * head))


def test_forward_passes_are_left_as_they_are():
    method = freezing(share=1.0, start=0.0)
    run = make_run([method], epochs=1)
    run.train()
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), tiny_cnn(), Recipe(epochs=1, batch=32), batch, CPU).lines
    work = Work(lines, 1, 96, 32)
    for old, new in zip(work.lines, method.estimate(work).lines, strict=True):
        assert old.phase in BACKWARD or (old.flop, old.sample_b, old.step_b) == (new.flop, new.sample_b, new.step_b)


# ── with others ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outer", [True, False])
def test_what_another_method_froze_stays_frozen(outer):
    other, method = Freezes({1, 2, 3, 4}), freezing(share=0.4, start=0.25, unfreeze=0.25)
    run = make_run([other, method] if outer else [method, other], epochs=4)
    initial = run.model[0].weight.detach().clone()
    run.train()
    assert torch.equal(run.model[0].weight, initial)


def test_an_epoch_that_is_sampled_further_in_leaves_what_rests_alone():
    watches = Watches()
    stack = [freezing(share=0.3, start=0.5), watches, method_named("gradsamp", skip="every:4")]
    make_run(stack, epochs=4, batch=24).train()
    assert "0" not in watches.moved[3]
    assert "9" in watches.moved[3]


def test_layers_are_found_by_name_where_another_method_swapped_them():
    swaps = method_named("ssprop", drop=0.5, schedule="constant")
    watches = Watches()
    run = make_run([swaps, freezing(share=0.6, start=0.25), watches], epochs=4)
    run.train()
    assert [len(moved) for moved in watches.moved] == [5, 4, 3, 2]


# ── what it refuses ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("parameters", "epochs", "words"),
    [
        ({"start": 0.9}, 2, "none of its 2 epochs begins between start = 0.9"),
        ({"start": 0.3, "unfreeze": 0.6}, 1, "none of its 1 epochs"),
        ({"share": 0.05}, 4, "share = 0.05 of its layers that learn, 5, is none"),
    ],
)
def test_a_run_in_which_nothing_would_rest_is_refused_in_words(parameters, epochs, words):
    with pytest.raises(UsageError, match=words):
        make_run([freezing(**parameters)], epochs=epochs)


@pytest.mark.parametrize(
    "parameters",
    [{"share": 1.5}, {"start": 1.0}, {"unfreeze": -0.1}, {"start": 0.6, "unfreeze": 0.4}, {"batch_norm": "eval"}],
    ids=str,
)
def test_parameters_out_of_their_range_are_refused(parameters):
    with pytest.raises((ValueError, UsageError)):
        freezing(**parameters)
