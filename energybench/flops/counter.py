"""An independent counter of the FLOPs that really run, for counting runs. It shares no code with the ledger.

A dispatch mode sees every operator of forward and backward, inside custom autograd Functions too. Each is one of

    priced     by a formula: `formulas.py`, or one registered with torch.utils.flop_counter.register_flop_formula
    free       by the convention: `free_operators.py`
    opened     it is made of others, which are seen one by one: composites, control flow, tensor subclasses
    uncounted  anything else, with its calls: unknown is never free

What does not pass torch's dispatcher is watched where Python can watch it: a Triton kernel that is launched, a CUDA
graph that is replayed. Not seen at all: other threads, NumPy, and an extension that calls a library by itself.

Beside torch's `FlopCounterMode` (torch 2.13), whose faults tests/flops shows one by one:

- attention's inference fast path hides whole layers; it is switched off while counting
- compiled code would be opaque; while counting it runs eagerly, which computes the same products
- its module tracker keeps a hook for every module call until the end, so memory grows with the steps; we use none

Run it unmetered: it costs a Python call per operator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from energybench.flops.formulas import FORMULAS
from energybench.flops.free_operators import LISTED, is_free
from energybench.flops.outside_dispatch import Watch
from energybench.flops.unpriced import matrix_operators

# Torch's kernels of these are made of other operators, without saying so: run with the mode on, they are seen.
_MADE_OF_OTHERS = """
    _euclidean_dist _cdist_forward _trilinear affine_grid_generator linalg_pinv linalg_matrix_exp
"""
_OPENED = frozenset(f"aten.{name}" for name in _MADE_OF_OTHERS.split())
# A subclass of Tensor answers these itself, and a mode must leave them to it.
_OF_SUBCLASSES = """
    is_contiguous is_strides_like_format is_non_overlapping_and_dense size stride storage_offset numel dim
    sym_is_contiguous sym_size sym_stride sym_storage_offset sym_numel
"""
_LEFT_ALONE = frozenset(f"aten.{name}" for name in _OF_SUBCLASSES.split()) | {"prim.layout", "prim.device"}


class Counter:
    """Counts what runs inside `with Counter() as counter:`, backward included.

    The totals may be read at any time, so a caller can attribute differences to steps:

        before = counter.total
        step(batch)
        cost = counter.total - before

    They stay readable after the block, and entering again goes on from them.

    by_op:     FLOPs by operator: {"aten.convolution": 118013952, ...}
    uncounted: calls of operators that do work which is not counted, by name: {"aten.topk": 3, "mylib.my_op": 12}

    Raises:
        RuntimeError: when it is entered while it counts, or paused while it does not.
    """

    def __init__(self) -> None:
        self.by_op: dict[str, int] = {}
        self.uncounted: dict[str, int] = {}
        self._watch = Watch(self.by_op, self.uncounted)
        self._mode = _Mode(self.by_op, self.uncounted, self._watch)
        self._counting = False
        self._eager: AbstractContextManager[Any] = nullcontext()
        self._fastpath = True

    @property
    def total(self) -> int:
        """FLOPs so far."""
        return sum(self.by_op.values())

    @property
    def unpriced_matrix(self) -> dict[str, int]:
        """Those of `uncounted` that may hide products: with them, the total is not the whole."""
        return {name: self.uncounted[name] for name in matrix_operators(self.uncounted)}

    def __enter__(self) -> Counter:
        if self._counting:
            raise RuntimeError("this Counter is already counting")
        self._fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        torch.backends.mha.set_fastpath_enabled(self._fastpath)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is neither counted nor slowed: no mode is active."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def _start(self) -> None:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            self._eager = torch.compiler.set_stance("force_eager")
        self._eager.__enter__()
        self._watch.start()
        self._mode.__enter__()
        self._counting = True

    def _stop(self) -> None:
        if not self._counting:
            raise RuntimeError("this Counter is not counting")
        self._mode.__exit__(None, None, None)
        self._counting = False
        self._watch.stop()
        self._eager.__exit__(None, None, None)
        self._eager = nullcontext()


Price = Callable[[Sequence[Any], Mapping[str, Any], Any], "int | None"]
Handler = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]


def _leave(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return NotImplemented


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return func(*args, **kwargs)


class _Mode(TorchDispatchMode):
    """While a handler runs, the mode is off; `with self` turns it on again."""

    supports_higher_order_operators = True

    def __init__(self, flops: dict[str, int], uncounted: dict[str, int], watch: Watch) -> None:
        super().__init__()
        self._flops, self._uncounted, self._watch = flops, uncounted, watch
        self._handlers: dict[Any, Handler] = {}
        self._prices: dict[Any, Price] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = self._handler(func)
        if (
            types
            and handler is not _leave
            and any(map(_is_subclass, types))
            and not torch._C._len_torch_dispatch_stack()
        ):
            return self._of_a_subclass(func, types, args, kwargs or {}, handler)
        return handler(func, args, kwargs or {})

    # ── which handler an operator has: found once for each of its overloads ─────────────────────────────────────

    def _handler(self, func: Any) -> Handler:
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._higher_order_handler(func)
        packet = func._overloadpacket
        name = str(packet)
        if name in _LEFT_ALONE:
            return _leave
        if not isinstance(func, torch._ops.OpOverload) or not _dispatches(func):
            return _run
        if _has_kernel(func, torch._C.DispatchKey.CompositeImplicitAutograd):
            return self._composite
        price = _price(packet, name)
        if price is not None:
            self._prices[func] = price
            return self._priced
        if name in _OPENED:
            return self._opened
        if name not in LISTED and is_free(packet):
            return _run
        return self._listed

    def _higher_order_handler(self, func: Any) -> Handler:
        if func.name().startswith("triton_kernel_wrapper"):
            return self._triton
        registered = flop_counter.flop_registry.get(func)
        if registered is not None:
            self._prices[func] = _registered(registered)
            return self._priced
        return self._with_subgraphs

    # ── handlers ────────────────────────────────────────────────────────────────────────────────────────────────

    def _enter(self, func: Any, flop: int | None) -> None:
        """FLOPs of a call, or a call that has no price."""
        if flop is None:
            self._list(func)
        else:
            name = _name(func)
            self._flops[name] = self._flops.get(name, 0) + flop

    def _list(self, func: Any) -> None:
        name = _name(func)
        self._uncounted[name] = self._uncounted.get(name, 0) + 1

    def _priced(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with self._watch.away():  # a kernel of its own is in the price
            result = func(*args, **kwargs)
        try:
            flop = self._prices[func](args, kwargs, result)
        except Exception:  # a layout or a shape that the formula does not know: the call is listed instead
            flop = None
        self._enter(func, flop)
        return result

    def _listed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._list(func)
        with self._watch.away():  # a kernel of its own is said by its name
            return func(*args, **kwargs)

    def _composite(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if any(isinstance(x, Tensor) and x.is_nested and x.layout == torch.strided for x in args):
            return self._listed(func, args, kwargs)  # nested tensors have kernels of their own
        with self:
            return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)

    def _opened(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the kernel itself with the mode on; where nothing with a price is seen in it, the call is listed."""
        key = _kernel_of(func, args)
        if key is None:
            return self._listed(func, args, kwargs)
        before = sum(self._flops.values())
        with self:
            result = func._op_dk(key, *args, **kwargs)
        if sum(self._flops.values()) == before:
            self._list(func)
        return result

    def _of_a_subclass(
        self, func: Any, types: Any, args: Sequence[Any], kwargs: Mapping[str, Any], handler: Handler
    ) -> Any:
        """A subclass of Tensor that takes operators apart: what it calls is counted, not what it was called with.

        One that calls nothing which is seen is counted by what it was called with.
        """
        before = sum(self._flops.values()), sum(self._uncounted.values())
        for kind in filter(_is_subclass, types):
            with self:
                result = kind.__torch_dispatch__(func, types, tuple(args), dict(kwargs))
            if result is not NotImplemented:
                if (sum(self._flops.values()), sum(self._uncounted.values())) == before:
                    self._unseen(func, args, kwargs, result)
                return result
        return handler(func, args, kwargs)

    def _unseen(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """A subclass has computed this where nobody saw it."""
        if func in self._prices:
            try:
                self._enter(func, self._prices[func](args, kwargs, result))
            except Exception:
                self._list(func)
        elif self._handlers[func] not in (_run, _leave):
            self._list(func)

    def _with_subgraphs(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Control flow: the functions that it is given run with the mode on, so what really runs is counted."""
        seen = False

        def opened(leaf: Any) -> Any:
            nonlocal seen
            if not _is_subgraph(leaf):
                return leaf
            seen = True

            def run(*inner: Any, **options: Any) -> Any:
                with self:
                    return leaf(*inner, **options)

            return run

        args, kwargs = pytree.tree_map(opened, (tuple(args), dict(kwargs)))
        if not seen:
            return self._listed(func, args, kwargs)
        return func(*args, **kwargs)

    def _triton(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A kernel behind torch's wrapper is launched by the same `run` that is watched."""
        return func(*args, **kwargs)


def _name(func: Any) -> str:
    """As it is listed: "aten.mm", "higher_order.scan"."""
    return (
        f"higher_order.{func.name()}" if isinstance(func, torch._ops.HigherOrderOperator) else str(func._overloadpacket)
    )


def _price(packet: Any, name: str) -> Price | None:
    """Ours, or one that was registered for an operator which we do not price."""
    formula = FORMULAS.get(name)
    if formula is not None:
        return lambda args, kwargs, result: formula(*args, **kwargs, result=_first(result))
    registered = flop_counter.flop_registry.get(packet)
    return None if registered is None else _registered(registered)


def _registered(formula: Callable[..., Any]) -> Price:
    return lambda args, kwargs, result: int(formula(*args, **kwargs, out_val=result))


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) and result else result


def _is_subclass(kind: Any) -> bool:
    """Of Tensor, that takes operators apart; torch's own stand-ins for tensors do not."""
    return kind not in _NO_SUBCLASSES and kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


_NO_SUBCLASSES = frozenset(
    {
        *(Tensor, torch.nn.Parameter, torch._subclasses.fake_tensor.FakeTensor),
        torch._subclasses.functional_tensor.FunctionalTensor,
    }
)


def _is_subgraph(leaf: Any) -> bool:
    return callable(leaf) and not isinstance(leaf, (Tensor, type, torch._ops.OperatorBase)) and _plain(leaf)


def _plain(leaf: Any) -> bool:
    """A function or a graph; an object that is only callable, such as compiled code, is not looked into."""
    return isinstance(leaf, torch.nn.Module) or hasattr(leaf, "__code__") or hasattr(leaf, "func")


def _dispatches(func: Any) -> bool:
    """False for what only the interpreter of TorchScript knows."""
    return torch._C._dispatch_has_kernel(func.name())


def _has_kernel(func: Any, key: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _kernel_of(func: Any, args: Sequence[Any]) -> Any:
    """The dispatch key of an operator's kernel for these operands; None where it is not to be had."""
    keys = torch._C.DispatchKey
    for composite in (keys.CompositeExplicitAutograd, keys.CompositeExplicitAutogradNonFunctional):
        if _has_kernel(func, composite):
            return composite
    device = next((x.device.type for x in args if isinstance(x, Tensor)), "meta")
    key = getattr(keys, device.upper(), None)
    return key if key is not None and _has_kernel(func, key) else None
