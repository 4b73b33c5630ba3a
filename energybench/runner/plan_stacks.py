"""From a variant of a suite to its methods, built, with every mistake in their names, files and parameters."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

from energybench.common.errors import EnergybenchError, Problem
from energybench.common.renamed import RenamedNameWarning
from energybench.runner.plan_spec import PlanSpec
from energybench.suite.variants import StackItem, Variant
from energybench.train import discovery
from energybench.train.method import Method, parameters
from energybench.trial.spec import MethodSpec

Stack = list[tuple[MethodSpec, Method]]  # outermost first: what rebuilds a method, and the method


def build_stack(spec: PlanSpec, base: Path, variant: Variant) -> tuple[Stack, list[Problem], list[str]]:
    """The methods that can be built, the mistakes of the others, and notes on what their files still call by old names.

    Args:
        base: the folder that a method's path is relative to
    """
    built: Stack = []
    problems: list[Problem] = []
    notes: list[str] = []
    for item in variant.stack:
        try:
            source = discovery.find(item.use, base, spec.where(*item.loc[:2], "use"))
            kind, renamed = _load(source)
            notes += renamed
            method = discovery.build(kind, source.name, item.parameters, partial(_parameter_place, spec, item))
        except EnergybenchError as error:
            problems += error.problems
            continue
        rebuilt = MethodSpec(
            use=source.name,
            name=source.name,
            path=str(source.path),
            origin=source.origin,
            class_name=source.class_name,
            sha256=source.sha256,
            parameters=item.parameters,
            resolved=parameters(method),
        )
        built.append((rebuilt, method))
    return built, problems, notes


def _load(source: discovery.Source) -> tuple[type[Method], list[str]]:
    """The method's class, and a note on each name that its file still uses and that is another now."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind = discovery.load(source)
    renamed = [each.message for each in caught if issubclass(each.category, RenamedNameWarning)]
    return kind, [f"{source.path.name}: {message}" for message in renamed]


def _parameter_place(spec: PlanSpec, item: StackItem, key: str) -> str:
    """Where a parameter stands, or else its method's table."""
    return spec.where(*item.loc, key) if key in item.parameters else spec.where(*item.loc)
