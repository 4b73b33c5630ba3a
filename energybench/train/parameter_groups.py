"""Learning rates by name: `[train] lr_multipliers = { "backbone.*" = 0.1 }`, as groups of an optimizer's parameters.

A pattern of `*` and `?` is held against the names of the model's parameters as it was built, before a method changes
it; `*` goes past dots. The schedule stays: a group's rate is the run's, times its multiplier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.name_patterns import matches

if TYPE_CHECKING:
    from energybench.train.method import Method

KEY = "lr_multiplier"  # of a group


class Multipliers:
    """Of one run. False where the recipe has none.

    Args:
        model: as it was built
        patterns: pattern of names → multiple of the learning rate

    Raises:
        UsageError: as `multipliers_of` does.
    """

    def __init__(self, model: nn.Module, patterns: Mapping[str, float]) -> None:
        self._model, self._patterns = model, patterns
        self._found = dict.fromkeys(model.parameters(), 1.0) | multipliers_of(model, patterns) if patterns else {}
        self._asked = False

    def __bool__(self) -> bool:
        return bool(self._patterns)

    @property
    def unheard(self) -> bool:
        """There are some, and nobody has asked for one."""
        return bool(self._patterns) and not self._asked

    def of(self, parameter: nn.Parameter) -> float:
        """1 where no pattern fits it."""
        self._asked = True
        if self._patterns and parameter not in self._found:  # made since, and found by its name then
            for name, each in self._model.named_parameters():
                fitting = (multiplier for pattern, multiplier in self._patterns.items() if matches(pattern, [name]))
                self._found.setdefault(each, next(fitting, 1.0))
        return self._found.get(parameter, 1.0)


def multipliers_of(model: nn.Module, patterns: Mapping[str, float]) -> dict[nn.Parameter, float]:
    """The multiplier of each parameter that a pattern fits; others have 1.

    A parameter under several names, a tied weight, is fitted by each of them.

    Raises:
        UsageError: E410 for a pattern that fits no name, and for a parameter that two patterns give two multipliers.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    found: dict[nn.Parameter, tuple[str, float]] = {}
    problems = []
    for pattern, multiplier in patterns.items():
        fitting = [(name, parameter) for name, parameter in named if matches(pattern, [name])]
        if not fitting:
            problems.append(_fits_nothing(pattern, [name for name, _ in named]))
        for name, parameter in fitting:
            other, before = found.setdefault(parameter, (pattern, multiplier))
            if before != multiplier:
                message = f"'{name}' is fitted by '{other}' and by '{pattern}', and has one learning rate"
                hint = "patterns that leave each other's names out, or one multiplier for both"
                problems.append(Problem("E410", message, "", hint))
                break
    if problems:
        raise UsageError(problems)
    return {parameter: multiplier for parameter, (_, multiplier) in found.items()}


def _fits_nothing(pattern: str, names: list[str]) -> Problem:
    hint = f"such as {names[0]}" if names else "the model has no parameters"
    if any(name.startswith(f"{pattern}.") for name in names):
        hint = f'did you mean "{pattern}.*"?'
    elif names:
        modules = {f"{name.rpartition('.')[0]}.*" for name in names if "." in name}
        close = nearest(pattern, {*names, *modules})
        hint = close if close.startswith("did you mean") else hint  # and no list of hundreds
    return Problem("E410", f"lr_multipliers: no parameter of the model has a name like '{pattern}'", "", hint)


def deaf(layers: Sequence[Method]) -> UsageError:
    """What is raised where an update is over and nobody has asked for a multiplier. layers: innermost first."""
    owner = next((layer.name for layer in layers if "update" in layer.replaces), layers[0].name)
    message = f"'{owner}' replaces `update` and takes no notice of the recipe's lr_multipliers"
    hint = "multiply run.lr(part) by run.lr_multiplier(parameter) in it, or [[skip]] this pair"
    return UsageError(Problem("E325", message, "", hint))


def described(multipliers: Mapping[nn.Parameter, float]) -> str:
    """One line for the plan: how many tensors and numbers learn at which multiple of the rate."""
    by_multiplier: dict[float, list[nn.Parameter]] = {}
    for parameter, multiplier in multipliers.items():
        by_multiplier.setdefault(multiplier, []).append(parameter)
    parts = [
        f"× {multiplier:g} for {sum(p.numel() for p in those):,} parameters in {_tensors(len(those))}"
        for multiplier, those in sorted(by_multiplier.items())
    ]
    return ", ".join(parts)


def _tensors(count: int) -> str:
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def split_groups(optimizer: Optimizer, multiplier: Callable[[nn.Parameter], float]) -> None:
    """Let every group of an optimizer hold parameters of one multiplier alone, which the group says under `KEY`."""
    groups = [part for group in optimizer.param_groups for part in _parts(group, multiplier)]
    optimizer.param_groups[:] = groups  # in place: a wrapper may share the list


def _parts(group: dict[str, Any], multiplier: Callable[[nn.Parameter], float]) -> Iterator[dict[str, Any]]:
    by_multiplier: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        by_multiplier.setdefault(multiplier(parameter), []).append(parameter)
    if len(by_multiplier) < 2:
        group[KEY] = next(iter(by_multiplier), 1.0)
        yield group
        return
    for value, parameters in by_multiplier.items():
        yield {**group, "params": parameters, KEY: value}
