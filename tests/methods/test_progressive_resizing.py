"""progressive_resizing: sizes over training, images and what belongs to them, and FLOPs as positions say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, TinyTransformer, assert_same_state, digits, make_run, state, vectors
from test_method_members import method_named
from torch import nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_run
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.images import Images
from energybench.train.method import Method
from energybench.trial.counting_layer import StepCounter


def resizing(**parameters):
    return method_named("progressive_resizing", **parameters)


class Watch(Method):
    """Keeps the batches of its place in the stack."""

    name = "watch"

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def step(self, run, batch, inner):
        self.seen.append(batch)
        inner(batch)


def test_the_side_grows_on_a_line_between_delay_and_until():
    made = resizing(start=0.5, delay=0.25, until=0.75)
    assert [made.scale(epoch, 5) for epoch in range(1, 6)] == [0.5, 0.5, 0.75, 1.0, 1.0]
    assert made.scale(1, 1) == 1.0
    jump = resizing(start=0.5, delay=1.0, until=0.5)
    assert [jump.scale(epoch, 5) for epoch in range(1, 6)] == [0.5, 0.5, 1.0, 1.0, 1.0]


@given(
    start=st.floats(0.1, 1),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    epochs=st.integers(2, 12),
    whole=st.integers(1, 300),
    multiple=st.integers(1, 40),
)
def test_images_only_grow_are_whole_in_the_last_epoch_and_have_sides_of_the_multiple(
    start, ends, epochs, whole, multiple
):
    made = resizing(start=start, delay=ends[0], until=ends[1], multiple=multiple)
    sides = [made.side(whole, made.scale(epoch, epochs)) for epoch in range(1, epochs + 1)]
    assert sides == sorted(sides)
    assert sides[-1] == whole
    assert all(side == whole or side % multiple == 0 for side in sides)
    assert min(sides) >= 1


def test_whole_images_from_the_start_are_plain_training_bit_for_bit():
    run, plain = make_run([resizing(start=1.0)]), make_run()
    run.train()
    plain.train()
    assert_same_state(state(run.model), state(plain.model))


def triangle(whole: int, small: int) -> torch.Tensor:
    """The (small, whole) weights of a triangle as wide as two new pixels around each new pixel's centre."""
    ratio = whole / small
    centres = (torch.arange(small) + 0.5) * ratio
    weights = (1 - (torch.arange(whole) + 0.5 - centres[:, None]).abs() / ratio).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def test_the_model_sees_small_images_and_a_layer_outside_sees_them_whole():
    outside, inside = Watch(), Watch()
    run = make_run([outside, resizing(), inside], epochs=3, batch=96)
    run.train()
    assert [len(batch.inputs[0, 0]) for batch in outside.seen] == [8, 8, 8]
    assert [len(batch.inputs[0, 0]) for batch in inside.seen] == [4, 4, 8]
    weights = triangle(8, 4)
    for whole, small in zip(outside.seen[:2], inside.seen[:2], strict=True):
        torch.testing.assert_close(small.inputs, weights @ whole.inputs @ weights.T, rtol=1e-4, atol=1e-5)
        assert torch.equal(small.targets, whole.targets)
    assert outside.seen[2] is inside.seen[2]


def small_batch(inputs, targets, facts, *, also=None, **parameters):
    """A batch of images of 8 × 8 as the first epoch's step makes it, with other data beside it."""
    beside = {} if also is None else {"other": also}
    parts = {"other": Data(Resident(also.inputs, also.targets, CPU))} if also else {}
    run = make_run(data=Data(Resident(inputs, targets, CPU), facts=facts, parts=parts))
    batch = Batch(inputs, targets, torch.arange(len(inputs)), also=beside)
    return resizing(**parameters)._resized(run, batch, 0.5)


def test_masks_and_boxes_go_with_their_images():
    images = torch.randn(2, 3, 8, 8)
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[:, :, 4:] = 1  # the right half
    small = small_batch(images, mask, Facts("mask", 2)).targets
    assert small.shape == (2, 4, 4)
    assert torch.equal(small, torch.tensor([0, 0, 1, 1]).expand(2, 4, 4))
    boxes = {"boxes": torch.tensor([[[0.0, 2, 8, 6]]] * 2), "labels": torch.zeros(2, 1, dtype=torch.long)}
    found = small_batch(images, boxes, Facts("boxes", 2)).targets
    assert found["boxes"].tolist() == [[[0, 1, 4, 3]]] * 2
    assert torch.equal(found["labels"], boxes["labels"])


def test_images_beside_the_batch_and_in_trees_are_resized_and_numbers_stay():
    images, numbers = torch.randn(2, 1, 8, 8), torch.randn(2, 5)
    other = Batch(images, torch.zeros(2), torch.arange(2))
    batch = small_batch({"image": images, "numbers": numbers}, torch.zeros(2), Facts(), also=other)
    assert batch.inputs["image"].shape == batch.also["other"].inputs.shape == (2, 1, 4, 4)
    assert batch.inputs["numbers"] is numbers


def test_narrow_images_keep_their_precision():
    batch = small_batch(torch.ones(2, 1, 8, 8, dtype=torch.bfloat16), torch.zeros(2), Facts())
    assert batch.inputs.dtype == torch.bfloat16
    assert torch.equal(batch.inputs, torch.ones(2, 1, 4, 4, dtype=torch.bfloat16))


def one_convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_estimate_is_the_sum_over_sizes_in_closed_form_and_what_is_counted(accumulate):
    """80 samples in steps of 32, 32 and 16; sides of 4, 4 and 8; a convolution costs 2·9·4 FLOPs a position."""
    counter, method = StepCounter(10**9), resizing()
    settings = {"epochs": 3, "accumulate": accumulate}
    run = make_run([method], one_convolution, digits(80), counter=counter, **settings)
    run.train()
    plain = make_run([], one_convolution, digits(80), **settings)
    work = Work(trace_run(plain, CPU).lines, 3, 80, 32, accumulate)
    linear = 3 * 80 * 3 * (2 * 4 * 10)  # forward, dW and dX
    assert work.flop == 3 * 80 * 2 * 72 * 64 + linear  # forward and dW: no gradient of images
    estimated = method.estimate(work)
    assert estimated.flop == pytest.approx(80 * 2 * 72 * (16 + 16 + 64) + linear)
    assert estimated.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-9)
    assert estimated.moved_b(32) < work.moved_b(32)
    assert method.gap_because is None
    assert method.diagnostics() == {"samples_by_size": {"4x4": 160, "whole": 80}}


def test_a_model_that_cannot_be_traced_is_estimated_by_its_pixels_and_says_so(monkeypatch):
    method = resizing()
    run = make_run([method], one_convolution, epochs=3)
    run.train()
    monkeypatch.setattr(method._twin, "lines", lambda *args, **kwargs: None)
    work = Work(trace_run(make_run([], one_convolution, epochs=3), CPU).lines, 3, 96, 32)
    assert method.estimate(work).flop == pytest.approx(work.flop * (0.25 + 0.25 + 1) / 3)
    assert "traced" in method.gap_because


def refusal(method: Method, *args, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        make_run([method], *args, **settings)
    (problem,) = caught.value.problems
    assert problem.code == "E327"
    return problem.message


def test_what_it_cannot_train_is_told_in_words():
    assert "4 × 4 pixels" in refusal(resizing(), TinyTransformer)  # a table of positions
    flat = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    assert "4 × 4 pixels" in refusal(resizing(), flat)
    assert "no images" in refusal(resizing(), lambda: nn.Linear(6, 3), vectors(dtype=torch.float32))
    assert "one epoch" in refusal(resizing(), epochs=1)
    assert "stay as they are" in refusal(resizing(multiple=8))


def test_targets_with_a_value_for_each_pixel_are_refused_unless_they_are_masks():
    images, masks = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, 8, 8, dtype=torch.long)

    def why(targets, facts):
        prepare = Images([0.3], [0.4], (), CPU, facts=facts)
        return resizing().incompatible_run(make_run(data=Data(Resident(images, targets, CPU), prepare, facts=facts)))

    assert "no masks" in (why(masks.float(), Facts("value")) or "")
    assert why(masks, Facts("mask", 10)) is None


def test_a_model_is_tried_without_a_trace_in_its_state_or_in_the_stream():
    run = make_run()
    before = state(run.model)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert resizing().incompatible_run(run) is None
    assert torch.equal(torch.rand(2), expected)
    assert_same_state(state(run.model), before)


@pytest.mark.parametrize(
    "parameters", [{"start": 0.0}, {"start": 1.5}, {"delay": 1.1}, {"until": 1.2}, {"delay": -0.1}, {"multiple": 0}]
)
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(UsageError):
        resizing(**parameters)


def test_the_same_batch_keeps_its_index_and_weights():
    batch = Batch(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([5, 3]), torch.tensor([1.0, 2.0]))
    run = make_run()
    small = resizing()._resized(run, batch, 0.5)
    assert small.index is batch.index
    assert small.weights is batch.weights


class NeedsNumbers(nn.Module):
    """Cannot run without numbers; takes sides of some multiple of pixels."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple, self.inside = multiple, one_convolution()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] % self.multiple or images.isnan().any().item():
            raise ValueError(f"sides are multiples of {self.multiple}")
        return self.inside(images)


def test_a_model_that_needs_numbers_is_tried_on_a_copy():
    assert "4 × 4 pixels (ValueError: sides are multiples of 8)" in refusal(resizing(), lambda: NeedsNumbers(8))
    run = make_run([resizing()], lambda: NeedsNumbers(4))
    run.train()
    assert run.methods[0].acted
