"""The repeated layers of a model of sequences, each of which maps (B, T, D) to as much, and their work on some tokens.

What a layer is given beside its tokens is cut as they are: a mask of attention at its last two dimensions, one of
padding and a token's position at its last. What else has as many entries as there are tokens is unknown, and refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MASKS = frozenset({"attention_mask", "attn_mask", "mask", "src_mask", "tgt_mask"})  # (..., T or 1, T)
PER_TOKEN = frozenset(
    {"src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask", "position_ids", "cache_position"}
)
TOKENS = 1  # the dimension
Choose = Callable[[int], Tensor]  # tokens → positions of those that are kept, in order


class UnknownArgumentError(ValueError):
    """A layer is given something that goes with its tokens, and nobody knows how."""


@dataclass(frozen=True)
class Seen:
    """One call of a layer: the shape of what it was given first, and of what it gave first; None: no tensor."""

    given: tuple[int, ...] | None
    result: tuple[int, ...] | None


def stacks(model: nn.Module) -> Iterator[list[str]]:
    """Names of the layers of each list or sequence of three or more alike."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 2:
            kinds = {type(layer) for layer in module}
            if len(kinds) == 1 and next(module[0].parameters(), None) is not None:
                yield [f"{name}.{child}".removeprefix(".") for child, _ in module.named_children()]


def look(model: nn.Module, names: list[str], run: Callable[[], Any]) -> dict[str, list[Seen]]:
    """What the named layers were called with while `run` ran; what it raises is raised when hooks are gone."""
    seen: dict[str, list[Seen]] = {name: [] for name in names}

    def listen(name: str) -> Callable[..., None]:
        def hear(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = _bound(layer, args, kwargs)
            seen[name].append(Seen(_shape(next(iter(given.arguments.values()), None)), _shape(_first(output))))

        return hear

    hooks = [model.get_submodule(name).register_forward_hook(listen(name), with_kwargs=True) for name in names]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def on_some_tokens(layers: Mapping[str, nn.Module], choose: Choose) -> Iterator[None]:
    """Inside, each of the layers sees some of its tokens, and the others go past it unchanged.

    Args:
        choose: asked once for each call of a layer; all of them: the layer is called as it is
    """
    waiting: dict[nn.Module, list[tuple[Tensor, Tensor] | None]] = {layer: [] for layer in layers.values()}

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = _bound(layer, args, kwargs)
        first, hidden = next(iter(given.arguments.items()))
        tokens = hidden.shape[TOKENS]
        kept = choose(tokens).to(hidden.device)
        if len(kept) == tokens:
            waiting[layer].append(None)
            return None
        waiting[layer].append((hidden, kept))
        others = {name: _cut(name, value, kept, tokens) for name, value in given.arguments.items() if name != first}
        given.arguments.update({first: hidden.index_select(TOKENS, kept), **others})
        return given.args, given.kwargs

    def after(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if (aside := waiting[layer].pop()) is None:
            return None
        hidden, kept = aside
        result = _first(output)
        whole = hidden.to(result.dtype).index_copy(TOKENS, kept, result)
        return whole if isinstance(output, Tensor) else type(output)([whole, *output[1:]])

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers.values()]
    hooks += [layer.register_forward_hook(after, with_kwargs=True) for layer in layers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _bound(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    return inspect.signature(layer.forward).bind(*args, **kwargs)


def _cut(name: str, value: Any, kept: Tensor, tokens: int) -> Any:
    if isinstance(value, dict):  # what a layer collects as **kwargs
        return {key: _cut(key, inner, kept, tokens) for key, inner in value.items()}
    if isinstance(value, (tuple, list)) and any(isinstance(inner, Tensor) for inner in value):
        return type(value)(_cut(name, inner, kept, tokens) for inner in value)
    if not isinstance(value, Tensor) or tokens not in value.shape:
        return value
    if name in PER_TOKEN and value.shape[-1] == tokens:
        return value.index_select(-1, kept)
    if name in MASKS and value.shape[-1] == tokens:
        rows = value.dim() > 1 and value.shape[-2] == tokens
        return (value.index_select(-2, kept) if rows else value).index_select(-1, kept)
    raise UnknownArgumentError(f"its layers are given `{name}` of shape {tuple(value.shape)} with {tokens} tokens")


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else None


def random_tokens(tokens: int, share: float, first: int, generator: torch.Generator) -> Tensor:
    """Positions of a share of the tokens, in order: the `first`, and others drawn alike."""
    first = min(first, tokens)
    kept = tokens_kept(tokens, share, first)
    drawn = torch.randperm(tokens - first, generator=generator)[: kept - first] + first
    return torch.cat([torch.arange(first), drawn.sort().values])


def tokens_kept(tokens: int, share: float, first: int) -> int:
    """How many of them, one at least."""
    return min(tokens, max(1, first, round(share * tokens)))
