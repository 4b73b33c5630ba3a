"""Whether what measures and judges is still what it was before any method was loaded.

In one process nothing can be locked away from a method. So a picture is taken first: which functions the clock, torch's
losses and tensors, the loop, the meters and the task consist of. What was replaced meanwhile is named, and the trial is
no trial (flag `patched`). What torch wraps itself, when it compiles for the first time, is told from that by the code
in its own files. What is beyond this picture is seen from outside: by the guard, and by the counting run.
"""

from __future__ import annotations

import functools
import importlib.util
import resource
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional
import torch.optim.optimizer

from energybench.train.method import Task
from energybench.train.recipe import Recipe

# What of a module or a class is code; data of theirs may change as they like.
CODE = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.GetSetDescriptorType, classmethod, staticmethod, property, functools.cached_property, type),
)
FOREIGN = (time, resource, torch.nn.functional, torch.Tensor, torch.nn.Module, torch.optim.Optimizer)
OF_TORCH = ("zeros", "no_grad", "enable_grad", "set_grad_enabled", "manual_seed", "stack", "cat", "argmax", "sum")


class Picture:
    """What the code was; `replaced` says what is not it any more.

    Args:
        task:   whose functions judge
        recipe: whose optimizer trains
    """

    def __init__(self, task: Task, recipe: Recipe) -> None:
        optimizer = type(recipe.build_optimizer([torch.nn.Parameter(torch.zeros(1))]))
        self._task, self._kind = task, type(task)
        self._owners: dict[str, Any] = {_name(owner): owner for owner in (*FOREIGN, optimizer)}
        self._owners |= {_name(kind): kind for kind in self._kind.__mro__ if kind is not object}
        for name, module in sorted(sys.modules.items()):
            if name.startswith("energybench.") and isinstance(module, types.ModuleType):
                self._owners[name] = module
                self._owners |= {
                    f"{name}.{each}": value
                    for each, value in vars(module).items()
                    if isinstance(value, type) and value.__module__ == name
                }
        for owner in self._owners.values():
            if isinstance(owner, type) and issubclass(owner, torch.optim.Optimizer):
                _wrap_step(owner)
        self._seen = {name: _code(owner) for name, owner in self._owners.items()}
        self._inherited = {name: _inherited(owner) for name, owner in self._owners.items() if isinstance(owner, type)}
        self._torch = {name: getattr(torch, name) for name in OF_TORCH}

    def replaced(self) -> Iterator[str]:
        """Names of what is other code now, or new on a class of torch's that had it from a parent."""
        for name, before in self._seen.items():
            now = _code(self._owners[name])
            for each in before:
                if now.get(each) is not before[each] and not _wrapped_by_torch(now.get(each), before[each]):
                    yield f"{name}.{each}"
            if isinstance(self._owners[name], type):
                from_parents = self._inherited[name]
                for each in now.keys() - before.keys() - {*ADDED_BY_PYTHON}:
                    if each not in from_parents or not _wrapped_by_torch(now[each], from_parents[each]):
                        yield f"{name}.{each}"
        yield from (f"torch.{name}" for name, value in self._torch.items() if getattr(torch, name, None) is not value)
        if type(self._task) is not self._kind:
            yield "the task's class"
        own = vars(self._task)
        yield from (f"task.{name}" for name in own if callable(getattr(self._kind, name, None)))


ADDED_BY_PYTHON = ("__abstractmethods__", "__signature__", "__annotations_cache__", "__annotate_func__")


def _wrap_step(kind: type[torch.optim.Optimizer]) -> None:
    """As torch does it when the first optimizer of a kind is made: a method makes its own after the picture."""
    if not getattr(kind.step, "hooked", False):
        step = torch.optim.Optimizer.profile_hook_step(kind.step)
        step.hooked = True  # type: ignore[attr-defined]
        kind.step = step  # type: ignore[method-assign]


# Where torch makes its wrappers, when something is compiled for the first time in a process: around the functions that
# make a module, and around those of optimizers that are not compiled.
WRAPPERS = {"torch._dynamo.mutation_guard": {"patched_init", "patched_setstate"}, "torch._dynamo.eval_frame": {"_fn"}}


def _wrapped_by_torch(now: Any, before: Any) -> bool:
    """Whether `now` calls `before` from a wrapper of torch's compiler: by the code in torch's file, not by what the
    function says of itself or what stands in torch's modules by now."""
    if not isinstance(now, types.FunctionType):
        return False
    module = str(now.__globals__.get("__name__"))
    if module not in WRAPPERS or now.__globals__ is not vars(sys.modules.get(module, types)):
        return False
    if now.__code__.co_name not in WRAPPERS[module] or now.__code__ not in _codes_in_file(module):
        return False
    inside = [cell.cell_contents for cell in now.__closure__ or ()]
    return any(each is before or _wrapped_by_torch(each, before) for each in inside)  # what a parent has, wrapped twice


def _codes_in_file(module: str) -> Iterator[types.CodeType]:
    """Of every function in a module's file, however deep it stands, as Python compiles it."""
    spec = importlib.util.find_spec(module)
    loader: Any = spec.loader if spec else None
    waiting = [loader.get_code(module)] if hasattr(loader, "get_code") else []
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]


def _name(owner: Any) -> str:
    return owner.__name__ if isinstance(owner, types.ModuleType) else f"{owner.__module__}.{owner.__qualname__}"


def _inherited(kind: type) -> dict[str, Any]:
    """What a class has from its parents."""
    return {name: value for parent in reversed(kind.__mro__[1:]) for name, value in _code(parent).items()}


def _code(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in list(vars(owner).items()) if isinstance(value, CODE)}
