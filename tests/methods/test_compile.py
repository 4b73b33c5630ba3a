"""compile: plain training by other kernels; what compiling takes lies in `setup`, and the model is plain afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_same_state, digits, make_run, state, tiny_cnn
from torch import nn

from energybench.common.errors import UsageError
from energybench.records.scratch_folder import scratch
from energybench.train import discovery
from energybench.train.method import Method
from energybench.train.trees import split
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["compile"])
CODE: dict[str, Any] = KIND.setup.__globals__
PROCESS = (
    "import sys; from energybench.common.hosts import this_process; sys.stdout.buffer.write(this_process().to_json())"
)
STEPS = [32, 32, 16]  # of an epoch over 80 samples


@pytest.fixture(autouse=True)
def with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusals that are tested are those of this machine's tools as the test says they are."""
    monkeypatch.delenv("CXX", raising=False)


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "compile", {"backend": "eager"} | parameters)


def test_the_weights_are_plain_trainings_bit_for_bit_where_only_the_tracing_is_left():
    made = method()
    run, plain = make_run([made], data=digits(80)), make_run(data=digits(80))
    run.train()
    plain.train()
    assert_same_state(state(run.model), state(plain.model))
    assert run.curve == plain.curve
    assert made.acted is True


def test_the_graph_of_the_automatic_gradient_gives_the_gradient_of_plain_training():
    run, plain = make_run([method(backend="aot_eager")]), make_run()
    for one in (run, plain):
        one.gradients(next(one.data.load([torch.arange(32)])))
    for compiled, ours in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(compiled.grad, ours.grad, rtol=1e-5, atol=1e-7)


def test_everything_is_compiled_in_setup_once_for_each_size_that_an_epoch_has():
    """torch's own containers too, such as this Sequential, which `model.compile()` leaves as they are."""
    made = method(dynamic="never")
    run = make_run([made], data=digits(80), epochs=3)
    told = made.diagnostics()
    assert told["graphs_in_setup"] == len(set(STEPS))
    assert told["setup_compile_s"] > 0
    run.train()
    assert made.diagnostics() == told | {"graphs_later": 0, "later_compile_s": pytest.approx(0, abs=1e-9)}
    assert told["graph_breaks"] == 0


def test_micro_batches_are_what_is_compiled():
    made = method(dynamic="never")
    run = make_run([made], data=digits(80), accumulate=3)
    pieces = {len(piece) for size in STEPS for piece in split(next(run.data.load([torch.arange(size)])), 3)}
    assert made.diagnostics()["graphs_in_setup"] == len(pieces)
    run.train()
    assert made.diagnostics()["graphs_later"] == 0


class Shorter(Method):
    """Trains on three samples of each batch."""

    name = "shorter"

    def step(self, run, batch, inner):
        inner(split(batch, len(batch) // 3)[0])


def test_what_is_compiled_later_lies_in_the_window_and_is_told_apart():
    made = method(dynamic="never")
    run = make_run([made, Shorter()])
    before = made.diagnostics()
    run.train()
    told = made.diagnostics()
    assert told["graphs_later"] == 1
    assert told["later_compile_s"] > 0
    assert told["setup_compile_s"] == before["setup_compile_s"]


class Breaks(nn.Module):
    """Looks at a number on its way, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.flatten(1))
        if hidden.sum().item() > 1e9:
            hidden = hidden / 2
        return self.last(hidden)


def test_graph_breaks_are_counted():
    made = method()
    make_run([made], Breaks)
    told = made.diagnostics()
    assert told["graph_breaks"] >= 1
    assert told["graphs_in_setup"] >= 2  # before the look and behind it


def test_setup_leaves_nothing_behind():
    dropping = lambda: nn.Sequential(tiny_cnn(), nn.Dropout(0.3))  # noqa: E731
    plain = make_run([], dropping)
    random = torch.get_rng_state()
    run = make_run([method()], dropping)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_state(state(run.model), state(plain.model))
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert run.tally.passes() == plain.tally.passes()
    run.train_epoch(1)
    plain.train_epoch(1)
    assert run.samples_sha256() == plain.samples_sha256()
    assert run.tally.passes() == plain.tally.passes()


def test_evaluation_compiles_nothing_and_training_goes_on_compiled():
    made, test = method(dynamic="never"), digits(48, test=True)
    run, plain = make_run([made]), make_run()
    assert run.evaluate(test) == plain.evaluate(test)
    assert made.diagnostics()["graphs_later"] == 0
    assert run.model._compiled_call_impl is not None


class Doubled(Method):
    """Doubles what the last layer gives, by a hook that it adds when it is set up."""

    name = "doubled"

    def setup(self, run):
        self.hook = run.model[-1].register_forward_hook(lambda module, inputs, out: 2 * out)

    def finish(self, run):
        self.hook.remove()


def test_a_hook_that_is_added_after_it_has_compiled_is_not_left_out():
    made = method()
    runs = [make_run([Doubled(), made], epochs=1), make_run([Doubled()], epochs=1), make_run(epochs=1)]
    for run in runs:
        run.train()
    assert_same_state(state(runs[0].model), state(runs[1].model))
    assert not torch.equal(runs[0].model[-1].weight, runs[2].model[-1].weight)
    assert made.diagnostics()["graphs_later"] >= 1


def test_finish_takes_back_all_that_was_set():
    guards = torch._dynamo.config.skip_nnmodule_hook_guards
    run = make_run([method()])
    run.finish()
    assert vars(run.model).keys() == vars(tiny_cnn()).keys()
    assert torch._dynamo.config.skip_nnmodule_hook_guards is guards


class ByHand(Classification):
    """Goes round the model as a whole, which is what is compiled."""

    def forward(self, run, batch):
        return super().forward(WithModel(run, lambda inputs: nn.Sequential.forward(run.model, inputs)), batch)


class WithModel:
    def __init__(self, run: Any, model: Any) -> None:
        self._run, self.model = run, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


def test_a_task_that_does_not_call_the_model_leaves_it_inert():
    made = method()
    make_run([made], task=ByHand(), epochs=1).train()
    assert made.acted is False


def test_the_counter_sees_as_many_operations_as_without():
    counted = []
    for methods in ([method(backend="aot_eager")], []):
        layer = StepCounter(2)  # of 8 steps: the others run compiled
        run = make_run(methods, data=digits(128), counter=layer)
        run.train()
        counted.append(layer.result(run).counted_flop)
    assert counted[0] == counted[1] > 0


# ── what it refuses ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_compiler_a_run_is_refused_in_words_and_a_count_trains_plainly(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    made = method(backend="inductor")
    reason = made.incompatible_hardware("cpu")
    assert "'g++'" in reason
    assert "CXX" in reason
    run, plain = make_run([made]), make_run()
    run.train()
    plain.train()
    assert_same_state(state(run.model), state(plain.model))
    assert made.acted is None
    assert made.diagnostics() == {"compiled": False}
    run.finish()


def test_the_compiler_that_cxx_names_is_the_one_that_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "my-cxx").touch(mode=0o755)
    monkeypatch.setenv("CXX", "my-cxx -O1")
    assert method(backend="inductor").incompatible_hardware("cpu") is None
    assert method().incompatible_hardware("cuda") is None  # eager: nothing is generated


def test_modes_are_the_inductors():
    with pytest.raises((UsageError, ValueError), match="mode"):
        method(mode="max-autotune")


class Rounds(Classification):
    replaces = frozenset({"epoch"})
    enters = frozenset({"batches", "step", "gradients", "update"})

    def epoch(self, run, data, inner):
        for batch in run.batches(data):
            run.step(batch)


def test_a_task_of_its_own_epochs_is_refused_in_words():
    with pytest.raises(UsageError, match="makes its own epochs"):
        make_run([method()], task=Rounds())


def test_cuda_graphs_of_micro_batches_are_refused_on_a_card_alone():
    run: Any = make_run(accumulate=2)
    made = method(backend="inductor", mode="reduce-overhead")
    assert made.incompatible_run(run) is None
    run.device = torch.device("cuda")
    assert "overwrites" in made.incompatible_run(run)
    assert method(backend="inductor").incompatible_run(run) is None


# ── where generated code lies ─────────────────────────────────────────────────────────────────────────────────────────


def test_each_run_has_an_empty_folder_for_generated_code_that_is_removed(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somebody's")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    folders = []
    for _ in range(2):
        with CODE["ExitStack"]() as undo:
            CODE["_use_own_caches"](undo)
            from torch._inductor.runtime.cache_dir_utils import cache_dir

            folders.append(Path(cache_dir()))
            assert list(folders[-1].iterdir()) == []
            assert Path(os.environ["TRITON_CACHE_DIR"]).parent == folders[-1].parent
            (folders[-1] / "kernel").touch()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "somebody's"
    assert "TRITON_CACHE_DIR" not in os.environ
    assert len(set(folders)) == 2
    assert not any(folder.parent.exists() for folder in folders)


def test_a_killed_process_s_folder_is_removed_by_the_next_run_and_a_living_one_s_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = CODE["_own_folder"].__wrapped__()
    with scratch():
        assert Path(own.name).exists()
        made = json.loads((Path(own.name) / "alive").read_bytes())
    over = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, check=True).stdout
    assert json.loads(over).keys() == made.keys()
    (Path(own.name) / "alive").write_bytes(over)
    with scratch():
        assert not Path(own.name).exists()


@pytest.mark.slow  # g++ takes its time over each kernel
def test_generated_kernels_train_as_plain_training_does():
    made = method(backend="inductor")
    if made.incompatible_hardware("cpu"):
        pytest.skip("there is no g++, which torch compiles with")
    run, plain = make_run([made]), make_run()
    run.train()
    plain.train()
    for name, value in state(run.model).items():
        torch.testing.assert_close(value, state(plain.model)[name], rtol=1e-3, atol=1e-5)
    told = made.diagnostics()
    assert told["graphs_in_setup"] == 1
    assert told["graphs_later"] == 0
    assert told["setup_compile_s"] > told["later_compile_s"] == 0
    run.finish()
