"""gradient_checkpointing: plain training's weights and running statistics, with fewer tensors kept, a forward more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from support import CPU, StackedTransformer, TinyTransformer, assert_same_state, digits, make_run, state, tiny_cnn
from test_method_members import method_named
from torch import Tensor, nn

from energybench.algorithms.checkpoint_pieces import pieces_of
from energybench.common.errors import UsageError
from energybench.flops.work import FORWARD, RECOMPUTE, Work
from energybench.runner.tracing import trace_task
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

BATCH = 32


class Residual(nn.Module):
    """x + f(x), with BatchNorm and dropout: what a second pass could move, and what it could draw otherwise."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.drop(self.act(self.norm(self.first(x)))))


class Residuals(nn.Module):
    def __init__(self, blocks: int = 3, block: Callable[[], nn.Module] = Residual) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


each_model = pytest.mark.parametrize("model", [tiny_cnn, StackedTransformer, Residuals])


def checkpointing(**parameters: Any) -> Any:
    return method_named("gradient_checkpointing", **parameters)


def trained(methods: list[Method], model: Any, **settings: Any) -> Any:
    run = make_run(methods, model, **settings)
    run.train()
    return run


# ── the gradient ──────────────────────────────────────────────────────────────────────────────────────────────────────


@each_model
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "precision": "bf16"}], ids=["fp32", "bf16 in parts"])
@pytest.mark.parametrize("keep", [0, 1])
def test_weights_and_running_statistics_are_plain_trainings_to_the_bit(model, settings, keep):
    """Statistics that moved twice, another dropout or another batch's mean would show in either."""
    method = checkpointing(keep=keep)
    assert_same_state(state(trained([method], model, **settings).model), state(trained([], model, **settings).model))
    assert method.acted is True


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_normalisation_counts_every_step_once(momentum):
    def model() -> nn.Module:
        made = tiny_cnn()
        for norm in (made[1], made[5]):
            norm.momentum = momentum  # None: the mean of all batches
        return made

    run, plain = trained([checkpointing(keep=0)], model), trained([], model)
    assert run.model[1].num_batches_tracked == run.model[5].num_batches_tracked == run.tally.updates == 6
    assert_same_state(state(run.model), state(plain.model))


@pytest.mark.parametrize("noise", ["dropout", "gni"])
@pytest.mark.parametrize("outside", [True, False])
def test_what_other_methods_draw_inside_a_piece_is_drawn_again(noise, outside):
    """From generators of their own, which torch does not put back."""
    stacks = [[checkpointing(keep=0), method_named(noise)], [method_named(noise)]]
    if outside:
        stacks[0].reverse()
    runs = [trained(stack, Residuals) for stack in stacks]
    assert_same_state(state(runs[0].model), state(runs[1].model))


@pytest.mark.parametrize("outside", [True, False])
def test_what_another_method_puts_around_a_pass_is_around_the_second_too(outside):
    """One that lets running statistics normalise: by the batch's own the gradient would be another."""
    modes = set()

    class Rests(Method):
        name = "rests"

        @contextmanager
        def forward_context(self, run, mode):
            modes.add(mode)
            norms = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d)]
            for norm in norms:
                norm.training = False
            try:
                yield
            finally:
                for norm in norms:
                    norm.training = True

    stacks = [[checkpointing(keep=0), Rests()], [Rests()]]
    if outside:
        stacks[0].reverse()
    runs = [trained(stack, tiny_cnn) for stack in stacks]
    assert modes == {"train"}
    assert_same_state(state(runs[0].model), state(runs[1].model))


def test_a_pass_in_another_mode_between_forward_and_backward_changes_nothing():
    class Looks(Method):
        name = "looks"
        replaces = frozenset({"gradients"})

        def gradients(self, run, batch, inner):
            forward = run.forward(batch)
            run.forward(batch, "frozen_stats", grad=False)
            run.forward(batch, "eval", grad=False)
            run.backward(forward.value)
            run.add_loss(forward.value)
            return forward

    runs = [trained([Looks(), *methods], Residuals) for methods in ([checkpointing(keep=0)], [])]
    assert_same_state(state(runs[0].model), state(runs[1].model))
    assert runs[0].model.training is False
    assert all(not norm.training for norm in runs[0].model.modules() if isinstance(norm, nn.BatchNorm2d))


def test_code_that_is_compiled_breaks_around_a_piece_and_computes_the_same():
    class Compiled(Method):
        name = "compiled"

        def setup(self, run):
            run.model.compile(backend="eager")

        def finish(self, run):
            run.model._compiled_call_impl = None

    run = trained([Compiled(), checkpointing(keep=0)], StackedTransformer, epochs=1)
    plain = trained([], StackedTransformer, epochs=1)
    for name, value in state(run.model).items():
        torch.testing.assert_close(value, state(plain.model)[name], rtol=1e-4, atol=1e-6)
    assert run.methods[1].acted is True


# ── what it keeps and what it costs ───────────────────────────────────────────────────────────────────────────────────


@contextmanager
def counting_kept(kept: list[int]):
    def add(tensor: Tensor) -> Tensor:
        kept.append(tensor.nelement())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(add, lambda tensor: tensor):
        yield


def test_of_a_chain_only_the_inputs_of_pieces_are_kept():
    """Plain training keeps of each tanh its input's image: 9 layers of w numbers; of 3 pieces 3 inputs are left."""
    width = 64

    def chain() -> nn.Module:
        return nn.Sequential(*(nn.Tanh() for _ in range(9)))

    for methods, tensors in (([checkpointing(segments=3, keep=0)], 3), ([checkpointing(segments=3)], 2 + 3), ([], 9)):
        run = make_run([], chain)
        module = run.model
        for method in methods:
            method.setup(run)
        kept: list[int] = []
        hidden = torch.randn(BATCH, width, requires_grad=True)
        with counting_kept(kept):
            module(hidden)
        assert [size for size in kept if size] == [BATCH * width] * tensors


@pytest.mark.parametrize(
    ("model", "keep"), [(tiny_cnn, 0), (tiny_cnn, 1), (StackedTransformer, 0), (Residuals, 0), (Residuals, 1)]
)
def test_its_estimate_is_what_is_counted(model, keep):
    """A product that ends a piece is not multiplied again, which the estimate knows from a trace."""
    counts = []
    for methods in ([method := checkpointing(keep=keep)], []):
        layer = StepCounter(10**9)
        run = make_run(methods, model, digits(80), counter=layer)
        run.train()
        counts.append(layer.result(run).counted_flop)
    estimated = method.estimate(work := plain_work(model, run))
    assert work.flop == counts[1]
    assert estimated.flop == pytest.approx(counts[0], rel=1e-9)
    assert estimated.flop > work.flop
    forward = work.by_phase()[FORWARD]
    assert estimated.by_phase()[RECOMPUTE] == estimated.flop - work.flop <= forward
    assert estimated.moved_b(BATCH) > work.moved_b(BATCH)


def plain_work(model: Any, run: Any, prepare: Callable[[nn.Module], Any] = lambda model: None, epochs: int = 2) -> Work:
    batch = next(iter(run.data.load([torch.arange(2)])))
    prepare(made := model())
    lines = trace_task(Classification(), made, Recipe(epochs=epochs, batch=BATCH), batch, CPU).lines
    return Work(lines, epochs=epochs, samples=run.data.samples(BATCH), batch=BATCH)


def test_where_a_whole_piece_runs_again_the_cost_is_the_closed_form():
    """Convolutions of 3×3 on 8×8 places: 2·9·6·6·64 each; the one that ends a block is left out, and the stem and the
    head are in none."""
    run = trained([method := checkpointing(keep=0)], Residuals)
    estimated = method.estimate(plain_work(Residuals, run))
    once = 2 * 9 * 6 * 6 * 64
    assert estimated.by_phase()[RECOMPUTE] == 3 * once * 2 * 96
    assert method.diagnostics()["samples_recomputed"] == [2 * 96] * 3


@pytest.mark.parametrize("outside", [True, False])
def test_a_block_that_another_method_leaves_out_is_not_made_again(outside):
    """It gives such blocks a class of their own, before or after."""

    def stack(*methods: Method) -> list[Method]:
        layers = [*methods, method_named("stochastic_depth", keep_last=0.3)]
        return layers[::-1] if outside else layers

    counter = StepCounter(10**9)
    run = make_run(stack(method := checkpointing(keep=0)), Residuals, counter=counter, epochs=4)
    run.train()
    plain = trained(stack(), Residuals, epochs=4)
    assert_same_state(state(run.model), state(plain.model))
    assert all(0 < samples < 4 * 96 for samples in method.diagnostics()["samples_recomputed"][1:])
    work = plain_work(Residuals, run, epochs=4)
    for layer in reversed(run.methods):
        work = layer.estimate(work)
    assert work.by_phase()[RECOMPUTE] > 0
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-9)


def test_a_frozen_front_needs_no_gradient_and_is_not_made_again():
    class Front(Method):
        name = "front"

        def setup(self, run):
            freeze(run.model)

    def freeze(model: nn.Module) -> None:
        model.stem.requires_grad_(False)
        model.blocks[0].requires_grad_(False)

    counts = []
    for methods in ([method := checkpointing(keep=0)], []):
        layer = StepCounter(10**9)
        run = make_run([*methods, Front()], Residuals, counter=layer)
        run.train()
        counts.append(layer.result(run).counted_flop)
    assert method.diagnostics()["samples_recomputed"] == [0, 2 * 96, 2 * 96]
    work = plain_work(Residuals, run, freeze)
    assert work.flop == counts[1]
    assert method.estimate(work).flop == pytest.approx(counts[0], rel=1e-9)


def test_what_a_layer_further_in_has_saved_forward_is_saved_again():
    run = trained([method := checkpointing(keep=0)], Residuals)
    work = plain_work(Residuals, run)
    half = method.estimate(work.change(lambda line: 0.5 if line.phase == FORWARD else 1.0))
    assert half.by_phase()[RECOMPUTE] == method.estimate(work).by_phase()[RECOMPUTE] / 2


def test_a_pass_without_a_graph_is_nobodys_business():
    run = make_run([method := checkpointing()], Residuals)
    run.evaluate(digits(32, test=True))
    run.forward(next(run.data.load([torch.arange(8)])), "eval", grad=False)
    assert method.acted is False
    assert method.estimate(work := plain_work(Residuals, run)) == work
    assert check_stack([method, method_named("mezo")], Classification())  # which has no backward pass


# ── the pieces ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_blocks_that_come_twice_are_the_pieces_and_the_finer_of_two_that_hold_as_much():
    def stage() -> nn.Module:
        return nn.Sequential(Residual(), Residual())

    found = pieces_of(Residuals(2, stage))
    assert found.owner is None
    assert found.named() == ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1"]
    assert pieces_of(StackedTransformer()).named() == ["layers.0", "layers.1", "layers.2"]


@pytest.mark.parametrize(
    ("layers", "segments", "sizes"), [(9, None, [3] * 3), (10, None, [2, 3, 2, 3]), (4, 9, [1] * 4)]
)
def test_a_sequential_is_cut_into_the_root_of_its_length(layers, segments, sizes):
    found = pieces_of(nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers))), segments)
    assert found.owner == ""
    assert [len(part) for part in found.parts] == sizes
    assert [name for part in found.parts for name in part] == [str(number) for number in range(layers)]
    assert found.named()[0] == ("0" if sizes[0] == 1 else f"0 … {sizes[0] - 1}")


def test_no_piece_begins_with_a_layer_that_overwrites_what_it_is_given():
    layers = [nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2)]
    found = pieces_of(nn.Sequential(*layers), 5)
    assert found.parts == (("0", "1"), ("2", "3"), ("4",))


def test_its_diagnostics_name_the_pieces():
    make_run([method := checkpointing()], Residuals)
    assert method.diagnostics() == {
        "recomputed": ["blocks.0", "blocks.1"],
        "kept": ["blocks.2"],
        "of_sequential": None,
        "samples_recomputed": [0, 0],
    }
    make_run([method := checkpointing(segments=3)], tiny_cnn)
    assert method.diagnostics()["recomputed"] == ["0 … 2", "3 … 5"]
    assert method.diagnostics()["kept"] == ["6 … 9"]


def test_a_model_without_pieces_is_refused_in_words():
    for model, parameters, words in (
        (TinyTransformer, {}, "no block of layers comes twice"),
        (partial(Residuals, 2), {"keep": 2}, "keep = 2 leaves none of them"),
    ):
        with pytest.raises(UsageError, match=words):
            make_run([checkpointing(**parameters)], model)
    for wrong in ({"segments": 1}, {"keep": -1}):
        with pytest.raises(UsageError):
            checkpointing(**wrong)


def test_a_layer_whose_every_pass_moves_its_own_buffers_ends_the_run_in_words():
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 1))
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.layer(x))

    run = make_run([checkpointing()], lambda: Residuals(3, Spectral))
    with pytest.raises(ValueError, match="changes in each forward pass, and would change twice"):
        run.train()


def test_finish_gives_every_module_the_forward_that_it_had_before():
    """Also where a layer further in has put one of its own there, which stays in force meanwhile."""

    class Doubles(Method):
        name = "doubles"

        def setup(self, run):
            inner = run.model.blocks[0].forward
            run.model.blocks[0].forward = self.forward = lambda x: 2 * inner(x)

    runs = [make_run([*methods, Doubles()], Residuals) for methods in ([checkpointing()], [])]
    for run in runs:
        run.train()
    assert_same_state(state(runs[0].model), state(runs[1].model))
    assert all("forward" in vars(block) for block in runs[0].model.blocks[:2])
    runs[0].finish()
    assert "forward" not in vars(runs[0].model.blocks[1])
    assert vars(runs[0].model.blocks[0])["forward"] is runs[0].methods[1].forward
