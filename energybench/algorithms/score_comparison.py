"""How well scores of samples stand for what they shall stand for: the norm of the gradient over all parameters.

Asked of a trained network when the metered window is closed, on some samples of the training set in evaluation mode and
as they are, not augmented. Sampling by a score has the least variance where the score is proportional to that norm
(Katharopoulos and Fleuret 2018, section 3.1): Pearson's correlation is of that, Spearman's of the order alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from energybench.algorithms.sample_scores import Scorer

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

REFERENCE = "parameter-gradient"
MOST_POINTS = 200  # of a picture


def check(run: TrainingRun, scores: Sequence[str], form: str = "analytic") -> None:
    """Raises UsageError E312 for a score, or the reference, that this task or model does not have."""
    for kind in (*scores, REFERENCE):
        Scorer(run, kind, form).close()


def compare(
    run: TrainingRun,
    scores: Sequence[str],
    samples: int,
    form: str = "analytic",
    remembered: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Each score against the reference, for the record.

    Args:
        scores:     kinds of `sample_scores.SCORES`
        samples:    how many, the same of each score, drawn by the run's seed
        form:       of the output's gradient, as Scorer has it
        remembered: other figures of every sample of the training set, (N,), by name

    Returns:
        samples, reference; "correlations": of each score {"pearson", "spearman"}, None where one of the two is the same
        for all samples or is not finite; "scatter": up to 200 pairs of each for a picture.
    """
    drawn = torch.randperm(len(run.data), generator=run.rng("score comparison"))[:samples].sort().values
    scorers = {kind: Scorer(run, kind, form) for kind in (*scores, REFERENCE)}
    found: dict[str, list[Tensor]] = {kind: [] for kind in scorers}
    try:
        for batch in run.data.zipped(()).load(drawn.split(run.recipe.batch)):
            for scorer in scorers.values():
                scorer.listen()
            forward = run.forward(batch, "eval", grad=False)
            for kind, scorer in scorers.items():
                found[kind].append(scorer(run, forward, batch).double().cpu())
    finally:
        for scorer in scorers.values():
            scorer.close()
    values = {kind: torch.cat(pieces) for kind, pieces in found.items()}
    values |= {name: of_all.detach().double().cpu()[drawn] for name, of_all in (remembered or {}).items()}
    reference = values.pop(REFERENCE)
    correlations = {name: _correlations(each, reference) for name, each in values.items()}
    few = torch.linspace(0, len(drawn) - 1, min(len(drawn), MOST_POINTS)).round().long()
    return {
        "samples": len(drawn),
        "reference": REFERENCE,
        "correlations": correlations,
        "scatter": [
            {
                "name": name,
                "against": REFERENCE,
                "rank_correlation": correlations[name]["spearman"],
                "x": _short(reference[few]),
                "y": _short(each[few]),
            }
            for name, each in values.items()
        ],
    }


def _correlations(one: Tensor, other: Tensor) -> dict[str, float | None]:
    return {"pearson": pearson(one, other), "spearman": pearson(ranks(one), ranks(other))}


def pearson(one: Tensor, other: Tensor) -> float | None:
    """Of two (n,); None where one is constant or not finite."""
    both = torch.stack([one, other])
    if both.shape[1] < 2 or not bool(torch.isfinite(both).all()) or bool((both == both[:, :1]).all(1).any()):
        return None
    return torch.corrcoef(both)[0, 1].item()


def ranks(values: Tensor) -> Tensor:
    """From 1, in double precision; equal ones share the mean of their ranks."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts - 1) / 2)[place]


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
