"""What methods share that stop updating neurons: the probe, the rows that rest, and what is saved by that.

    epoch ─ the velocities of the last probe say which neurons rest ─ the epoch, on the data without the probe ─ probe

mode "released": the whole backward runs, then the gradients of resting neurons are zeroed, as in the authors' code.
mode "sliced":   their gradients are not computed (frozen_layers.py): neither dW, in layers where enough of them rest
                 for that to pay, nor dX where all that lies further up rests.
What another layer has frozen stays frozen; a layer that does not learn before the first epoch never rests afterwards.
Either way a resting neuron's weights stay bit for bit, its momentum is 0 and it does not decay; its BatchNorm
statistics go on. The estimate of "sliced" is dW for live neurons and dX where something further up learns, that of
"released" is the paper's rule; both add the probe's forwards and leave out the samples that went into it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from energybench.algorithms.drop_in_layers import swap, swap_back
from energybench.algorithms.equilibrium import LEAST_PROBE, RECURSIONS, SIMILARITIES, Motion, Probe
from energybench.algorithms.frozen_layers import FROZEN, FrozenLayer, Held, zero_gradient
from energybench.algorithms.neurons import Neurons, find
from energybench.flops.work import BACKWARD, FORWARD, PROBE, WEIGHT_GRADIENT, Line, Work
from energybench.papers.counting_rules import neq_saved
from energybench.train.method import Method
from energybench.train.passes import mean_epoch

if TYPE_CHECKING:
    from energybench.train.batch import Batch, Forward
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

MODES = ("sliced", "released")
RELEASED_GAP = (
    "the estimate is the paper's rule, which counts a frozen neuron's gradient as saved; the authors' code computes it "
    'and then zeroes it, so the count shows no saving: mode = "sliced" leaves it out'
)


Rows = tuple[nn.Parameter, int, Tensor]  # a parameter, the dimension of its neurons, and which of them


class Freezing(Method):
    """Base of the methods. Below it: `live`, which neurons learn, and when that is asked."""

    needs: ClassVar[frozenset[str]] = frozenset({"backward"})

    def incompatible_devices(self, devices: int) -> str | None:
        return "which neurons rest follows from a probe that each rank sees by batch statistics of its own"

    # Parameters, which each method declares.
    mode: str
    slice_from: float
    probe: float
    velocity_momentum: float
    recursion: str
    similarity: str

    def check_parameters(self) -> None:
        """Raises ValueError. For `__post_init__`."""
        words = {"mode": MODES, "recursion": RECURSIONS, "similarity": SIMILARITIES}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'")
        if not 0 < self.probe < 1:
            raise ValueError(f"probe is a share of the training data in (0, 1), not {self.probe}")
        if not 0 <= self.slice_from <= 1:
            raise ValueError(f"slice_from is a share of a layer's neurons in [0, 1], not {self.slice_from}")
        if not 0 <= self.velocity_momentum < 1:
            raise ValueError(f"velocity_momentum is in [0, 1), not {self.velocity_momentum}")
        if self.mode == "sliced":
            self.swaps, self.swaps_unless = frozenset({"conv", "linear"}), 'mode = "released"'
        else:
            self.gap_because = RELEASED_GAP

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        order = torch.randperm(len(run.data), generator=run.rng(self.name, "probe"))
        size = min(max(round(self.probe * len(run.data)), LEAST_PROBE), len(run.data) // 2)
        self._probe_data = run.data.subset(order[:size].sort().values)
        self._rest: tuple[Data, Data] | None = None
        self._layers: dict[str, FrozenLayer] = swap(run.model, FROZEN) if self.mode == "sliced" else {}
        self._probe: Probe | None = None
        self._motions: dict[str, Motion] = {}
        self._gated: list[Neurons] = []  # of the layers that have a velocity
        self._velocity = torch.zeros(0)  # theirs, one after another, on the host
        self._live: list[Tensor] = []  # which of them learn, layer by layer
        self._computed: list[Tensor] = []  # whose gradient is needed
        self._asked: tuple[Tensor, ...] = (self._velocity, self._velocity)  # both, of all layers
        self._held: list[list[Held]] = []
        self._unneeded: list[list[Rows]] = []  # gradients that come all the same, and are zeroed
        self._turned_off: dict[nn.Parameter, None] = {}  # by this method, in this epoch; who else froze one keeps it so
        self._at_rest: dict[str, float] = {}  # the share of each layer's neurons that rest
        # Samples, passes and pairs of samples in one; given: with the probe's.
        self._given: tuple[float, ...] = (0, 0, 0)
        self._trained: tuple[float, ...] = (0, 0, 0)
        self._resting_samples = 0
        self._resting: dict[str, float] = {}  # Σ over the epoch's samples of the share that rested
        self._shares: dict[str, list[float]] = defaultdict(list)
        self._epochs: list[dict[str, Any]] = []

    # ── an epoch ──────────────────────────────────────────────────────────────────────────────────────────────

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        if self._probe is None:  # not in setup, where layers further out have yet to change the model
            for part in run.task.parts:
                run.parameters(part)  # in the model's order, as it is listed while all of them learn
            self._probe = Probe(find(run.model), self.similarity)
            self._probe.observe(run, self._probe_data)
        self._resting_samples, self._resting = 0, {}
        self.start_epoch_of_rest(run)
        rest, steps = self._without_probe(data), run.tally.steps
        inner(rest)
        self.restore()
        self._turn_on()
        if run.tally.steps > steps:
            self._given, self._trained = (
                tuple(map(sum, zip(sums, part, strict=True)))
                for sums, part in ((self._given, _passes(run, data)), (self._trained, _passes(run, rest, data)))
            )
            self._note(run)
        if run.epoch_number < run.epochs:  # nobody would use what comes after the last
            self._move(self._probe.observe(run, self._probe_data))

    def _without_probe(self, data: Data) -> Data:
        if self._rest is None or self._rest[0] is not data:
            keep = ~torch.isin(data.indices, self._probe_data.indices)
            self._rest = (data, data.subset(keep.nonzero().flatten()))
        return self._rest[1]

    def _move(self, similarities: dict[str, Tensor]) -> None:
        assert self._probe is not None
        velocities = []
        for name, phi in similarities.items():
            motion = self._motions.setdefault(name, Motion(self.velocity_momentum, self.recursion))
            velocities.append(motion.add(phi.cpu()))
        self._gated = [self._probe.neurons[name] for name in similarities]
        self._velocity = torch.cat(velocities) if velocities else torch.zeros(0)

    def start_epoch_of_rest(self, run: TrainingRun) -> None:
        """Which neurons rest is decided anew."""
        self.rest(run, self.live(run), anew=True)

    def live(self, run: TrainingRun) -> Tensor:
        """Which neurons with a velocity learn, (N,) on the host, from `self._velocity`."""
        raise NotImplementedError

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────────────

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        forward = inner(batch)
        for rows in self._unneeded:
            for parameter, dim, positions in rows:
                zero_gradient(parameter, dim, positions)
        self.count_step(run, len(batch))
        return forward

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        inner(batch)
        self.restore()

    def count_step(self, run: TrainingRun, samples: int) -> None:
        self._resting_samples += samples
        if any(self._held):
            run.tally.mark(self, "frozen" if self.mode == "sliced" else "masked")
        for name, share in self._at_rest.items():
            self._resting[name] = self._resting.get(name, 0.0) + samples * share

    @torch.no_grad()
    def restore(self) -> None:
        """Put resting neurons back where they were."""
        for held in self._held:
            for rows in held:
                rows.restore()

    def rest(self, run: TrainingRun, live: Tensor, computed: Tensor | None = None, *, anew: bool = False) -> None:
        """Let neurons rest but those that are `live`; gradients are needed of the `computed`, by default the live ones.

        Args:
            live: (N,) on the host, of the neurons with a velocity, one layer after another.
            computed: likewise.
            anew: look at every layer again, not only at those of which something changed.
        """
        asked = (live, live if computed is None else computed)
        if not anew and all(torch.equal(now, before) for now, before in zip(asked, self._asked, strict=True)):
            return
        sizes = [n.count for n in self._gated]
        lives, needed = (list(flags.split(sizes)) if sizes else [] for flags in asked)
        if anew:
            self._held, self._unneeded = [[] for _ in sizes], [[] for _ in sizes]
        states = {p: o.state for o in run.optimizers.values() for g in o.param_groups for p in g["params"]}
        for number, neurons in enumerate(self._gated):
            if anew or not torch.equal(self._live[number], lives[number]):
                self._hold(number, neurons, lives[number], states, run.device)
            if anew or not torch.equal(self._computed[number], needed[number]):
                self._leave_out(number, neurons, needed[number], run.device)
        self._live, self._computed, self._asked = lives, needed, asked
        self._keep_a_gradient(run)

    def _hold(
        self, number: int, neurons: Neurons, live: Tensor, states: Mapping[Any, Mapping[Any, Any]], device: torch.device
    ) -> None:
        """Remember where the neurons of one layer rest that are not live. states: of the optimizer, by parameter."""
        at_rest = (~live).nonzero().flatten().to(device)
        self._at_rest[neurons.name] = len(at_rest) / neurons.count
        self._held[number] = []
        if len(at_rest):
            self._held[number] = [Held(p, dim, at_rest, states[p][p] if p in states else {}) for p, dim in neurons.rows]

    def _leave_out(self, number: int, neurons: Neurons, needed: Tensor, device: torch.device) -> None:
        """Do not compute the gradients of one layer that nobody needs, or note that they come and shall be zeroed."""
        sliced = self.mode == "sliced" and self._slice(neurons, needed, device)
        without = (~needed).nonzero().flatten().to(device)
        self._unneeded[number] = []
        if len(without) and not sliced:
            self._unneeded[number] = [(p, dim, without) for p, dim in neurons.rows]

    def _slice(self, neurons: Neurons, needed: Tensor, device: torch.device) -> bool:
        """Compute gradients of the needed rows alone; whether that is so, or all of them come."""
        count = int(needed.count_nonzero())
        for parameter, _ in neurons.rows:
            if count > 0 and parameter in self._turned_off:
                parameter.requires_grad_(True)
                del self._turned_off[parameter]
            elif count == 0 and parameter.requires_grad:
                parameter.requires_grad_(False)
                self._turned_off[parameter] = None
        layer = self._layers.get(neurons.name)
        pays = 0 < count <= (1 - self.slice_from) * neurons.count and count < neurons.count
        if layer is not None:
            layer.live = needed.nonzero().flatten().to(device) if pays else None
        return layer is not None and pays

    def _keep_a_gradient(self, run: TrainingRun) -> None:
        """A loss that depends on nothing that learns cannot be differentiated: then one small parameter is asked."""
        if self._turned_off and not any(p.requires_grad for p in run.model.parameters()):
            small = self._gated[-1].rows[-1][0]  # a bias, where there is one
            chosen = small if small in self._turned_off else next(reversed(self._turned_off))
            chosen.requires_grad_(True)
            del self._turned_off[chosen]

    def _turn_on(self) -> None:
        """Between epochs nothing rests: who freezes and releases parameters then finds them as it left them."""
        for parameter in self._turned_off:
            parameter.requires_grad_(True)
        self._turned_off.clear()

    def finish(self, run: TrainingRun) -> None:
        self._turn_on()
        swap_back(run.model, self._layers)

    # ── what it saves ─────────────────────────────────────────────────────────────────────────────────────────

    def estimate(self, work: Work) -> Work:
        """What is left of the backward of each trained sample, of which there are fewer, and the probe's forwards."""
        # Not the whole set's: a layer further out may have kept some, and says so itself.
        every = [max(1, each) for each in self._given]
        samples, steps, pairs = (trained / each for trained, each in zip(self._trained, every, strict=True))
        saved = 0.0 if self.mode == "sliced" else self.saved_by_the_papers_rule()

        def share(line: Line) -> float:
            if line.phase not in BACKWARD:
                return 1.0
            layer = self._layers.get(line.module) if line.op in ("conv", "linear") else None
            return 1 - saved if layer is None else layer.share(line.phase)

        def bytes_share(line: Line, operand: str) -> float:
            layer = self._layers.get(line.module) if line.op in ("conv", "linear") else None
            if layer is None or line.phase not in BACKWARD:
                return 1.0
            read_whole = line.phase == WEIGHT_GRADIENT and operand == "x"
            return layer.share("read" if read_whole else line.phase)

        changed = work.change(share, bytes_share)
        changed = replace(changed, lines=tuple(line.times(samples, steps, pairs) for line in changed.lines))
        if self._probe is None or not self._probe.samples:
            return changed
        looked, looks = self._probe.samples / every[0], self._probe.batches / every[1]
        looked_pairs = self._probe.samples**2 / self._probe.batches / every[2]
        looks_again = [replace(line, phase=PROBE) for line in work.plain if line.phase == FORWARD]
        return changed.add(*(line.times(looked, looks, looked_pairs) for line in looks_again))

    def saved_by_the_papers_rule(self) -> float:
        """Share of the backward, 0–1, by the paper's rule on the masks that ran."""
        epochs = len(self._epochs)
        if self._probe is None or not epochs:
            return 0.0
        operations = self._probe.operations
        frozen = [
            {name: self._shares[name][epoch] if name in self._shares else 0.0 for name in operations}
            for epoch in range(epochs)
        ]
        return neq_saved(operations, frozen) / 100

    # ── the record ────────────────────────────────────────────────────────────────────────────────────────────

    def _note(self, run: TrainingRun) -> None:
        """The mean over the epoch's samples of the share that rested, by layer and over all neurons."""
        assert self._probe is not None
        resting = neurons_all = 0.0
        for name, neurons in self._probe.neurons.items():
            share = self._resting.get(name, 0.0) / max(1, self._resting_samples)
            self._shares[name].append(share)
            resting, neurons_all = resting + share * neurons.count, neurons_all + neurons.count
        share = round(resting / max(1.0, neurons_all), 4)
        self._epochs.append({"epoch": run.epoch_number, "frozen": share} | self.noted(run))

    def noted(self, run: TrainingRun) -> dict[str, Any]:
        """What else each epoch's entry says."""
        return {}

    def diagnostics(self) -> dict[str, Any]:
        layers = self._layers.items()
        return {
            "probe_samples": len(self._probe_data),
            "probe_looks": self._probe.observations if self._probe else 0,
            "probe_memory_b": self._probe.memory_b if self._probe else 0,
            "epochs": self._epochs,
            "frozen_by_layer": {name: [round(s, 3) for s in shares] for name, shares in self._shares.items()},
            "backward_saved_by_the_papers_rule": round(self.saved_by_the_papers_rule(), 4),
            "weight_gradients_computed": {name: round(layer.share(WEIGHT_GRADIENT), 4) for name, layer in layers},
        }


def _passes(run: TrainingRun, data: Data, whole: Data | None = None) -> tuple[float, ...]:
    """Samples of an epoch of these data, its passes, and the pairs of samples in one.

    whole: what the epoch was given, of which `data` are left; a task that makes its own rounds takes its own data
    """
    batch, told = run.recipe.batch, run.task.passes(run)
    if told is None:
        work = Work((), 1, data.samples(batch), batch, run.recipe.accumulate)
        return (work.samples, *work.passes())
    work = Work.of_rounds((), 1, mean_epoch([told]).sizes, 1.0, batch, run.recipe.accumulate)
    kept = 1.0
    if whole is not None and "epoch" not in run.task.replaces:
        kept = data.samples(batch) / max(1, whole.samples(batch))
    return tuple(kept * each for each in (work.samples, *work.passes()))
