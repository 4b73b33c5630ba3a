"""What nobody can mean, seen from a suite's text before anything is built: too many entries, trials, epochs, layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from energybench.common.errors import Problem
from energybench.common.limits import MOST_EPOCHS, MOST_LAYERS, SKIPPED_PAIRS, SUITE_ENTRIES
from energybench.suite.command_tables import CommandWorkloadTable
from energybench.suite.node import Node
from energybench.suite.tables import TrialsTable, WorkloadTable
from energybench.suite.variants import MOST_CELLS, Variant, counted, variants_of


class Sized(Protocol):
    """Of a suite, what its size follows from."""

    @property
    def trials(self) -> TrialsTable: ...
    @property
    def workloads(self) -> Sequence[WorkloadTable | CommandWorkloadTable]: ...


def too_many_entries(tree: Node) -> list[Problem]:
    """Arrays of tables that are longer than the limit, since each entry is compared with every other."""
    counts = {key: len(tree.items(key)) for key in ("workload", "method", "skip", "require")}
    return [
        Problem(
            "E207",
            f"this suite has {count:,} [[{key}]]; at most {SUITE_ENTRIES} are allowed",
            tree.find((key,)).place,
            "write several suites",
        )
        for key, count in counts.items()
        if count > SUITE_ENTRIES
    ]


def too_much_work(tree: Node, suite: Sized) -> list[Problem]:
    """What nobody can mean, seen from the text, before anything is built of it."""
    return [*_too_many_trials(tree, suite), *_too_many_layers(tree, suite)]


def _too_many_layers(tree: Node, suite: Sized) -> Iterator[Problem]:
    """A model's layers are listed (widths, channels) or counted (`layers`); others are counted as they are built."""
    for number, workload in enumerate(suite.workloads):
        for key, value in workload.model.parameters.items() if isinstance(workload, WorkloadTable) else ():
            count = len(value) if isinstance(value, list) else value if key == "layers" else 0
            if isinstance(count, int) and count > MOST_LAYERS:
                message = f"{key}: {counted(count)} layers; at most {MOST_LAYERS:,} are allowed"
                place = tree.find(["workload", number, "model", key]).place
                yield Problem("E207", message, place, "fewer layers")


def _too_many_trials(tree: Node, suite: Sized) -> list[Problem]:
    variants = variants_of(tree)
    of_each = (1 + suite.trials.twin + variants) * (suite.trials.blocks_max or suite.trials.blocks)
    count = len(suite.workloads) * of_each
    if variants > MOST_CELLS:  # which `expand` reports
        return []
    place = tree.find(["trials", "blocks"]).place
    if count > MOST_CELLS:
        message = f"this suite has {counted(count)} trials; at most {MOST_CELLS:,} are allowed"
        return [Problem("E207", message, place, "fewer blocks, workloads or sweeps")]
    epochs = of_each * sum(each.train.epochs for each in suite.workloads if isinstance(each, WorkloadTable))
    if epochs > MOST_EPOCHS:
        message = f"the trials of this suite have {counted(epochs)} epochs; at most {MOST_EPOCHS:,} are allowed"
        return [Problem("E207", message, place, "fewer epochs or blocks")]
    return []


def too_many_patterns(tree: Node, variants: Sequence[Variant]) -> Iterator[Problem]:
    """Each [[skip]] and [[require]] is held against every pair of a workload and a variant."""
    patterns, workloads = len(tree.items("skip")) + len(tree.items("require")), len(tree.items("workload"))
    comparisons = patterns * workloads * (1 + len(variants))
    if comparisons > SKIPPED_PAIRS:
        limit = f"at most {SKIPPED_PAIRS:,} are allowed"
        message = f"its skips and requirements would be held against {comparisons:,} pairs; {limit}"
        yield Problem("E207", message, tree.find(["skip"]).place, "fewer of them, or smaller sweeps")
