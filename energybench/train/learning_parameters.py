"""Which parameters of a run learn: listed part by part, with those that are released or made while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEFT_OUT = "the task's `parameters` leaves it out"  # by choice: no reason to doubt, and a price all the same


@dataclass(frozen=True, slots=True)
class Released:
    """A parameter that did not learn when its part was listed: its length ‖θ‖ () and the updates when it joined."""

    parameter: nn.Parameter
    length: Tensor
    updates: int

    def stands_still(self, updates: int) -> bool:
        """Whether none of the updates since has moved it."""
        return updates > self.updates and torch.equal(_length(self.parameter), self.length)


class LearningParameters:
    """Of one run.

    Args:
        every: all parameters of a part, whether they learn or not, as the task names them
        joined: told of a part and of those that have joined its list, after the first listing
        updates: how many the run has made
    """

    def __init__(
        self,
        every: Callable[[str], Iterable[nn.Parameter]],
        joined: Callable[[str, list[nn.Parameter]], None],
        updates: Callable[[], int],
    ) -> None:
        self._every, self._joined, self._updates = every, joined, updates
        self._lists: dict[str, list[nn.Parameter]] = {}
        self._frozen: dict[str, list[nn.Parameter]] = {}  # those that have not learned yet
        self._released: list[Released] = []

    def of(self, part: str) -> list[nn.Parameter]:
        """Those that learn or have learned: what is frozen later stays, what is released later is added at the end."""
        if part not in self._lists:
            every = list(self._every(part))
            self._lists[part] = [p for p in every if p.requires_grad]
            self._frozen[part] = [p for p in every if not p.requires_grad]
        if self._frozen[part]:
            self._admit_released(part)
        return self._lists[part]

    def list_new(self) -> None:
        """What the parts have since they were listed: a method may grow a model, or put in another parameter."""
        for part, listed in self._lists.items():
            known = {*listed, *self._frozen[part]}
            self._frozen[part] += [p for p in self._every(part) if p not in known]
            self.of(part)  # those that learn join as if they had been released

    def _admit_released(self, part: str) -> None:
        released = [p for p in self._frozen[part] if p.requires_grad]
        if not released:
            return
        self._frozen[part] = [p for p in self._frozen[part] if not p.requires_grad]
        self._lists[part] += released
        self._released += [Released(p, _length(p), self._updates()) for p in released]
        self._joined(part, released)

    def untrained(self, model: nn.Module, parts: Sequence[str]) -> dict[str, str]:
        """Names of parameters that got a gradient and stood still, each with the reason: asked when a run is over.

        A gradient of zeros moves nothing, whoever is told of it.
        """
        listed = {parameter for part in parts for parameter in self.of(part)}
        named = {parameter for part in parts for parameter in self._every(part)}
        still = {each.parameter for each in self._released if each.stands_still(self._updates())}
        found: dict[str, str] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or parameter.grad is None or not _numbers(parameter.grad).any():
                continue
            if parameter not in named:
                found[name] = LEFT_OUT
            elif parameter not in listed:
                found[name] = "it was made after the last epoch had begun"
            elif parameter in still:
                found[name] = "the optimizer took no notice of its release"
        return found


def _numbers(gradient: Tensor) -> Tensor:
    return gradient._values() if gradient.is_sparse else gradient


def _length(parameter: nn.Parameter) -> Tensor:
    return torch.linalg.vector_norm(parameter.detach(), dtype=torch.promote_types(parameter.dtype, torch.float64))
