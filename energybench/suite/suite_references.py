"""What a suite's patterns and requirements name: nothing, or only what is skipped, is a mistake."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

from energybench.common.errors import Problem, nearest
from energybench.common.name_patterns import matches
from energybench.suite.command_pairing import unpaired
from energybench.suite.command_tables import CommandWorkloadTable
from energybench.suite.node import Node
from energybench.suite.suite_bounds import Sized, too_many_patterns, too_much_work
from energybench.suite.sweep_keys import plain_names
from energybench.suite.tables import RequireTable, WorkloadTable
from energybench.suite.variants import Variant, expand

PATTERN_TABLES = {"skip": "skips", "require": "requires"}  # whose entries name workloads and methods by patterns


class Referring(Sized, Protocol):
    """A suite, as far as its entries name workloads and methods."""

    @property
    def requires(self) -> Sequence[RequireTable]: ...
    def skipped(self, workload: WorkloadTable | CommandWorkloadTable, variant: Variant) -> str | None: ...


def reference_problems(tree: Node, suite: Referring | None) -> list[Problem]:
    """Labels and sweeps; patterns that match nothing; more cells than anyone can mean."""
    if suite is not None and (too_many := too_much_work(tree, suite)):  # first, and without making the variants
        return too_many
    variants, problems = expand(tree)
    problems += too_many_patterns(tree, variants)
    if not problems:
        problems += _unmatched_patterns(tree, variants)
    if suite is not None and not problems:
        problems += unpaired(tree, suite.workloads, variants)
    if suite is not None and not problems:
        problems += _all_skipped(tree, suite, variants)
    return problems


def _unmatched_patterns(tree: Node, variants: Sequence[Variant]) -> Iterator[Problem]:
    """Of each [[skip]] and [[require]] a pattern that fits no workload or no method."""
    workloads = tree.items("workload")
    if not all(entry.text("name") for entry in workloads):
        return
    plain_name_of = plain_names(entry.plain() for entry in workloads)
    names = {
        "workload": [[*pair] for pair in plain_name_of.items()],
        "method": [[variant.label, variant.entry] for variant in variants],
    }
    for (table, verb), (key, known) in itertools.product(PATTERN_TABLES.items(), names.items()):
        for entry in tree.items(table):
            pattern = entry.text(key)
            if pattern and pattern != "*" and not any(matches(pattern, group) for group in known):
                message = f"this {verb} nothing: no {key} matches '{pattern}'"
                hint = nearest(pattern, {name for group in known for name in group})
                yield Problem("E205", message, entry.find([key]).place, hint)


def _all_skipped(tree: Node, suite: Referring, variants: Sequence[Variant]) -> Iterator[Problem]:
    """Requirements that apply to no comparison, and so would always pass."""
    if not suite.requires:
        return
    pairs = [((w.name, w.plain_name), v, suite.skipped(w, v)) for w, v in itertools.product(suite.workloads, variants)]
    for asked, entry in zip(suite.requires, tree.items("require"), strict=True):
        reasons = [reason for names, variant, reason in pairs if asked.fits(names, variant)]
        if None not in reasons:
            message = f"this requires nothing: every comparison that it fits is skipped: {reasons[0]}"
            yield Problem("E205", message, entry.place, "take out the [[skip]], or this [[require]]")
