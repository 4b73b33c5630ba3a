"""The card that a part works on, or this machine's processor in its place where the driver is a fake."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any, TypeVar

import torch

Size = TypeVar("Size")


@dataclass(frozen=True)
class Card:
    """fake: tensors are on the processor and sensors of a made-up card; long: `make gpu-long`"""

    fake: bool
    long: bool = False

    @cached_property
    def device(self) -> torch.device:
        """Asking makes a context on the card, as soon as something is put there."""
        return torch.device("cpu") if self.fake else torch.device("cuda", 0)

    def size(self, real: Size, fake: Size) -> Size:
        return fake if self.fake else real

    def sync(self) -> None:
        if not self.fake:
            torch.cuda.synchronize()

    @cached_property
    def sensors(self) -> Any:
        """The meter's own Gpu; no context is made. Raises Unavailable."""
        from energybench.meter.devices import visible_uuids
        from energybench.meter.nvml import open_gpus

        if self.fake:
            return open_gpus()[0]
        return open_gpus(visible_uuids()[:1])[0]

    def facts(self) -> dict[str, Any]:
        """What the numbers hold for; no context is made."""
        found = {"sensors": self.sensors.facts(), "torch": torch.__version__, "cuda": torch.version.cuda}
        found |= {"python": platform.python_version(), "compute_capability": self.capability}
        for package in ("energybench", "nvidia-ml-py", "codecarbon", "zeus", "triton"):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "not installed"
        if found["energybench"] == "not installed":
            found["energybench"] = "run from its tree"
        return found

    @property
    def capability(self) -> str | None:
        """As the driver tells it: torch would make a context to answer."""
        import pynvml

        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(self.sensors.uuid)
            return ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle)))
        except pynvml.NVMLError:
            return None

    def elapsed_s(self, call: Callable[[], object]) -> float:
        """Seconds of one call, until the card is done."""
        self.sync()
        began = time.perf_counter()
        call()
        self.sync()
        return time.perf_counter() - began

    def repeated(self, call: Callable[[], object], seconds: float) -> int:
        """Call for so long, waiting for the card now and then; returns how many calls."""
        done, every, end = 0, 1, time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            for _ in range(every):
                call()
            self.sync()
            done += every
            if time.perf_counter() - began < 0.02:
                every *= 2
        return done


class Stopwatch:
    """Seconds between `start` and `stop`, added up: by the card's own events, so that no call waits for another."""

    def __init__(self, card: Card) -> None:
        self._card, self._seconds = card, 0.0
        self._events: list[tuple[Any, Any]] = []
        self._began = 0.0

    def start(self) -> None:
        if self._card.fake:
            self._began = time.perf_counter()
            return
        pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        pair[0].record()
        self._events.append(pair)

    def stop(self) -> None:
        if self._card.fake:
            self._seconds += time.perf_counter() - self._began
        else:
            self._events[-1][1].record()

    def seconds(self) -> float:
        if self._card.fake:
            return self._seconds
        torch.cuda.synchronize()
        return sum(first.elapsed_time(last) for first, last in self._events) / 1e3


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, round by round, after one that does not count; the order moves on by one each round."""
    names, found = list(sides), {name: list[float]() for name in sides}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = sides[name]()
            if number:
                found[name].append(seconds)
    return found


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """The median of the rounds' ratios, with the least and the most: three to seven rounds have no quartiles."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return {"ratio": statistics.median(each), "least": min(each), "most": max(each)}
