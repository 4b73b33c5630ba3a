"""What every table of a suite's file is: frozen, strictly typed, without unknown keys."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict

from energybench.suite.messages import ONE_LINE

Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Strict(False)]  # a TOML array; its items stay strict
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=ONE_LINE)]


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
