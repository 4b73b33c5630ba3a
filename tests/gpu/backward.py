"""Part 3. The backward of ssProp's layers and of layers half at rest, against dense ones, on the shapes of tests/perf.

float32 and bf16 by autocast, planes and channels_last, each in turns with its own dense layer. Then the two constants
of ssProp's `refuse` that are of cards: what they cost as they stand, and which would cost the least.
"""

from __future__ import annotations

import copy
import statistics
import sys
from typing import Any

import torch
from gpu.card import Card, Stopwatch, in_turns, ratio
from gpu.refuse_fit import Fitted, Timed, best, under
from gpu.results import Results
from perf.test_frozen_backward import BATCH as FROZEN_BATCH
from perf.test_frozen_backward import LAYERS as FROZEN_SHAPES
from perf.test_sparse_backward import DROP, LAYERS, NEAR
from torch import Tensor, nn

from energybench.algorithms.channel_sparse import channels_kept
from energybench.algorithms.frozen_layers import FROZEN
from energybench.algorithms.sparse_layers import SPARSE
from energybench.train import discovery

Shape = tuple[int, int, int, int, int]  # batch, in, out, kernel, side
WIDE: list[Shape] = [(64, 256, 256, 3, 14), (64, 512, 512, 3, 7), (64, 1024, 256, 1, 14), (256, 256, 256, 3, 28)]
ROUND_S = 0.02
SMOKE: Shape = (2, 8, 16, 3, 4)


def measure(card: Card, results: Results) -> None:
    shapes = [shape for shape, _, _ in LAYERS.values()] + WIDE + list(NEAR)
    layers: list[Timed] = []
    for narrow in (False, True):
        for last in (False, True):
            for shape in card.size(shapes, [SMOKE]):
                layers.append(sparse(card, results, shape, narrow=narrow, last=last))
                if results.left_s < 20:
                    break
    if results.left_s < 20:
        results.check("every shape was timed", None, "no time was left")
    fit_refuse(results, layers)
    for narrow in (False, True):
        for last in (False, True):
            for into, out, side, stride in card.size(list(FROZEN_SHAPES), [(4, 8, 4, 1)]):
                if results.left_s < 5:
                    results.check("every frozen shape was timed", None, "no time was left")
                    return
                frozen(card, results, (into, out, side, stride), narrow=narrow, last=last)


def module() -> Any:
    """methods/ssprop.py, as the harness has loaded it."""
    return sys.modules[discovery.load(discovery.sources()["ssprop"]).__module__]


def words(narrow: bool, last: bool) -> dict[str, str]:
    return {"precision": "bf16" if narrow else "fp32", "format": "channels_last" if last else "planes"}


def sparse(card: Card, results: Results, shape: Shape, *, narrow: bool, last: bool) -> Timed:
    batch, into, out, kernel, side = shape
    order = torch.channels_last if last else torch.contiguous_format
    torch.manual_seed(0)
    dense = nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False).to(card.device, memory_format=order)
    layer: Any = SPARSE[nn.Conv2d].from_dense(copy.deepcopy(dense))
    layer.drop = DROP
    x = input_of(card, (batch, into, side, side), order, narrow=narrow, learns=into > 3)
    times = turns(card, {"dense": dense, "sparse": layer}, x, narrow=narrow)
    found = ratio(times["dense"], times["sparse"])
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    with torch.autocast(card.device.type, torch.bfloat16, enabled=narrow):
        refused = module().refuse(layer, x, batch * side * side, channels_kept(out, DROP))
        priced = module().prices(layer, x, batch * side * side, channels_kept(out, DROP))
    results.row(
        f"ssProp at {100 * DROP:g} % drop",
        layer=f"{kernel}×{kernel}, {into} to {out}, {batch} of {side}×{side}",
        **words(narrow, last),
        dense_s=medians["dense"],
        sparse_s=medians["sparse"],
        dense_to_sparse=found["ratio"],
        least=found["least"],
        most=found["most"],
        auto="dense" if refused else "sparse",
    )
    return Timed(priced.saved, priced.chosen, priced.factor, medians["dense"], medians["sparse"])


def fit_refuse(results: Results, layers: list[Timed]) -> None:
    ssprop = module()
    now = under(layers, ssprop.GPU_CALLS_FLOP, ssprop.GPU_ELEMENT_FLOP)
    fitted = best(layers)
    dense_s, sparse_s = sum(layer.dense_s for layer in layers), sum(layer.sparse_s for layer in layers)
    ideal_s = sum(min(layer.dense_s, layer.sparse_s) for layer in layers)
    table = "auto, over all these layers"
    for name, each in (("constants of today", now), ("constants fitted here", fitted)):
        results.row(table, rule=name, **_cells(each), of=len(layers))
    for name, seconds in (("all dense", dense_s), ("all sparse", sparse_s), ("the faster of both", ideal_s)):
        results.row(table, rule=name, seconds=seconds, of=len(layers))
    results.fact("fitted GPU_CALLS_FLOP", fitted.calls_flop)
    results.fact("fitted GPU_ELEMENT_FLOP", fitted.element_flop)
    results.check("auto as it stands is no slower than dense", now.seconds <= 1.02 * dense_s, f"{now.seconds:.3g} s")


def _cells(fitted: Fitted) -> dict[str, float]:
    constants = {"calls_flop": fitted.calls_flop, "element_flop": fitted.element_flop}
    return {**constants, "seconds": fitted.seconds, "sparse": fitted.let_in, "slower": fitted.slower}


def frozen(card: Card, results: Results, shape: tuple[int, int, int, int], *, narrow: bool, last: bool) -> None:
    """Half of a layer's neurons at rest, as in tests/perf."""
    into, out, side, stride = shape
    order = torch.channels_last if last else torch.contiguous_format
    torch.manual_seed(0)
    dense = nn.Conv2d(into, out, 3, stride, padding=1, bias=False).to(card.device, memory_format=order)
    layer: Any = FROZEN[nn.Conv2d].from_dense(copy.deepcopy(dense))
    layer.live = torch.randperm(out, device=card.device)[: out // 2].sort().values
    x = input_of(card, (card.size(FROZEN_BATCH, 2), into, side, side), order, narrow=narrow, learns=True)
    times = turns(card, {"dense": dense, "half": layer}, x, narrow=narrow)
    found = ratio(times["dense"], times["half"])
    results.row(
        "layers of ResNet-32, half of the neurons at rest",
        layer=f"3×3, {into} to {out}, {side}×{side}, stride {stride}",
        **words(narrow, last),
        dense_s=statistics.median(times["dense"]),
        half_s=statistics.median(times["half"]),
        dense_to_half=found["ratio"],
        least=found["least"],
        most=found["most"],
    )


def input_of(card: Card, shape: tuple[int, ...], order: torch.memory_format, *, narrow: bool, learns: bool) -> Tensor:
    """What a layer inside a network is given: under autocast the layer before it has made it narrow."""
    x = torch.randn(shape, device=card.device).to(memory_format=order)
    return (x.bfloat16() if narrow else x).requires_grad_(learns)


def turns(card: Card, layers: dict[str, nn.Module], x: Tensor, *, narrow: bool) -> dict[str, list[float]]:
    with torch.no_grad(), torch.autocast(card.device.type, torch.bfloat16, enabled=narrow):
        dy = torch.randn_like(layers["dense"](x))
    once = max(backward_s(card, layers["dense"], x, dy, 3, narrow=narrow), 1e-6)
    repeats = min(200, max(1, round(ROUND_S / once))) if not card.fake else 1
    sides = {
        name: lambda layer=layer: backward_s(card, layer, x, dy, repeats, narrow=narrow)
        for name, layer in layers.items()
    }
    return in_turns(sides, card.size(7 if card.long else 5, 1))


def backward_s(card: Card, layer: nn.Module, x: Tensor, dy: Tensor, repeats: int, *, narrow: bool) -> float:
    """Seconds of one backward, by the card's events around each of a row of them."""
    wanted = [x, *layer.parameters()] if x.requires_grad else [*layer.parameters()]
    watch = Stopwatch(card)
    for _ in range(repeats):
        with torch.autocast(card.device.type, torch.bfloat16, enabled=narrow):
            y = layer(x)
        watch.start()
        torch.autograd.grad(y, wanted, dy)
        watch.stop()
    return watch.seconds() / repeats
