"""Types of a record's open tables, whose keys others choose: their depth is bounded, and the keys that a report reads
are validated when the file is read, not halfway through a report. Other keys stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from energybench.common.limits import DEPTH
from energybench.common.quantities import Blocks, Count, Figure, Part, Period, Seconds, Seed, Text, physical


def _shallow(value: Any, depth: int = 0) -> Any:
    """The value. Raises ValueError where it is too deep or has a number that is not finite or above 1e300."""
    if depth > DEPTH:
        raise ValueError(f"nested more than {DEPTH} deep")
    if isinstance(value, dict):
        for item in value.values():
            _shallow(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _shallow(item, depth + 1)
    elif isinstance(value, (int, float)) and not abs(value) <= 1e300:
        raise ValueError("a number that is not finite, or too large")
    return value


Open = Annotated[dict[str, Any], AfterValidator(_shallow)]  # a table whose keys others choose
Threads = Annotated[int, Field(ge=1, le=2**20)]  # or processors


class Known(BaseModel):
    """The keys of an open table that a report reads; the others may be anything."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class CarbonKnown(Known):
    zone: Text | None = None
    country: Text | None = None
    intensity_kg_per_j: Annotated[float, Field(ge=0, le=1)] | None = None
    intensity_kg_per_kwh: Annotated[float, Field(ge=0, le=1e6)] | None = None
    year: int | str | None = None
    source: str | None = None
    pue: Annotated[float, Field(ge=1, le=1e3)] = 1.0


class BusyKnown(Known):
    told: list[str] | None = None


class MachineKnown(Known):
    cpu: str | None = None
    gpu: str | None = None
    platform: str | None = None
    energybench: str | None = None
    torch: str | None = None
    cores: Threads | None = None
    threads: Threads | None = None
    carbon: CarbonKnown | None = None
    busy: BusyKnown | None = None


class CardKnown(Known):
    name: str | None = None


class TrialMachineKnown(Known):
    cpu: str | None = None
    cores: Threads | None = None
    memory_mt_s: Count | None = None
    host: str | None = None
    boot: str | None = None


class EnvironmentKnown(Known):
    machine: TrialMachineKnown | None = None
    gpus: dict[str, CardKnown] | None = None
    threads: Threads | None = None
    load_average: Annotated[float, Field(ge=0, le=1e9)] | None = None


class DetailKnown(Known):
    tick_s: Seconds | list[Seconds] | None = None
    period_s: Period | list[Period] | None = None
    wraps: Count | list[Count] | None = None
    load_rel: Part | list[Part] | None = None


class QualityKnown(Known):
    metric: str | None = None
    loses_at_most: Annotated[float, Field(ge=0, le=1e100)] | None = None


class AcceptKnown(Known):
    quality: QualityKnown | None = None
    margin: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    noise: Annotated[float, Field(ge=0, le=0.99)] = 0.0  # the margin's name before
    estimate_gap: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class MeasureKnown(Known):
    energy: str | None = None


class TrialsKnown(Known):
    blocks: Blocks | None = None
    seed: Seed | None = None
    threads: Threads | Literal["auto"] | None = None


class SourceKnown(Known):
    """Where a command's quality was read."""


class WorkloadKnown(Known):
    name: Text | None = None
    quality: SourceKnown | None = None


class MethodKnown(Known):
    name: Text | None = None


class RequireKnown(Known):
    workload: Text
    method: Text
    saves_at_least: Part | None = None
    of: str | None = None
    verdict: list[str] | None = None
    never: list[str] | None = None


class ResolvedKnown(Known):
    accept: AcceptKnown | None = None
    measure: MeasureKnown | None = None
    trials: TrialsKnown | None = None
    workload: list[WorkloadKnown] | None = None
    method: list[MethodKnown] | None = None
    require: list[RequireKnown] | None = None


class DatumKnown(Known):
    """What is known of one workload's data."""

    sha256: str | None = None
    source: str | None = None
    kind: str | None = None
    classes: Count | None = None
    train: Count | None = None
    test: Count | None = None
    parameters: Count | None = None
    shape: list[Count] | None = None
    mean: list[Figure] | None = None
    std: list[Annotated[float, Field(ge=0, le=1e100)]] | None = None
    targets: str | None = None
    class_names: list[str] | None = None
    parts: dict[str, Count] | None = None
    notes: list[str] | None = None


class DataKnown(Known):
    __pydantic_extra__: dict[str, DatumKnown | None] = Field(init=False)


def _validated_as(kind: type[Known]) -> AfterValidator:
    def check(table: dict[str, Any]) -> dict[str, Any]:
        try:
            kind.model_validate(table, strict=True)
        except ValidationError as error:
            raise ValueError("; ".join(_messages(error))) from None
        return table

    return AfterValidator(check)


def _messages(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_input=False)[:3]:
        yield f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"


Machine = Annotated[Open, _validated_as(MachineKnown), AfterValidator(physical)]
Environment = Annotated[Open, _validated_as(EnvironmentKnown), AfterValidator(physical)]
Detail = Annotated[Open, _validated_as(DetailKnown), AfterValidator(physical)]
DataFacts = Annotated[Open, _validated_as(DataKnown)]
Resolved = Annotated[Open, _validated_as(ResolvedKnown)]
