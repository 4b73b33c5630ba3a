"""Which methods apply to which workloads where some of them are commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from energybench.common.errors import Problem, nearest
from energybench.suite.command_tables import CommandWorkloadTable, fill
from energybench.suite.node import Node
from energybench.suite.tables import WorkloadTable
from energybench.suite.variants import Variant

AnyWorkload = WorkloadTable | CommandWorkloadTable


def unlike(workload: AnyWorkload, variant: Variant) -> str | None:
    """Why a method cannot run on a workload; None where it can: commands replace commands, methods train models."""
    if isinstance(workload, WorkloadTable):
        return None if variant.command is None else "a command cannot change a training of energybench's loop"
    if variant.command is None:
        return "the workload is a command, which a method of energybench's loop cannot change"
    command = variant.command_for(workload.name, workload.plain_name)
    return None if command else "it has no command for this workload"


def unpaired(tree: Node, workloads: Sequence[AnyWorkload], variants: Sequence[Variant]) -> Iterator[Problem]:
    """Commands for workloads that are not commands; methods that apply to no workload; one command for two workloads
    whose own commands differ."""
    commands = {w.name: w for w in workloads if isinstance(w, CommandWorkloadTable)}
    known = {name for w in commands.values() for name in (w.name, w.plain_name)}
    reported = set[tuple[str, str]]()
    for variant in variants:
        command, place = variant.command, tree.find((*variant.loc, "command"))
        for name in command if isinstance(command, dict) else ():
            if name not in known and (variant.entry, name) not in reported:
                reported.add((variant.entry, name))
                hint = nearest(name, known) or 'only a [[workload]] with command = "..." has one'
                message = f"no workload that is a command is named '{name}'"
                yield Problem("E205", message, place.find([name]).place, hint)
        if all(unlike(workload, variant) for workload in workloads) and not isinstance(command, dict):
            message = f"'{variant.label}' fits no workload here: {unlike(workloads[0], variant)}"
            hint = 'a method of the loop has use = "...", a method of a command has command = "..."'
            yield Problem("E205", message, place.place, hint)
        if isinstance(command, str):
            yield from _same_for_all(commands, variant, place.place)


def _same_for_all(commands: dict[str, CommandWorkloadTable], variant: Variant, place: str) -> Iterator[Problem]:
    assert isinstance(variant.command, str)
    seen: dict[tuple[str, ...], str] = {}
    for name, workload in commands.items():
        words = tuple(fill(variant.command, {**workload.options, **variant.values}))
        first = seen.setdefault(words, name)
        own_words = [fill(commands[each].command, commands[each].options) for each in (first, name)]
        if own_words[0] != own_words[1]:
            message = f"'{variant.label}' would hold one command against two workloads, '{first}' and '{name}'"
            hint = f'command = {{ {first} = "...", {name} = "..." }}, or tell them apart by {{options}}'
            yield Problem("E205", message, place, hint)
            return
