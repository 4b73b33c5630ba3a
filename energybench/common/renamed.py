"""Names that changed: read under the old one with a warning and written under both, for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


class RenamedNameWarning(DeprecationWarning):
    """Code uses a member, an argument or a module under its old name."""


class RenamedKeyWarning(FutureWarning):
    """A file holds a key under its old name; shown to everyone, since whoever wrote the file must rename it."""


def renamed(**new_names: str) -> Callable[[Class], Class]:
    """A class decorator. new_names: old name → the field or member that has its value now.

    The old attribute is read with a DeprecationWarning, and `as_data` writes it beside the new key.
    """

    def add(cls: Class) -> Class:
        for old, new in new_names.items():
            setattr(cls, old, property(_reader(cls.__name__, old, new)))
        cls.__renamed__ = {**getattr(cls, "__renamed__", {}), **new_names}  # type: ignore[attr-defined]
        return cls

    return add


def _reader(owner: str, old: str, new: str) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        warnings.warn(f"{owner}.{old} is called {new} now", RenamedNameWarning, stacklevel=2)
        return getattr(self, new)

    return read


def as_data(value: Any) -> Any:
    """Dataclasses as dicts, all the way down, as `dataclasses.asdict` gives them; a renamed field under both names."""
    if is_dataclass(value) and not isinstance(value, type):
        data = {field.name: as_data(getattr(value, field.name)) for field in fields(value)}
        old_names: dict[str, str] = getattr(type(value), "__renamed__", {})
        return data | {old: data[new] for old, new in old_names.items() if new in data}
    if isinstance(value, dict):
        return {key: as_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(item) for item in value]
    return value
