"""What can be said against one method before anything runs: hooks that would be called wrongly or never. No torch.

A method that overrides a hook wrongly would otherwise show as one that saves nothing, or as accuracy. Asked by
`check_stack`, so by `energybench check` and `run`, and by every Run.

    E316 parameters that a hook is not called with      E320 a generator or coroutine, whose body would never run
    E317 a name that is nearly a member's               E321 a hook that gives nothing where something is wanted
    E318 `inner` is never used, and `replaces` has      E322 a field or attribute in place of a member
         not said so                                    E323 what a hook gave, while it runs (run.py)
    E319 words that no declaration knows
"""

from __future__ import annotations

import dis
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import CodeType
from typing import Any

from energybench.common.errors import Problem, nearest
from energybench.train.method import HOOKS, RENAMED, Method, Task, overrides

PASSES = ("forward", "backward")
WORDS = {
    "replaces": HOOKS,
    "enters": HOOKS,
    "needs": (*PASSES, "per_sample_loss"),
    "runs": PASSES,
    "swaps": ("conv", "linear"),
}
DECLARATIONS = (
    *(*WORDS, "gap_because", "trains_less", "swaps_unless", "example", "acted", "differs_on_devices"),
    *("trains_in", "passes_differ", "compiles", "by_epoch"),
)
# Members that never give None.
GIVING = (
    *("batches", "gradients", "optimizer", "prepare_inputs", "forward_context", "eval_context"),
    *("estimate", "diagnostics", "saved_tensors", "lr_factor", "card_settings"),
)
AFFIXES = re.compile(
    r"^(on|at|do|run|before|after|pre|post|begin|end|train|training|compute|get)_|_(hook|start|end|begin)$"
)


def members(kind: type) -> dict[str, Callable[..., Any]]:
    """The methods of Method, or of Task for a task: what a class may override."""
    base = Task if issubclass(kind, Task) else Method
    return {
        name: value
        for owner in (Method, base)
        for name, value in vars(owner).items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in RENAMED
    }


def check_method(method: Method, where: str = "", provided: frozenset[str] = frozenset()) -> list[Problem]:
    """What can be said against one method or task as it was built, whatever it is stacked with.

    Args:
        where: where a suite names it: "mine.toml:14:1".
        provided: what the task provides, which `needs` may name beside the usual words.

    Returns:
        One problem for each mistake, E316 to E322; none for a method that keeps the contract.
    """
    known = members(type(method))
    overridden = [name for name in known if getattr(type(method), name) is not _default(type(method), name)]
    sound = [name for name in overridden if callable(getattr(type(method), name))]
    findings = [
        *_hidden_members(method, known),
        *(finding for name in sound for finding in _wrong_hook(method, name, known[name])),
        *_nearly_members(method, known),
        *_unknown_words(method, {**WORDS, "needs": (*WORDS["needs"], *provided)}),
    ]
    return [Problem(code, f"'{method.name}' {message}", where, hint) for code, message, hint in findings]


Finding = tuple[str, str, str]  # code, what is said of the method, hint


def _default(kind: type, name: str) -> Any:
    return getattr(Task if issubclass(kind, Task) else Method, name)


# ── one hook ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _wrong_hook(method: Method, name: str, default: Callable[..., Any]) -> Iterator[Finding]:
    function = getattr(type(method), name)
    wanted = list(inspect.signature(default).parameters)[1:]
    call = f"`{name}({', '.join(wanted)})`"
    if (named := _parameters(method, name)) is not None:
        try:
            named.bind(*wanted)
        except TypeError:
            written = ", ".join(map(str, named.parameters.values()))
            yield (
                "E316",
                f"has `{name}({written})`, which is called as {call}",
                f"write: def {name}(self, {', '.join(wanted)})",
            )
            return
        places = [parameter for parameter in named.parameters if parameter in wanted]
        if places != [parameter for parameter in wanted if parameter in places]:
            yield "E316", f"takes the parameters of `{name}` in another order: it is called as {call}", "by position"
    if kind := _runs_late(name, function):
        hint = "leave out the `yield`" if kind == "generator" else "write `def`, without `async`"
        if name.endswith("_context"):
            hint = "put @contextlib.contextmanager before it"
        yield "E320", f"makes `{name}` a {kind}, whose body would never run when it is called", hint
        return
    code = _code(function)
    if code is None:
        return
    results = list(_results(code))
    if name in HOOKS and name not in _replaced(method) and results and not _uses(code, wanted.index("inner") + 1):
        hint = f'call `inner(…)` in it, or declare: replaces = frozenset({{"{name}"}})'
        yield "E318", f"never uses `inner` in `{name}`: layers further in and the default would not run", hint
    if name in GIVING and results and not any(results):
        inner = "inner(…), or what stands for it" if "inner" in wanted else f"what `{name}` must give"
        yield "E321", f"returns nothing from `{name}`", f"write: return {inner}"


def _replaced(method: Method) -> set[str]:
    """As it was meant: what is no set is told elsewhere."""
    return {method.replaces} if isinstance(method.replaces, str) else set(method.replaces or ())


def _parameters(method: Method, name: str) -> inspect.Signature | None:
    """Of the hook as it is called, without `self`; None where nobody can tell."""
    hook = getattr(method, name)
    function = getattr(hook, "__func__", None)
    try:
        if function is None:
            return inspect.signature(hook, follow_wrapped=False)
        signature = inspect.signature(_called(function), follow_wrapped=False)
    except (TypeError, ValueError):  # a builtin tells none
        return None
    parameters = list(signature.parameters.values())
    bound = parameters[:1] if parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL else []
    return signature.replace(parameters=parameters[len(bound) :])


def _runs_late(name: str, function: Any) -> str:
    """Of what kind a function is whose call runs none of its body; "" for one that is run by its call."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return "coroutine"
    return "generator" if inspect.isgeneratorfunction(function) and name not in ("batches", "parameters") else ""


def _called(function: Any) -> Any:
    """The function under decorators that hand everything on, such as torch.no_grad()."""
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_VARARGS and hasattr(function, "__wrapped__"):
        return _called(function.__wrapped__)
    return function


def _code(function: Any) -> CodeType | None:
    """None where there is none to be read."""
    return getattr(_called(function), "__code__", None)


def _uses(code: CodeType, position: int) -> bool:
    """Whether a function reads its parameter at `position`, itself or in a function inside; True where nobody knows."""
    if position >= code.co_argcount or "locals" in code.co_names:  # it comes by *args
        return True
    name = code.co_varnames[position]
    if name in code.co_cellvars:
        return True
    return any(
        "LOAD" in instruction.opname  # STORE_FAST_LOAD_FAST too
        and (instruction.argval == name or (isinstance(instruction.argval, tuple) and name in instruction.argval))
        for instruction in dis.get_instructions(code)
    )


def _results(code: CodeType) -> Iterator[bool]:
    """For every way out of a function but an error, whether it gives anything but None."""
    if code.co_flags & inspect.CO_GENERATOR:
        yield True
        return
    before: dis.Instruction | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "RETURN_CONST":
            yield instruction.argval is not None
        elif instruction.opname == "RETURN_VALUE":
            yield before is None or before.opname != "LOAD_CONST" or before.argval is not None
        before = instruction


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _hidden_members(method: Method, known: dict[str, Callable[..., Any]]) -> Iterator[Finding]:
    parameters = {field.name for field in fields(method)} if is_dataclass(method) else set[str]()
    for name in known:
        value = inspect.getattr_static(method, name)
        if name in parameters or not (callable(value) or isinstance(value, classmethod)):
            what = "parameter" if name in parameters else "attribute"
            yield (
                "E322",
                f"has {'a' if what == 'parameter' else 'an'} {what} `{name}`, which hides the member of that name",
                f"rename it, such as {name}_size",
            )
        elif name in HOOKS and name in vars(method):
            yield "E322", f"sets `{name}` on the object, where it is never called", "define it in the class"


def _nearly_members(method: Method, known: dict[str, Callable[..., Any]]) -> Iterator[Finding]:
    """Names that nobody in the method's files uses and that differ by little from a member's."""
    parameters = {field.name for field in fields(method)} if is_dataclass(method) else set[str]()
    kinds = [kind for kind in type(method).__mro__ if kind not in (Method, Task) and issubclass(kind, Method)]
    names = dict.fromkeys(
        name
        for kind in kinds
        for name in vars(kind)
        if not (name.startswith("_") or name.isupper() or name in known or name in parameters or hasattr(Method, name))
    )
    if not names:
        return
    used = {name for kind in kinds for code in _codes(kind) for name in _names(code)}
    for name in names:
        if name not in used and (meant := _meant(name, [*known, *DECLARATIONS])):
            yield (
                "E317",
                f"has `{name}`, which nothing calls",
                f"did you mean `{meant}`? A name of one's own begins with _",
            )


def _codes(kind: type) -> Iterator[CodeType]:
    """Of all functions in the class and in its module."""
    module = sys.modules.get(kind.__module__)
    values = [*vars(kind).values(), *(vars(module).values() if module else ())]
    inside = [value for value in values if getattr(value, "__module__", None) == kind.__module__]
    classes = [value for value in inside if isinstance(value, type)]
    for value in [*vars(kind).values(), *inside, *(member for owner in classes for member in vars(owner).values())]:
        for function in (value.fget, value.fset) if isinstance(value, property) else (value,):
            function = getattr(function, "__func__", function)  # of a static or class method
            if inspect.isfunction(function) and (code := _code(function)):
                yield code


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):  # getattr(self, "name")
            yield constant
        elif isinstance(constant, CodeType):
            yield from _names(constant)


def _meant(name: str, known: list[str]) -> str | None:
    """The member that a name was probably meant to be."""
    plain, words = _plain(name), {_plain(word): word for word in known}
    if plain in words:
        return words[plain]
    return next((word for key, word in words.items() if len(key) > 4 and _one_slip_apart(plain, key)), None)


def _plain(name: str) -> str:
    """Without capitals, underscores, "on_" and the like, and a plural's ending."""
    lower = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    while (shorter := AFFIXES.sub("", lower)) != lower:
        lower = shorter
    return re.sub(r"e?s$", "", lower.replace("_", ""))


def _one_slip_apart(one: str, other: str) -> bool:
    """One letter more, less or another, or two in the wrong order."""
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    swapped = one[:2] == other[1::-1] and one[2:] == other[2:] and len(one) > 1
    return swapped or one[1:] == other[1:] or one[1:] == other or one == other[1:]


# ── declarations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _unknown_words(method: Method, known: dict[str, tuple[str, ...]]) -> Iterator[Finding]:
    for declaration, words in known.items():
        value = getattr(method, declaration)
        if value is None and declaration == "runs":
            continue
        if not isinstance(value, set | frozenset):
            yield (
                "E319",
                f"declares {declaration} = {value!r}, which is no set",
                f'write: {declaration} = frozenset({{"{words[0]}"}})',
            )
            continue
        for word in sorted(set(map(str, value)) - set(words)):
            yield "E319", f"declares {declaration} '{word}', which is none", nearest(word, words)
        if declaration == "replaces":
            for hook in sorted(set(HOOKS) & set(value)):
                if not overrides(method, hook):
                    yield (
                        "E319",
                        f"declares that it replaces `{hook}` and does not define it",
                        f"define {hook}, or leave it out",
                    )
