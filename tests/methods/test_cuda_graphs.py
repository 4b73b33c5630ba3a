"""cuda_graphs without a card: which passes are replayed, from what memory, and what is left alone.

What records is replaced by `Played`, which has torch's contract for it: inputs, outputs and gradients that stay where
they are, warming up that runs for real, and nothing but what was recorded.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import CPU, assert_same_state, digits, make_run, state, tiny_cnn
from test_method_members import method_named
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.train import discovery
from energybench.train.method import Method
from energybench.trial.counting_layer import StepCounter

KIND: Any = discovery.load(discovery.sources()["cuda_graphs"])
WARM_UPS = 3


class Graph(torch.autograd.Function):
    """As torch's `Graphed`: tensors of fixed places, of which autograd sees other names."""

    @staticmethod
    def forward(ctx: Any, played: Played, *inputs: Tensor) -> Tensor:
        ctx.played = played
        return played.forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return (None, None, *ctx.played.backward(gradient))


class Played:
    """One recording of a module's passes."""

    def __init__(self, passes: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (self.input,) = inputs
        self.passes = passes
        self.weights = tuple(passes.parameters())
        self.learning = [weight.requires_grad for weight in self.weights]
        for _ in range(WARM_UPS):
            self.output = passes(self.input).detach()
        self.gradients = [torch.zeros_like(weight) for weight in self.weights]
        self.replays = 0

    def __call__(self, images: Tensor) -> Tensor:
        return Graph.apply(self, images, *self.weights)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape == self.input.shape
        assert images.data_ptr() != self.input.data_ptr(), "the batch itself would be overwritten by the next one"
        self.replays += 1
        self.input.copy_(images)
        with torch.enable_grad():
            self.live = self.passes(self.input)
        self.output.copy_(self.live.detach())
        return self.output.detach()

    def backward(self, gradient: Tensor) -> list[Tensor | None]:
        learning = [weight for weight, learns in zip(self.weights, self.learning, strict=True) if learns]
        found = iter(torch.autograd.grad(self.live, learning, gradient))
        for place, learns in zip(self.gradients, self.learning, strict=True):
            if learns:
                place.copy_(next(found))
        return [g.detach() if learns else None for g, learns in zip(self.gradients, self.learning, strict=True)]


class OnCard(KIND):
    """As if there were a card."""

    def incompatible_hardware(self, device: str) -> str | None:
        return None

    def _record(self, passes: nn.Module, inputs: tuple[Tensor, ...]) -> Played:
        self.played = [*getattr(self, "played", []), Played(passes, inputs)]
        return self.played[-1]


def on_card(**parameters: Any) -> Any:
    made: Any = OnCard(**parameters)
    made.name = "cuda_graphs"
    return made


def test_replayed_steps_train_as_plain_ones_bit_for_bit_and_the_last_smaller_batch_runs_plainly():
    """80 samples in steps of 32, 32 and 16: of each epoch two steps have the usual shape."""
    made = on_card(after=3)
    run, plain = make_run([made], data=digits(80), epochs=4), make_run(data=digits(80), epochs=4)
    run.train()
    plain.train()
    assert_same_state(state(run.model), state(plain.model))
    assert run.curve == plain.curve
    assert run.tally.passes() == plain.tally.passes()
    assert run.samples_sha256() == plain.samples_sha256()
    told = made.diagnostics()
    assert told["recordings"] == 1
    assert told["replayed_steps"] == made.played[0].replays == 8 - 3
    assert told["plain_steps"] == 12 - 5
    assert made.acted is True


def test_recording_leaves_running_statistics_and_the_models_own_stream_as_they_were():
    def dropping() -> nn.Module:
        return nn.Sequential(tiny_cnn(), nn.Dropout(0.3))

    made = on_card(after=1)
    run, plain = make_run([made], dropping), make_run([], dropping)
    run.train()
    plain.train()
    assert made.diagnostics()["recordings"] == 1
    assert_same_state(state(run.model), state(plain.model))


class Twice(Method):
    """Adds the gradient of a second pass over another half of the batch, and keeps the outputs of the first."""

    name = "twice"

    def gradients(self, run, batch, inner):
        first = inner(batch)
        kept = first.outputs.detach()
        before = kept.clone()
        run.backward(run.forward(batch).value)
        assert torch.equal(kept, before)
        return first


def test_a_second_pass_of_a_step_is_plain_so_that_gradients_add_up():
    made = on_card(after=1)
    run, plain = make_run([made, Twice()]), make_run([Twice()])
    run.train()
    plain.train()
    assert made.diagnostics()["replayed_steps"] == run.tally.steps - 1
    assert_same_state(state(run.model), state(plain.model))


class Freezing(Method):
    """Lets the first layer rest in the second epoch, and learn again in the third."""

    name = "freezing"

    def epoch(self, run, data, inner):
        run.model[0].requires_grad_(run.epoch_number != 2)
        inner(data)


def test_what_is_frozen_or_released_is_recorded_anew():
    made = on_card(after=1)
    run, plain = make_run([made, Freezing()], epochs=3), make_run([Freezing()], epochs=3)
    run.train()
    plain.train()
    assert made.diagnostics()["recordings"] == 3
    assert_same_state(state(run.model), state(plain.model))


def test_weights_that_lie_elsewhere_are_recorded_anew():
    made = on_card(after=1)
    run = make_run([made])
    run.train_epoch(1)
    run.model[0].weight.data = run.model[0].weight.data.clone()
    run.train_epoch(2)
    assert made.diagnostics()["recordings"] == 2


def test_probes_evaluation_and_passes_outside_of_a_step_are_not_replayed():
    made = on_card(after=1)
    run = make_run([made])
    run.train_epoch(1)
    replays = made.diagnostics()["replayed_steps"]
    batch = next(run.data.load([torch.arange(32)]))
    run.forward(batch, "frozen_stats")
    run.forward(batch, grad=False)
    run.forward(batch, "eval")
    run.gradients(batch)
    run.evaluate(digits(64, test=True))
    assert made.diagnostics()["replayed_steps"] == replays


def test_outputs_stay_what_they_were_when_the_graph_is_replayed():
    class Keeping(Method):
        name = "keeping"

        def setup(self, run):
            self.kept = []

        def gradients(self, run, batch, inner):
            given = inner(batch)
            self.kept.append((given.outputs.detach(), given.outputs.detach().clone()))
            return given

    keeping = Keeping()
    make_run([on_card(after=1), keeping]).train()
    assert all(torch.equal(output, then) for output, then in keeping.kept)


def test_a_counted_step_runs_plainly_so_that_the_count_is_plain_trainings():
    counted = []
    made = on_card(after=1)
    for methods in ([made], []):
        layer = StepCounter(4)  # of 8 steps
        run = make_run(methods, data=digits(128), counter=layer)
        run.train()
        counted.append(layer.result(run))
    assert counted[0].counted_flop == counted[1].counted_flop > 0
    assert counted[0].uncounted_calls == counted[1].uncounted_calls
    assert 0 < made.diagnostics()["replayed_steps"] <= run.tally.steps - 4


def test_finish_leaves_a_plain_model_behind():
    run = make_run([on_card(after=1)])
    run.train()
    run.finish()
    assert vars(run.model).keys() == vars(tiny_cnn()).keys()
    assert run.model.forward.__func__ is nn.Sequential.forward


def test_inputs_that_are_no_tensors_leave_it_inert():
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, images: Tensor, scale: float) -> Tensor:
            return self.head(images.flatten(1)) * scale

    class Telling(type(make_run().task)):
        def forward(self, run, batch):
            outputs = run.model(batch.inputs, 1.0)
            each = self.losses(run, outputs, batch)
            return type(make_run().forward(batch))(each.mean(), each, outputs)

    made = on_card(after=1)
    make_run([made], Told, task=Telling()).train()
    assert made.acted is False


# ── what it refuses ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_card_a_run_is_refused_in_words_and_a_count_trains_plainly():
    made = discovery.build(KIND, "cuda_graphs", {})
    assert "card" in made.incompatible_hardware("cpu")
    assert made.incompatible_hardware("cuda") is None
    run, plain = make_run([made]), make_run()
    run.train()
    plain.train()
    assert made.acted is None
    assert_same_state(state(run.model), state(plain.model))


def test_micro_batches_and_several_devices_are_refused_in_words():
    made = discovery.build(KIND, "cuda_graphs", {})
    assert "accumulate = 1" in made.incompatible_recipe({"accumulate": 2})
    assert made.incompatible_recipe({"accumulate": 1, "clip": 1.0, "precision": "fp16"}) is None
    assert "gradients" in made.incompatible_devices(2)


class Within(Method):
    name = "within"
    swaps = frozenset({"conv"})


def test_a_method_with_layers_of_its_own_is_refused_in_words():
    with pytest.raises(UsageError, match="'within' has layers of its own"):
        make_run([Within(), discovery.build(KIND, "cuda_graphs", {})])


class Hooked(Method):
    name = "hooked"

    def setup(self, run):
        self.layer = run.model[-1] if run.seed % 2 else run.model
        self.layer.register_forward_hook(lambda module, inputs, out: 2 * out)


def test_a_hook_on_a_layer_is_refused_in_words_and_one_on_the_model_runs_around_the_replay():
    with pytest.raises(ValueError, match="a hook on '9' acts within a pass"):
        make_run([Hooked(), on_card(after=1)], seed=7).train()
    run, plain = make_run([Hooked(), on_card(after=1)], seed=8), make_run([Hooked()], seed=8)
    run.train()
    plain.train()
    assert run.methods[1].diagnostics()["replayed_steps"] > 0
    assert_same_state(state(run.model), state(plain.model))


def test_a_compiled_model_is_refused_in_words():
    run = make_run([on_card()])
    run.model.compile(backend="eager")
    with pytest.raises(ValueError, match="CUDA graphs of its own"):
        run.train()


@pytest.mark.parametrize("names", [["compile", "cuda_graphs"], ["cuda_graphs", "compile"]])
def test_beside_compile_it_is_refused_before_a_step(names: list[str]):
    made = {"compile": method_named("compile", backend="eager"), "cuda_graphs": on_card()}
    with pytest.raises(UsageError, match="CUDA graphs of its own"):
        make_run([made[name] for name in names])


def test_what_cannot_be_recorded_is_said_in_words(monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    made = discovery.build(KIND, "cuda_graphs", {"after": 1})
    made.incompatible_hardware = lambda device: None
    with pytest.raises(ValueError, match="cannot be recorded as a CUDA graph: operation not permitted when stream is"):
        make_run([made]).train()


def test_torch_is_asked_to_record_clones_of_the_inputs_and_all_weights(monkeypatch):
    asked = []

    def record(passes: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Any:
        asked.append((list(passes.parameters()), inputs, options))
        return passes

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    made = discovery.build(KIND, "cuda_graphs", {"after": 1})
    made.incompatible_hardware = lambda device: None
    run = make_run([made])
    run.train()
    ((weights, (images,), options),) = asked
    assert [id(weight) for weight in weights] == [id(weight) for weight in run.model.parameters()]
    assert images.shape == (32, 1, 8, 8)
    assert images.device == CPU
    assert options == {"allow_unused_input": True}


@pytest.mark.parametrize("after", [0, -1])
def test_a_number_of_steps_that_means_nothing_is_refused(after):
    with pytest.raises((UsageError, ValueError)):
        KIND(after=after)
