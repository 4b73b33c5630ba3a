"""importance: draw the samples of a batch by how much they have to say, as remembered from when they were last seen.

Every training sample i has an importance q_i. The first epoch is plain and sets q_i to the sample's score; after it
each step draws B samples with replacement by p_i = q_i/Σq, weighs their losses by 1/(N·p_i), so that the mean gradient
stays that of the whole set ("importance"), or by 1 and leans to the hard ones on purpose ("adaptive"), and moves
q_i to α·q_i + (1 − α)·score. At the end of each epoch every q grows by ε. Scores come from the pass that trains.

Paper: Salaün et al., Algorithm 1 and 2 (line 3 read as a norm); after a first epoch as ours. Promises fewer steps to a
target and no FLOP less: an epoch costs what a plain one does, and drawing comes on top. So the figure to look at is
energy to target. Controls: `with_replacement`, and each score beside "parameter-gradient", the true gradient's norm.
Measured on two CPU cores, a CNN on digits to 97.5 %, 3 blocks: −28 % [−31, −25] less time to the target
(reports/importance/2026-11-30-195825).
Owns `batches`. Composes with what thins the passes or skips epochs, not with another choice of samples or weights.
On several devices every rank keeps the whole memory: the scores of a batch are gathered, which it pays for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from energybench import Batch, Data, Forward, Method, TrainingRun, Work
from energybench.algorithms import score_comparison
from energybench.algorithms.sample_scores import FORMS, SCORES, Scorer, with_reference
from energybench.algorithms.weighted_sampling import Sampler, average_repeats, pass_key, unbiased

ESTIMATORS = ("importance", "adaptive")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass
class Importance(Method):
    """alpha:   share of its old importance that a sample keeps when it is scored again; the paper has 0 to 0.3, by task

    epsilon:    added to every importance at the end of each epoch, > 0, in units of the score (an output gradient of
                cross-entropy is at most √2 long): who is not drawn comes back. The paper gives no value
    estimator:  "importance" (weights 1/(N·p), unbiased) | "adaptive" (weights 1)
    score:      "output-gradient" | "loss" | "last-layer-gradient" (the last nn.Linear that the model holds) |
                "parameter-gradient" (a forward and a backward pass more: the reference, not a way to save). Its passes
                are dense and its estimate copies what methods further in have left of the ledger: put those outside it
    form:       "analytic" (the output gradient in closed form, where the task has one) | "autograd"
    compare:    scores that are held against "parameter-gradient" when training is over, and with them the remembered
                importances: correlations over `compare_samples` training samples, outside the window

    The memory belongs to the data that an epoch is given: a part of the set has its own. A sample that the first epoch
    left out gets the mean importance. Where worker processes read ahead, a batch is drawn, and weighed, by the
    importances of as many steps ago. The importances are kept in a file beside the record.
    """

    replaces: ClassVar[frozenset[str]] = frozenset({"batches"})
    needs: ClassVar[frozenset[str]] = frozenset({"forward", "per_sample_loss"})
    example: ClassVar[Mapping[str, Any]] = {"alpha": 0.1, "epsilon": 0.01}
    trains_less: ClassVar[bool | None] = False

    alpha: Annotated[float, Field(ge=0, lt=1)]
    epsilon: Annotated[float, Field(gt=0)]
    estimator: Literal["importance", "adaptive"] = "importance"
    score: Literal["output-gradient", "loss", "last-layer-gradient", "parameter-gradient"] = "output-gradient"
    form: Literal["analytic", "autograd"] = "analytic"
    compare: tuple[Literal["output-gradient", "loss", "last-layer-gradient"], ...] = ()
    compare_samples: Annotated[int, Field(ge=2)] = 512

    def __post_init__(self) -> None:
        words = {"estimator": ESTIMATORS, "score": SCORES, "form": FORMS}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha is the share kept of an old importance in [0, 1), not {self.alpha}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is > 0, or a sample of importance 0 is never seen again; not {self.epsilon}")
        self.compare = tuple(self.compare)
        if unknown := [kind for kind in self.compare if kind not in SCORES[:-1]]:
            raise ValueError(f"compare is of {', '.join(SCORES[:-1])}, not '{unknown[0]}'")
        if self.compare_samples < 2:
            raise ValueError(f"compare_samples is 2 or more, not {self.compare_samples}")
        if self.score == "parameter-gradient":
            self.needs = self.needs | {"backward"}  # type: ignore[misc]

    def incompatible_devices(self, devices: int) -> str | None:
        if self.score == "parameter-gradient":
            return "the passes of its score go past the ranks' common backward; the other scores need none"
        return "compare looks at samples by passes that one rank alone would make" if self.compare else None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        if self.compare:
            score_comparison.check(run, self.compare, self.form)
        self._run = run
        self._scorer = Scorer(run, self.score, self.form)
        self._memories: list[Memory] = []
        self._memory: Memory | None = None  # of the batch that is trained on
        self._drawn = False  # that batch was
        self._steps = 0

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        memory = self._memory_of(run, data)
        ahead: deque[tuple[bool, Tensor | None]] = deque()
        for batch in run.load(data, self._positions(run, data, memory, ahead)):
            self._memory, (self._drawn, weights) = memory, ahead.popleft()
            yield batch if weights is None else replace(batch, weights=batch.own_rows(weights))
        memory.sampler.reset(memory.sampler.importance + self.epsilon)

    def _memory_of(self, run: TrainingRun, data: Data) -> Memory:
        for memory in self._memories:
            if memory.is_of(data):
                return memory
        self._memories.append(Memory(data, run.epoch_number, run.device))
        return self._memories[-1]

    def _positions(
        self, run: TrainingRun, data: Data, memory: Memory, ahead: deque[tuple[bool, Tensor | None]]
    ) -> Iterator[Tensor]:
        """Of each batch when it is asked for; what is not in it goes into `ahead`: whether it is drawn, its weights."""
        generator = run.rng(self.name, "draw", *pass_key(run), device=run.device)
        order: list[Tensor] = []
        checked = False
        for number, size in enumerate(data.sizes(run.recipe.batch)):
            if run.epoch_number == memory.since:
                order = order or data.cut(run.order(data), run.recipe.batch)
                ahead.append((False, None))
                yield order[number]
                continue
            if not checked:
                memory.ready()
                checked = True
            index, probability = memory.sampler.draw(size, generator)
            weighed = self.estimator == "importance"
            ahead.append((True, unbiased(probability, len(data)) if weighed else None))
            yield index

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        self._scorer.listen()
        forward = inner(batch)
        if self._memory is None:  # not a batch of ours
            return forward
        scores = self._scorer(run, forward, batch)
        index, scores = run.all_rows(batch.index, batch), run.all_rows(scores, batch)  # every rank keeps all of them
        self._memory.update(index, scores, self.alpha if self._drawn else 0.0)
        self._steps += 1
        before = self.acted
        run.tally.mark(self, "drawn" if self._drawn else "scored")
        self.acted = before or self._drawn  # a run of one epoch only watches
        return forward

    def finish(self, run: TrainingRun) -> None:
        self._scorer.close()

    def estimate(self, work: Work) -> Work:
        return with_reference(work) if self.score == "parameter-gradient" and self._steps else work

    def diagnostics(self) -> dict[str, Any]:
        compared = {"against_gradient_norm": self._compared()} if self.compare else {}
        summary = self._memories[0].summary() if self._memories else {}
        return {**compared, "parts": len(self._memories), **summary}

    def _compared(self) -> dict[str, Any]:
        """The scores that the suite names, and the importances of the whole set, against the true gradient's norm."""
        whole = [memory.sampler.importance for memory in self._memories if memory.is_of(self._run.data)]
        remembered = {"remembered importance": whole[0]} if whole else {}
        return score_comparison.compare(self._run, self.compare, self.compare_samples, self.form, remembered)

    def saved_tensors(self) -> dict[str, Tensor]:
        """Importances (N,) by position, and the positions' places in the data set, of each part."""
        tensors: dict[str, Tensor] = {}
        for number, memory in enumerate(self._memories):
            tensors[f"importance_{number}"] = memory.sampler.importance
            tensors[f"index_{number}"] = memory.data.indices
        return tensors


class Memory:
    """The importances of one part of the data, from epoch `since`, which only sets them."""

    def __init__(self, data: Data, since: int, device: torch.device) -> None:
        self.data, self.since = data, since
        self.sampler = Sampler(torch.zeros(len(data), dtype=torch.float64, device=device))
        self._seen = torch.zeros(len(data), dtype=torch.bool, device=device)
        self._complete = False
        self._updates = 0
        self._repeats = torch.zeros((), dtype=torch.long, device=device)
        size, indices = len(data.store), data.indices.to(device)
        self._position = None  # of a sample of the set in this part; None: the part is the set
        if not torch.equal(indices, torch.arange(size, device=device)):
            self._position = torch.zeros(size, dtype=torch.long, device=device)
            self._position[indices] = torch.arange(len(data), device=device)

    def is_of(self, data: Data) -> bool:
        same = data.store is self.data.store
        return data is self.data or (same and torch.equal(data.indices, self.data.indices))

    def update(self, index: Tensor, scores: Tensor, keep: float) -> None:
        """q := keep·q + (1 − keep)·score for the samples of a batch; of a repeated one the mean of its scores."""
        position = index if self._position is None else self._position[index]
        scores, repeats = average_repeats(position, scores)
        if keep:
            scores = keep * self.sampler.importance[position] + (1 - keep) * scores
        self.sampler.set(position, scores)
        if not self._complete:
            self._seen[position] = True
        self._updates += len(index)
        self._repeats += repeats

    def ready(self) -> None:
        """Before an epoch's first draw: whom the first left out gets the mean. Raises ValueError for bad scores."""
        importance = self.sampler.importance
        if not self._complete:
            seen = importance[self._seen]
            usual = seen.mean() if len(seen) else importance.new_ones(())
            self.sampler.reset(torch.where(self._seen, importance, usual))
            self._complete = True
        self.sampler.check()

    def summary(self) -> dict[str, Any]:
        """Read when the window is closed."""
        importance = self.sampler.importance
        total = importance.sum().item()
        at = torch.tensor(QUANTILES, dtype=torch.float64) * (len(importance) - 1)
        quantiles = importance.sort().values[at.round().long().to(importance.device)]
        return {
            "samples": len(importance),
            "mean_importance": total / len(importance),
            "importance_quantiles": dict(zip(map(str, QUANTILES), quantiles.tolist(), strict=True)),
            # (Σq)²/(N·Σq²): the share of the set that as many equal importances would be
            "effective_share": total**2 / (len(importance) * importance.square().sum().item()) if total else None,
            "repeat_share": self._repeats.item() / max(1, self._updates),  # of scored samples, twice in their batch
            "refused_scores": self.sampler.refused.item(),
        }
