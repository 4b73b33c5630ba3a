"""What is known of a prepared data set before it is opened. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from energybench.train.facts import Facts, Targets

NEWER = ("targets", "void", "class_names", "extra", "images", "parts", "notes")  # recorded where they say something


class ImageMoments(BaseModel):
    """Per channel, in units of the 0–1 range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...]
    std: tuple[float, ...]


class DataDescription(BaseModel):
    """A data set as `datasets.prepare` left it: how to open it, and what the record says of it.

    file:        where the decoded samples lie; None for one that is known by its name alone
    source:      in words, for people
    kind:        "resident", "streamed" or "stand-in"
    shape:       of one sample as the model sees it: (C, H, W) for images, after `resize`
    stored:      of one sample as a stand-in makes it, before `resize`
    classes:     number of classes; None where targets are no classes
    mean, std:   per channel, in units of the 0–1 range; None for what is no image, or a tree
    images:      of inputs that are a tree: each image's path in it → its mean and deviation
    targets, void, class_names, extra: as `Facts` has them
    train, test: numbers of samples
    parts:       of further parts: their names and numbers of samples
    sha256:      over the samples; for streamed sets over the files' names, sizes and labels
    notes:       what else there is to say of how it was made, a sentence each
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
    images: dict[str, ImageMoments] = Field(default_factory=dict)
    targets: Targets = "class"
    void: int | None = None
    class_names: tuple[str, ...] = ()
    extra: dict[str, int | float | str] = Field(default_factory=dict)
    train: int
    test: int
    parts: dict[str, int] = Field(default_factory=dict)
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> Facts:
        """What a task and a model may know of it."""
        return Facts(self.targets, self.classes, self.void, self.class_names, self.extra)

    @property
    def has_images(self) -> bool:
        return self.mean is not None or bool(self.images)

    def for_record(self) -> dict[str, Any]:
        """Without the file, which is gone when the run has ended."""
        silent = {"stored"} if self.stored is None else set()
        silent |= {
            name
            for name in NEWER
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True)
        }
        return self.model_dump(mode="json", exclude={"file"} | silent)


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
