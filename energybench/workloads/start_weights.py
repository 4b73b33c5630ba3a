"""A model's start weights from a file: read without running anything that is in it, and held against the model.

A file of `torch.save` is read with `weights_only`, which admits tensors and plain containers alone; a safetensors file
by that library, where it is installed. Every tensor of the model must be in the file, in its shape, and nothing else:
with `weights_strict = false` what does not fit starts afresh, from the seed, as it would without a file.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from energybench.common.errors import Problem, UsageError
from energybench.suite.tables import ModelTable
from energybench.suite.variants import toml
from energybench.train import discovery
from energybench.workloads.description import StartWeights

KEYS = ("weights", "weights_strict")
WRAPPED = ("state_dict", "model_state_dict", "model")  # where checkpoints keep a model's tensors beside other things
PREFIXES = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}  # of names, by what wrapped the model
SHOWN = 3  # names that a message has
SAVE = 'torch.save(model.state_dict(), "start.pt")'


def function_arguments(table: ModelTable, base: Path) -> dict[str, Any]:
    """The keys of `model` that are handed to what builds it.

    A function of the user's that names an argument `weights` or `weights_strict` is handed it, and loads what it likes.
    """
    return table.parameters | {key: value for key, value in _given(table).items() if key in _own(table, base)}


def load_start(
    model: nn.Module, table: ModelTable, base: Path, expected: StartWeights | None = None
) -> StartWeights | None:
    """Fill a model, on the CPU, with the weights that its table names. None where it names none.

    Args:
        model:    as its seed has initialised it
        base:     the suite's folder, which the file's path starts from
        expected: what was found when the suite was checked

    Raises:
        UsageError: E401 for a file that is missing, is no such file, does not fit or is another one than expected; E207
            for one that is larger than this machine's memory.
    """
    given = {key: value for key, value in _given(table).items() if key not in _own(table, base)}
    file, strict = given.get("weights"), given.get("weights_strict", True)
    if file is None and not given:
        return None
    if file is None:
        raise _refusal("weights_strict, and no weights", 'add weights = "start.pt", or take it out')
    if not isinstance(file, str) or not file:
        raise _refusal(f"weights is {toml(file)}; expected the name of a file", 'weights = "start.pt"')
    if not isinstance(strict, bool):
        raise _refusal(f"weights_strict is {toml(strict)}; expected true or false", "weights_strict = false")
    path = base / file
    if not os.path.isfile(path):
        raise _refusal(discovery.no_file(file, path), f"looked at {path}; no weights are downloaded")
    try:
        with path.open("rb") as opened:
            state, sha256 = _read(opened, file)
    except OSError as error:
        raise _refusal(f"'{file}' cannot be read: {error.strerror or error}", f"looked at {path}") from None
    if expected is not None and expected.sha256 != sha256:
        raise _refusal(f"'{file}' has changed since the suite was checked", "a run needs the same weights throughout")
    found = _fill(model, table.use, file, state, strict)
    return StartWeights(file=file, sha256=sha256, **found)


def _given(table: ModelTable) -> dict[str, Any]:
    """As they are written, since false and zero may be meant by a function's own argument."""
    return {key: getattr(table, key) for key in KEYS if key in table.model_fields_set}


def _own(table: ModelTable, base: Path) -> frozenset[str]:
    """Of those keys, the arguments of the user's function."""
    if not _given(table) or not discovery.names_file(table.use):
        return frozenset()
    function: Callable[..., Any] = discovery.load_function(table.use, base)
    return frozenset(KEYS) & inspect.signature(function).parameters.keys()


def _read(opened: BufferedReader, file: str) -> tuple[Mapping[str, Tensor], str]:
    """The tensors by name, and the file's SHA-256: of one opened file, whatever becomes of its name meanwhile."""
    size_b, memory_b = os.fstat(opened.fileno()).st_size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size_b > memory_b:
        message = f"'{file}' has {size_b / 1e9:,.1f} GB; this machine has {memory_b / 1e9:,.1f}"
        raise UsageError(Problem("E207", message, hint="a smaller model"))
    sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    opened.seek(0)
    try:
        content = _safetensors(opened) if file.endswith(".safetensors") else _torch(opened)
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            message = f"'{file}' holds more than tensors, and weights are read without running code from their file"
            raise _refusal(message, SAVE) from None
        raise _refusal(f"'{file}' is no file of weights, or damaged", f"{SAVE}, or a .safetensors file") from None
    except Exception as error:  # whatever a reader makes of bytes that are none of its own
        message = f"'{file}' is no file of weights, or damaged: {type(error).__name__}"
        raise _refusal(message, f"{SAVE}, or a .safetensors file") from None
    return _tensors(content, file), sha256


def _torch(opened: BufferedReader) -> Any:
    return torch.load(opened, map_location="cpu", weights_only=True)


def _safetensors(opened: BufferedReader) -> Any:
    try:
        from safetensors.torch import load
    except ImportError:
        raise _refusal("reading a .safetensors file needs safetensors", "pip install safetensors") from None
    return load(opened.read())


def _tensors(content: Any, file: str) -> Mapping[str, Tensor]:
    """A state_dict, or the one inside a checkpoint."""
    inside = next((key for key in WRAPPED if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    state = content if inside is None else content[inside]
    if not isinstance(state, dict) or not state:
        raise _refusal(f"'{file}' holds no table of tensors by name", SAVE)
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not isinstance(name, str) or not plain or value.is_quantized:
            kind = "a tensor of another kind" if isinstance(value, Tensor) else type(value).__name__
            raise _refusal(f"'{file}' has {kind} for '{name}', and weights are plain tensors", SAVE)
    return state


def _fill(model: nn.Module, use: str, file: str, state: Mapping[str, Tensor], strict: bool) -> dict[str, Any]:
    """Load what fits. Raises UsageError E401 where `strict` asks for all, or where nothing does."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    unlike = {name: why for name in state if name in own and (why := _unlike(state[name], own[name]))}
    fitting = OrderedDict((name, value) for name, value in state.items() if name not in unlike)
    if isinstance(versions := getattr(state, "_metadata", None), dict):  # of layers, whose tensors had other names once
        fitting._metadata = versions  # type: ignore[attr-defined]
    try:
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    except Exception as error:
        raise _refusal(f"'{use}' refused the weights of '{file}': {error}", SAVE) from None
    lacking = [name for name in missing if name not in unlike]
    loaded = len(fitting) - len(unexpected)
    reasons = [
        *([f"the file lacks {_some(lacking)}"] if lacking else []),
        *([f"the model has no {_some(unexpected)}"] if unexpected else []),
        *([_some(f"{name} is {why}" for name, why in unlike.items())] if unlike else []),
    ]
    if loaded == 0:
        raise _refusal(f"nothing in '{file}' fits '{use}': {'; '.join(reasons)}", _prefixed(state) or "another file")
    if strict and reasons:
        hint = _prefixed(state) or "weights_strict = false starts afresh what does not fit, and records which that is"
        raise _refusal(f"'{file}' does not fit '{use}': {'; '.join(reasons)}", hint)
    # Not what the file has: a model may leave out what it computes itself, such as the masks of GPT-2's files.
    return {"tensors": len(own.keys() - set(missing)), "fresh": tuple(missing), "unused": tuple(unexpected)}


def _unlike(there: Tensor, here: Tensor) -> str:
    """How a tensor of the file cannot become one of the model; empty where it can."""
    if there.shape != here.shape:
        return f"{tuple(there.shape)} in the file and {tuple(here.shape)} in the model"
    if there.is_floating_point() != here.is_floating_point() or there.is_complex() != here.is_complex():
        return f"{_kind(there)} in the file and {_kind(here)} in the model"
    return ""


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def _prefixed(state: Mapping[str, Tensor]) -> str:
    """A hint where all names begin with what a wrapper of the saved model gave them."""
    for prefix, wrapper in PREFIXES.items():
        if all(name.startswith(prefix) for name in state):
            return f"every name in it begins with '{prefix}', which is {wrapper}'s: save the model inside of that"
    return ""


def _refusal(message: str, hint: str) -> UsageError:
    return UsageError(Problem("E401", message, hint=hint))
