"""The papers' own counting rules, each under its own name: what a paper claims, on any model.

None of these is the project's convention (ledger.py) and none is evidence: a rule says what its authors would print.
`energybench claims` holds them against what they printed.

    convention             rule                                                       function
    ssprop_eq6_train       Eq. 6 and 7 over the images that are trained on            ssprop_backward, ssprop_total
    ssprop_eq6_trainval    the same over training and validation images, as printed   ssprop_total(images = both)
    calflops_x3            3 × calflops' forward × images × epochs kept: Table 2      calflops_forward, gradsamp_total
    neq_thop2              2 × thop's forward, less the frozen share of each layer    thop_forward, neq_saved

Arithmetic is in whole numbers and fractions: 1 − 0.8 is 1/5, and int(0.29 · 100), which is 28, happens nowhere. Models
run once as a copy on the meta device: nothing is trained, moved or changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import nn

from energybench.common.errors import nearest
from energybench.papers.arguments import BadClaim, amount_of, share_of, whole
from energybench.papers.calflops import Calflops
from energybench.papers.shape_trace import ModuleCalls, trace_forward

BatchNorm = nn.modules.batchnorm._BatchNorm
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
Norms = (BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
Weighted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

# ── Backward with channels left out ────────────────────────────────────────────────────────────────────────


class BackwardFlop(NamedTuple):
    """FLOPs of the backward: per iteration, or of a whole run (`ssprop_total`)."""

    dense: float
    sparse: float
    mean: float  # of a dense and a sparse epoch in turn, the paper's schedule


def ssprop_backward(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    drop: float,
    kept: Literal["exact", "integer"] = "exact",
    bias_term: bool = False,
    dropout_coefficient: float | None = None,
) -> BackwardFlop:
    """Backward FLOPs of one iteration, as ssProp (Zhong et al. 2024) counts them for its Table 4.

    M = batch · Hout · Wout, Cin = input channels of one group, K² = kernel height · width:

        dense  = Σ_conv M · 4·Cin·K² · Cout                               Eq. 6: 2 for each of dW and dX
               + Σ_BN   12·batch·H·W·C + 10·C                             Eq. 7
        sparse = Σ_conv M · 4·Cin·K² · (1 − drop)·Cout + (M − 1)·Cout     and the sum by which channels are chosen
               + Σ_BN   12·batch·H·W·C + 10·C
        mean   = (dense + sparse) / 2

    input_shape: with the batch, (128, 3, 32, 32).
    drop:        share of output channels left out in a sparse iteration, in [0, 1).
    kept:        "exact" takes (1 − drop)·Cout as it is, as the paper does; "integer" takes the channels that the
                 paper's code keeps, max(int((1 − drop)·Cout), 1), so that 12 of 64 stay at drop 0.8, not 12.8.
    bias_term:   with Eq. 6's "+1", M · (4·Cin·K² + 1) · Cout, as printed: for every convolution, whether it has a
                 bias or not. Table 4 leaves it out everywhere.
    dropout_coefficient: adds coefficient · batch · H · W · C for every Dropout of p > 0, in both kinds of
                 iteration (Eq. 8: 2 as printed, 4 in the figures of Table 6). None, as in the totals: not counted.

    Every call of an nn.Conv2d counts, the first layer's dX and frozen layers' dW too; each call of a shared layer.
    A grouped convolution has Cin / groups inputs to an output channel; dropping channels drops them alike in whichever
    group they are. BatchNorm of any dimension counts, by its elements. As in the paper, nothing else does: 1-d, 3-d
    and transposed convolutions (ssProp replaces Conv2d alone), linear layers, activations, pooling, sorting and
    gathering, forward, optimizer. A model without Conv2d has nothing to save: its three figures are one.
    """
    calls = backward_calls(model, input_shape)
    return backward_of(calls, drop, kept=kept, bias_term=bias_term, dropout_coefficient=dropout_coefficient)


def backward_calls(model: nn.Module, input_shape: Sequence[int]) -> ModuleCalls:
    """What `ssprop_backward` counts of a model, for counting it in more than one way."""
    return trace_forward(model, input_shape, ModuleCalls.of(nn.Conv2d, BatchNorm, *DROPOUTS), training=True)


def backward_of(
    calls: ModuleCalls,
    drop: float,
    *,
    kept: Literal["exact", "integer"] = "exact",
    bias_term: bool = False,
    dropout_coefficient: float | None = None,
) -> BackwardFlop:
    """`ssprop_backward` of these calls."""
    share = 1 - share_of(drop, "drop")
    if kept not in ("exact", "integer"):
        raise BadClaim(f"kept is 'exact' or 'integer', not {kept!r}", nearest(str(kept), ["exact", "integer"]))
    coefficient = amount_of(dropout_coefficient or 0, "dropout_coefficient")
    dense = sparse = Fraction(0)
    for call in calls:
        module: Any = call.module
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels
            positions = call.elements_out // channels
            each = positions * (4 * _fan_in(module) + bias_term)
            left = share * channels
            dense += each * channels
            left = left if kept == "exact" else Fraction(max(math.floor(left), 1))
            sparse += each * left + (positions - 1) * channels
            continue
        if isinstance(module, BatchNorm):
            both = Fraction(12 * call.elements_out + 10 * module.num_features)
        else:
            both = coefficient * call.elements_out * bool(module.p)
        dense += both
        sparse += both
    return BackwardFlop(float(dense), float(sparse), float((dense + sparse) / 2))


@overload
def ssprop_total(
    per_iteration: BackwardFlop, *, images: int, batch: int, epochs: float, fractional: bool = True
) -> BackwardFlop: ...
@overload
def ssprop_total(per_iteration: float, *, images: int, batch: int, epochs: float, fractional: bool = True) -> float: ...
def ssprop_total(
    per_iteration: float | BackwardFlop, *, images: int, batch: int, epochs: float, fractional: bool = True
) -> float | BackwardFlop:
    """FLOPs of a whole run: per iteration × epochs × images / batch.

    per_iteration: FLOPs, or the three of `ssprop_backward`; the answer is of the same kind.
    images:        the paper takes training + validation images, though no backward runs on validation: 25 % too much
                   where a fifth was held out. Give the training images for what its code runs.
    fractional:    images / batch as a fraction, as the paper; else rounded up: the last batch is a smaller one.
    """
    ratio = Fraction(whole(images, "images"), whole(batch, "batch"))
    iterations = (ratio if fractional else math.ceil(ratio)) * amount_of(epochs, "epochs")
    if isinstance(per_iteration, tuple):
        return BackwardFlop(*(float(amount_of(one, "per_iteration") * iterations) for one in per_iteration))
    return float(amount_of(per_iteration, "per_iteration") * iterations)


def drop_rate_lower_bound(conv: nn.Conv2d) -> float:
    """The drop rate above which a sparse backward of `conv` costs less than a dense one, 1 / (4·Cin·K² + 1).

    From Eq. 6 with its "+1" and the selection's (M − 1)·Cout: dense − sparse = M·(4·Cin·K² + 1)·D·Cout − (M − 1)·Cout,
    which is Cout at D = 1 / (4·Cin·K² + 1) and 0 at (1 − 1/M) of it: the bound suffices for every M, and is the
    least that does. Cin is of one group.
    """
    if not isinstance(conv, nn.Conv2d):
        raise BadClaim(f"the bound is of an nn.Conv2d, not of {type(conv).__name__}")
    return 1 / (4 * _fan_in(conv) + 1)


# ── Epochs left out ────────────────────────────────────────────────────────────────────────────────────────


def calflops_forward(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Forward FLOPs of one batch in evaluation mode, as calflops (Ye 2023) counts them; GradSamp's Table 2.

    2 per multiply-add of convolutions (1 more per output for a bias), linear layers (bias 0) and of products called
    by name (`torch.matmul`, `Tensor.matmul`, `mm`, `bmm`, `einsum`; `addmm` and `baddbmm` with 1 per added element);
    per element: BatchNorm 2, LayerNorm, GroupNorm and InstanceNorm 5 (1 and 4 without weights); ReLU, LeakyReLU, PReLU,
    ELU, SiLU, GELU and softmax 1; pooling 1 per input element.

    Missed, as calflops misses it, because it replaces functions of torch.nn.functional and torch by name: products
    written with `@`, fused attention, residual additions, `x.relu()`, nn.ReLU6 (a hardtanh to torch), sigmoid, tanh, a
    function that a model kept before. Nothing here, whatever calflops does: embeddings, Dropout, recurrent layers,
    resampling, sums and products of elements by name. Not for use while other threads run models: the names are
    replaced while this one runs.

    input_shape: with the batch, (1, 3, 224, 224).
    """
    return trace_forward(model, input_shape, lambda _: Calflops(), training=False).flop


def gradsamp_total(forward_flop: float, *, images: int, kept_epochs: float) -> float:
    """Training FLOPs as GradSamp's Table 2 has them: 3 × forward × images × epochs kept.

    3 = forward and a backward of twice that. Fitting and drawing the sampled updates count as nothing, and so does
    evaluation. forward_flop: of one image (`calflops_forward`). A whole number where all three are.
    """
    epochs = amount_of(kept_epochs, "kept_epochs")
    total = 3 * amount_of(forward_flop, "forward_flop") * whole(images, "images") * epochs
    return int(total) if total.denominator == 1 else float(total)


STRATEGIES = ("every", "random", "late-every", "late-random")
TABLE2_EPOCHS = 200
# The first epoch that may be skipped, inferred from the table's counts; and how many "random:ρ" skips, taken from it.
TABLE2_STARTS = {"every": 40, "late-every": 155}
TABLE2_RANDOM = {Fraction(2, 10): 24, Fraction(5, 10): 65, Fraction(7, 10): 81}


def gradsamp_skips(
    strategy: str,
    epochs: int,
    *,
    start_epoch: int = 2,
    min_real_between: int = 0,
    seed: int = 0,
    generator: torch.Generator | None = None,
    preset: Literal["table2"] | None = None,
) -> set[int]:
    """The epochs, counted from 1, that GradSamp samples instead of training (§4.1 of the paper, read literally).

    strategy: "every:P" skips epoch e where e mod P = 0 (P ≥ 2); "random:ρ" each epoch with probability ρ in (0, 1);
              "late-every:P" and "late-random:ρ" the same from ⌊epochs / 2⌋ + 1 on. Epoch 1 is always real.
    start_epoch:      the first epoch that may be skipped.
    min_real_between: real epochs required between two skipped ones; 1 makes "random:ρ" skip ρ / (1 + ρ) of them.
    seed, generator:  where the random strategies draw from, one number an epoch; the same seed gives the same set,
                      and "random:0.5" skips every epoch that "random:0.2" does. A generator is advanced.
    preset:   "table2" skips exactly as many epochs as the paper's Table 2 paid for: "every" from epoch 40 on,
              "late-every" from 155 on, "random" 24, 65 and 81 epochs for ρ = 0.2, 0.5 and 0.7, "late-random" 50 ρ.
              Of 200 epochs only. Which random epochs those are is drawn: the table tells how many, not which.

    Raises BadClaim (a ValueError) for an unknown strategy, with the nearest that exists.
    """
    kind, amount = _strategy(strategy)
    epochs = whole(epochs, "epochs", least=0)
    whole(start_epoch, "start_epoch", least=2)
    whole(min_real_between, "min_real_between", least=0)
    late, every = kind.startswith("late-"), kind.endswith("every")
    source = generator if generator is not None else torch.Generator().manual_seed(seed)
    chance = torch.rand(epochs + 1, generator=source, dtype=torch.float64).tolist()
    first = max(start_epoch, epochs // 2 + 1 if late else 2)
    if preset is not None:
        if (start_epoch, min_real_between) != (2, 0):
            raise BadClaim("the preset says where to start: leave start_epoch and min_real_between alone")
        count = _table2(preset, kind, amount, epochs)
        first = max(first, TABLE2_STARTS.get(kind, first))
        if not every:
            return set(sorted(range(first, epochs + 1), key=chance.__getitem__)[:count])
    chosen: set[int] = set()
    last = -math.inf
    for epoch in range(first, epochs + 1):
        drawn = epoch % amount == 0 if every else chance[epoch] < amount
        if drawn and epoch - last > min_real_between:
            chosen.add(epoch)
            last = epoch
    return chosen


def _table2(preset: str, kind: str, amount: Fraction, epochs: int) -> int:
    """How many epochs a random strategy skips in Table 2; 0 for a periodic one."""
    if preset != "table2":
        raise BadClaim(f"there is no preset {preset!r}", nearest(str(preset), ["table2"]))
    if epochs != TABLE2_EPOCHS:
        raise BadClaim(f"preset 'table2' is of {TABLE2_EPOCHS} epochs, not {epochs}", "leave the preset out")
    if kind == "random" and amount not in TABLE2_RANDOM:
        known = ", ".join(f"random:{float(rate):g}" for rate in TABLE2_RANDOM)
        raise BadClaim(f"Table 2 has no random:{float(amount):g}", f"one of: {known}")
    return TABLE2_RANDOM[amount] if kind == "random" else round(amount * TABLE2_EPOCHS / 4)


def _strategy(strategy: str) -> tuple[str, Fraction]:
    """("late-every", 5) of "late-every:5"."""
    kind, _, text = str(strategy).partition(":")
    if kind not in STRATEGIES:
        raise BadClaim(f"there is no strategy '{strategy}'", f"{nearest(kind, STRATEGIES)} with its amount, as every:5")
    try:
        amount = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        amount = Fraction(0)
    if kind.endswith("every") and (amount < 2 or amount.denominator != 1):
        raise BadClaim(f"'{strategy}': the period is a whole number of epochs from 2 on", f"{kind}:5")
    if kind.endswith("random") and not 0 < amount < 1:
        raise BadClaim(f"'{strategy}': the share of epochs lies between 0 and 1", f"{kind}:0.2")
    return kind, amount


# ── Neurons left alone ─────────────────────────────────────────────────────────────────────────────────────


def thop_forward(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Forward operations by module name, as NEq takes them from thop: one multiply-add is one.

    Convolutions (1-d to 3-d) and linear layers their multiply-adds, bias 0; normalisations 2 per element; nothing
    else. A module called twice has the sum. In the order of the calls.
    """
    operations: dict[str, int] = {}
    for call in trace_forward(model, input_shape, ModuleCalls.of(*Weighted, *Norms), training=False):
        module = call.module
        each = 2 * call.elements_in if isinstance(module, Norms) else call.elements_out * _fan_in(module)
        operations[call.name] = operations.get(call.name, 0) + each
    return operations


Layers = Mapping[str, float] | Sequence[float]
NEQ_HOOKED: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.BatchNorm2d)  # what NEq's public code hooks


def neq_saved(forward_ops: Layers, frozen_fractions: Any, *, unhooked: Literal["saved", "trained"] = "saved") -> float:
    """Percent of the backward that NEq (Bragagnolo et al. 2022) calls saved; SCoTTi's 86 % is on this scale (inferred).

        saved % = 100 · (1 − mean over epochs of [Σ_hooked 2·ops·(1 − f)] / Σ_all 2·ops)

    The 2, for a backward that costs two forwards, cancels. Beware of the scale: freezing neurons removes dW and not
    dX, so no more than `neq_ceiling` of a backward can really go, and the released code computes the full gradient and
    then zeroes it, so none does.

    forward_ops:      {layer: operations}, as of `thop_forward`, or a sequence of operations.
    frozen_fractions: one entry an epoch, each {layer: f} or a sequence of f by position (None: not hooked), f the share
                      of the layer's neurons frozen in that epoch; or {layer: [f of each epoch]}; or a single epoch.
    unhooked:         layers of which no f is given count as "saved", as in the public script, or as "trained". That
                      script hooks NEQ_HOOKED, so linear layers count as saved, whatever happens (`neq_unfrozen`).
    """
    if unhooked not in ("saved", "trained"):
        raise BadClaim(f"unhooked is 'saved' or 'trained', not {unhooked!r}")
    operations = {name: amount_of(ops, f"operations of {name}") for name, ops in _named(forward_ops)}
    total = sum(operations.values())
    if not total:
        raise BadClaim("there are no operations to save: forward_ops is empty or all 0")
    epochs = [dict(_named(epoch)) for epoch in _by_epoch(frozen_fractions)]
    if not epochs:
        raise BadClaim("frozen_fractions has no epoch", "one entry an epoch: [{'conv1': 0.5}, …]")
    spent = Fraction(0)
    for epoch in epochs:
        if unknown := [name for name in epoch if name not in operations]:
            raise BadClaim(f"forward_ops has no layer {unknown[0]!r}", nearest(str(unknown[0]), map(str, operations)))
        for name, ops in operations.items():
            frozen = epoch.get(name)
            if frozen is not None:
                spent += ops * (1 - share_of(frozen, f"frozen fraction of {name}", closed=True))
            elif unhooked == "trained":
                spent += ops
    return float(100 * (1 - spent / len(epochs) / total))


def neq_unfrozen(
    model: nn.Module, forward_ops: Mapping[str, float], hooked: tuple[type[nn.Module], ...] = NEQ_HOOKED
) -> float:
    """Percent that NEq's rule calls saved while nothing is frozen: the operations of layers that are not hooked.

    forward_ops: as of `thop_forward`.
    """
    unfrozen = {name: 0.0 for name in forward_ops if isinstance(model.get_submodule(name), hooked)}
    return neq_saved(forward_ops, [unfrozen])


def neq_ceiling(model: nn.Module, input_shape: Sequence[int]) -> float:
    """Percent of the backward that goes when every neuron is frozen and the gradient still flows: ΣdW / Σ(dW + dX).

    Over convolutions and linear layers; each of dW and dX costs what the forward does, and there is no dX where the
    input needs no gradient (a first layer): hence a little more than one half. Beyond it, dX goes only below the
    lowest neuron that still learns. Products of attention, which have no weights, would lower it.
    """
    weights = inputs = 0
    for call in trace_forward(model, input_shape, ModuleCalls.of(*Weighted), training=True):
        ops = call.elements_out * _fan_in(call.module)
        weights += ops
        inputs += ops * call.input_learns
    if not weights:
        raise BadClaim(f"{type(model).__name__} has no convolution and no linear layer")
    return float(Fraction(100 * weights, weights + inputs))


def _by_epoch(fractions: Any) -> list[Any]:
    """One {layer: f} or sequence of f an epoch, whichever way it was given."""
    fractions = fractions.tolist() if hasattr(fractions, "tolist") else fractions
    if isinstance(fractions, Mapping):
        if not any(isinstance(of_layer, Sequence) for of_layer in fractions.values()):
            return [fractions] if fractions else []
        if len({len(of_layer) for of_layer in fractions.values()}) > 1:
            raise BadClaim("every layer has as many frozen fractions as there are epochs")
        return [dict(zip(fractions, epoch, strict=True)) for epoch in zip(*fractions.values(), strict=True)]
    epochs = list(fractions)
    return [epochs] if epochs and all(f is None or isinstance(f, Real) for f in epochs) else epochs


def _named(layers: Any) -> Iterable[tuple[Any, Any]]:
    return layers.items() if isinstance(layers, Mapping) else enumerate(layers)


# ── Samples chosen ─────────────────────────────────────────────────────────────────────────────────────────


def presampling_gate(presampled: float) -> float:
    """The τ above which choosing b of B′ presampled samples pays, (B′ + 3b) / 3b (Katharopoulos & Fleuret 2018).

    B′ forwards choose, b forwards and backwards (3 forwards' worth) train; uniform training would need 3bτ for the
    same variance. presampled: B′ / b; 3 gives 2, 5 gives 2.67.
    """
    return float((amount_of(presampled, "presampled") + 3) / 3)


def _fan_in(module: Any) -> int:
    """Multiply-adds per output element: inputs of one group × kernel."""
    return math.prod(module.weight.shape[1:])
