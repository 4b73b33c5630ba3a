"""What recurrent layers cost: LSTM, GRU and RNN, layer by layer, with what of them learns.

Fused kernels compute every gradient: oneDNN's of an LSTM on a CPU both dX and dW of each layer that takes part in the
backward, cuDNN's dX of all layers, and dW if any weight learns. torch's own path multiplies gate by gate: the inputs of
all positions at once, the state step by step. There a gradient is computed for each factor that learns: no dX for a
first state that is given, none for an input that is data, no dW for what is frozen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

from energybench.flops.graph import elements, is_tensor, sizes
from energybench.flops.values import Entry, Moved, Values
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT


class Recurrent:
    """Handles of recurrent layers and of their single steps."""

    def __init__(self, values: Values) -> None:
        self.values, self.learns = values, values.learns

    def layers(self, inputs: list[Any], outputs: list[Any], name: str) -> list[Entry]:
        """Every weight matrix, (gates × hidden, features), at every position.

        Bytes are those of one kernel: no state between the layers.
        """
        x, last = sizes(inputs[0]), sizes(outputs[1])  # the last state: (layers × directions, sequences, hidden)
        packed = len(x) == 2  # (input, batch_sizes, states, weights, ...), else (input, states, weights, ...)
        first, weights = inputs[2 if packed else 1], elements(inputs[3 if packed else 2])
        states = [first] if is_tensor(first) else elements(first)
        directions = 1 + bool(inputs[-1 if packed else -2].toIValue())
        per_cell = len(weights) // last[0]
        groups = [weights[k : k + per_cell] for k in range(0, len(weights), per_cell)]
        positions = prod(x[:-1])
        matrices = [weight for weight in weights if len(sizes(weight)) == 2]
        phases = Counter({FORWARD: sum(2 * positions * prod(sizes(weight)) for weight in matrices)})
        if any(map(self.learns, outputs)):
            projected = len([w for w in groups[0] if len(sizes(w)) == 2]) == 3
            if self.values.target.type not in ("cpu", "meta"):
                phases[INPUT_GRADIENT] += phases[FORWARD]
                phases[WEIGHT_GRADIENT] += phases[FORWARD] * any(map(self.learns, weights))
            else:
                onednn = self.values.target.type == "cpu" and name == "lstm" and not packed and not projected
                first_share = last[1] / positions
                learns = self.learns(inputs[0])
                for start in range(0, len(groups), directions):
                    level = groups[start : start + directions]
                    learns = self._level(phases, level, learns, states, positions, first_share, onednn)
        shape = {"in": x[-1], "matrices": len(matrices), "positions": positions}
        moved = _cells(phases, [("x", inputs[0])], weights, [outputs[0]], self.learns)
        return self.values.entry(outputs[0], "recurrent", dict(phases), shape, moved)

    def _level(
        self,
        phases: Counter[str],
        cells: list[list[Any]],
        x_learns: bool,
        states: list[Any],
        positions: int,
        first_share: float,
        onednn: bool,
    ) -> bool:
        """Adds one layer's gradients, of both directions; whether what it hands on learns."""
        state_learns = [self.learns(state) for state in states]
        h_learns = bool(state_learns) and state_learns[0]
        answer = False
        for cell in cells:
            flop = {id(weight): 2 * positions * prod(sizes(weight)) for weight in cell if len(sizes(weight)) == 2}
            learned = any(map(self.learns, cell)) or x_learns or any(state_learns)
            answer = answer or learned
            if not learned:
                continue
            w_x, w_h, *projection = [weight for weight in cell if len(sizes(weight)) == 2]
            if onednn:
                phases[WEIGHT_GRADIENT] += flop[id(w_x)] + flop[id(w_h)]
                phases[INPUT_GRADIENT] += flop[id(w_x)] + flop[id(w_h)]
                continue
            for weight in (w_x, w_h, *projection):
                phases[WEIGHT_GRADIENT] += flop[id(weight)] * self.learns(weight)
            phases[INPUT_GRADIENT] += flop[id(w_x)] * x_learns
            steps = 1 if h_learns else 1 - first_share
            phases[INPUT_GRADIENT] += round(flop[id(w_h)] * steps)
            for weight in projection:  # of what the gates answer, which a frozen gate's first step does not learn from
                gates = x_learns or any(state_learns) or any(self.learns(w) for w in cell if w is not weight)
                phases[INPUT_GRADIENT] += round(flop[id(weight)] * (1 if gates else 1 - first_share))
        return answer

    def cell(self, inputs: list[Any], outputs: list[Any]) -> list[Entry]:
        """One step: linear(input, inputs[2]) and linear(state, inputs[3])."""
        states = elements(inputs[1]) if inputs[1].node().kind() == "prim::ListConstruct" else [inputs[1]]
        phases: Counter[str] = Counter()
        back = any(map(self.learns, outputs))
        for x, w in ((inputs[0], inputs[2]), (states[0], inputs[3])):
            flop = 2 * prod(sizes(x)) * sizes(w)[0]
            phases[FORWARD] += flop
            if back and self.learns(w):
                phases[WEIGHT_GRADIENT] += flop
            if back and self.learns(x):
                phases[INPUT_GRADIENT] += flop
        shape = {"in": sizes(inputs[0])[-1], "matrices": 2, "positions": 1}
        operands = [("x", inputs[0]), *(("h", state) for state in states)]
        moved = _cells(phases, operands, inputs[2:6], outputs, self.learns)
        return self.values.entry(outputs[0], "recurrent", dict(phases), shape, moved)


def _cells(
    phases: Mapping[str, float],
    operands: list[tuple[str, Any]],
    weights: list[Any],
    results: list[Any],
    learns: Callable[[Any], bool],
) -> Iterator[Moved]:
    """As a layer, with several operands, weights and results."""
    for phase, flop in phases.items():
        if not flop:
            continue
        forward, back = phase == FORWARD, phase == INPUT_GRADIENT
        yield from (Moved(phase, name, value) for name, value in operands if not back)
        learned = [weight for weight in weights if learns(weight)] or weights  # fused kernels compute them all
        if phase == WEIGHT_GRADIENT:
            yield from (Moved(phase, "dw", weight) for weight in learned)
        else:
            yield from (Moved(phase, "w", weight) for weight in weights)
        yield from (Moved(phase, "y" if forward else "dy", result) for result in results)
        yield from (Moved(phase, f"d{name}", value) for name, value in operands if back and learns(value))
