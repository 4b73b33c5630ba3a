"""A record while it is filled step by step, so that a failure keeps what was known before it. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from energybench.common.quantities import is_figure
from energybench.records.record import CountingRun, Trial


class TrialDraft(Trial):
    """A trial's record while it is filled."""

    model_config = ConfigDict(frozen=False)

    def finished(self) -> Trial:
        """The record, checked. Raises pydantic's ValidationError for what it cannot hold."""
        return Trial.model_validate(self.model_dump(by_alias=True))


class CountingRunDraft(CountingRun):
    """A counting run's record while it is filled."""

    model_config = ConfigDict(frozen=False)

    def finished(self) -> CountingRun:
        """The record, checked."""
        return CountingRun.model_validate(self.model_dump(by_alias=True))


def finite(value: Any) -> Any:
    """`value` for a record: what is no finite number is null. Raises TypeError for what JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if is_figure(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"diagnostics() must be JSON-able, not {type(value).__name__}")
