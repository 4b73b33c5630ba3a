"""What is known of a prepared data set before it is opened. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class DataDescription(BaseModel):
    """A data set as `datasets.prepare` left it: how to open it, and what the record says of it.

    file:        where the decoded samples lie; None for one that is known by its name alone
    source:      in words, for people
    kind:        "resident", "streamed" or "stand-in"
    shape:       of one sample as the model sees it: (C, H, W) for images, after `resize`
    stored:      of one sample as a stand-in makes it, before `resize`
    classes:     number of classes; None where targets are no classes
    mean, std:   per channel, in units of the 0–1 range; None for what is no image
    train, test: numbers of samples
    sha256:      over the samples; for streamed sets over the files' names, sizes and labels
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = None
    source: str = ""
    kind: str
    stored: tuple[int, ...] | None = None
    shape: tuple[int, ...] = ()
    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    train: int
    test: int
    sha256: str

    def for_record(self) -> dict[str, Any]:
        """Without the file, which is gone when the run has ended."""
        return self.model_dump(mode="json", exclude={"file"} | (set() if self.stored else {"stored"}))


class StartWeights(BaseModel):
    """The file from which a model's weights start, and what it gave.

    file:    as the suite names it
    sha256:  of its bytes
    tensors: how many of the model's it filled
    fresh:   tensors of the model that start from the seed, since the file lacks them or has them in another shape
    unused:  tensors of the file that the model does not have
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str
    tensors: int
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
