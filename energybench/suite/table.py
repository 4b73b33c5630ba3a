"""What every table of a suite's file is: frozen, strictly typed, without unknown keys."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from energybench.suite.messages import ONE_LINE, KeyedError

Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Strict(False)]  # a TOML array; its items stay strict


def _shown(text: str) -> str:
    """Nothing that hides, reorders or imitates what is read: U+202E turns the rest of a line around."""
    hidden = next((sign for sign in text if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp")), None)
    if hidden is not None:
        raise KeyedError(f"it holds U+{ord(hidden):04X}, a character that cannot be shown", "", "write it without")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200, pattern=ONE_LINE), AfterValidator(_shown)]


class SuiteTable(BaseModel):
    """A table of a suite's file: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OpenTable(SuiteTable):
    """A table whose other keys are parameters of what it names."""

    model_config = ConfigDict(extra="allow")

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys that the table does not define itself."""
        return dict(self.model_extra or {})
