"""The fakes of a test inside the processes that it starts: `environment` says what to add to theirs.

FAKE_POWERCAP  a processor whose counters are computed in the moment in which they are read, so that a machine on which
               nothing runs in time shows them as they are, too
FAKE_CLOCK     "virtual": the whole process believes a clock that moves when somebody sleeps, and by 1 µs whenever
               somebody looks; sleeping takes no time. The card of a fake driver goes by it as well

FAKE_BROKEN    the name of a package that cannot be imported

The standard library keeps the real clock: what waits for a process, a lock or a socket really waits.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDERS = (str(HERE / "site"), str(HERE.parent))  # on PYTHONPATH, before what is there
LIBRARY = "libnvidia-ml.so.1"
LOOK_NS = 1000  # what looking at the virtual clock takes


def environment(*, clock: str = "real", powercap: Any = None, **more: str) -> dict[str, str]:
    """For child processes. clock: "real" or "virtual"; powercap: a Powercap; more: what else they get."""
    before = more.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
    paths = [*FOLDERS, *([before] if before else [])]
    found = {**more, "PYTHONPATH": os.pathsep.join(paths)}
    if clock == "virtual":
        found["FAKE_CLOCK"] = clock
    if powercap is not None:
        zones = [zone.told() for zone in powercap.zones.values()]
        told = {"origin_ns": 0 if clock == "virtual" else time.perf_counter_ns(), "zones": zones}
        found |= {"FAKE_POWERCAP": json.dumps(told), "ENERGYBENCH_POWERCAP": str(powercap.flat)}
    return found


def known_to_forks(given: Mapping[str, str]) -> dict[str, str]:
    """An environment without what `install_in_fork` makes up for in a process that was started without it."""
    left = dict(given)
    if "FAKE_BROKEN" in given:  # it has been imported
        return left
    left = {name: value for name, value in left.items() if name not in ("FAKE_CLOCK", "FAKE_POWERCAP")}
    ours = os.pathsep.join(FOLDERS)
    if left.get("PYTHONPATH", "").startswith(ours):
        left["PYTHONPATH"] = left["PYTHONPATH"].removeprefix(ours).removeprefix(os.pathsep)
        if not left["PYTHONPATH"]:
            del left["PYTHONPATH"]
    if left.pop("FAKE_NVML_SCRIPT", None):
        left["LD_LIBRARY_PATH"] = left["LD_LIBRARY_PATH"].partition(os.pathsep)[2]
    return left


def install_in_fork() -> None:
    """What an interpreter does at its start with this environment, in a process that has started without it."""
    sys.path[1:1] = [folder for folder in FOLDERS if folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    if "FAKE_NVML_SCRIPT" in os.environ:  # the loader knows LD_LIBRARY_PATH as it was at its start
        _load_driver_from(Path(os.environ["LD_LIBRARY_PATH"].partition(os.pathsep)[0]))
    if {"FAKE_CLOCK", "FAKE_POWERCAP"} & set(os.environ):
        install()


def install() -> None:
    """Make this process believe what its environment says."""
    if os.environ.get("FAKE_CLOCK") == "virtual":
        _install_clock()
    if told := os.environ.get("FAKE_POWERCAP"):
        _when_imported("energybench.meter.rapl", lambda module: _install_powercap(module, json.loads(told)))
    if broken := os.environ.get("FAKE_BROKEN"):
        sys.meta_path.insert(0, _Broken(broken))
    _when_imported("energybench.common.module_path", _reach_children)


def _load_driver_from(folder: Path) -> None:
    import ctypes

    import pynvml

    class Library(ctypes.CDLL):
        def __init__(self, name: Any, *words: Any, **more: Any) -> None:
            super().__init__(str(folder / LIBRARY) if name == LIBRARY else name, *words, **more)

    for module in (ctypes, pynvml):
        module.CDLL = Library  # type: ignore[attr-defined]


class _Broken:
    """A finder of one package, which was installed by halves."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, wanted: str, path: Any = None, target: Any = None) -> None:
        if wanted == self.package:
            raise ImportError("half installed")


def _reach_children(module_path: ModuleType) -> None:
    """Interpreters that energybench starts read no sitecustomize: they are told in what they run."""
    made: Any = module_path.in_new_interpreter  # type: ignore[attr-defined]
    if made.__module__ == __name__:  # of a fork, whose parent was told
        return

    def in_new_interpreter(code: str, *, with_package: bool) -> list[str]:
        ours = "from fakes import in_children\nin_children.install()\n" if with_package else ""
        return list(made(ours + code, with_package=with_package))

    module_path.in_new_interpreter = in_new_interpreter  # type: ignore[attr-defined]


def _install_powercap(rapl: ModuleType, told: dict[str, Any]) -> None:
    from fakes.powercap import Zone, read_computed

    zones = {facts[0]: Zone.of(*facts) for facts in told["zones"]}
    rapl.read_text = lambda path: read_computed(path, zones, time.perf_counter_ns() - told["origin_ns"])  # type: ignore[attr-defined]


def _install_clock() -> None:
    import concurrent.futures.thread
    import queue
    import selectors
    import subprocess
    import threading
    import timeit

    real = (concurrent.futures.thread, queue, selectors, subprocess, threading)  # these keep the real clock
    assert all(module.__name__ in sys.modules for module in real)
    from energybench.meter.clock import RealTime

    clock, used_ns = _clock(), [0]

    def now_ns() -> int:
        clock._set(clock.now_ns() + LOOK_NS)
        return clock.now_ns()

    def processor_ns() -> int:  # that of a process which only sleeps and looks at clocks
        used_ns[0] += LOOK_NS
        return used_ns[0]

    for name in ("perf_counter", "monotonic"):
        _give(name, now_ns)
    for name in ("process_time", "thread_time"):
        _give(name, processor_ns)
    time.sleep = clock.sleep  # type: ignore[assignment]
    timeit.default_timer = time.perf_counter
    RealTime.now_ns = lambda self: now_ns()  # type: ignore[method-assign]
    RealTime.sleep = lambda self, seconds: clock.sleep(seconds)  # type: ignore[method-assign]
    RealTime.every = lambda self, period_s, call: clock.every(period_s, call)  # type: ignore[method-assign]
    RealTime.suspended_ns = lambda self: clock.suspended_ns()  # type: ignore[method-assign]
    sys.modules[__name__].CLOCK = clock  # type: ignore[attr-defined]


def _give(name: str, now_ns: Callable[[], int]) -> None:
    def seconds() -> float:
        return now_ns() / 1e9

    seconds.__module__, seconds.__name__ = "time", name  # pytest-benchmark finds its timer by these
    setattr(time, name, seconds)
    setattr(time, f"{name}_ns", now_ns)


def _clock() -> Any:
    from fakes.replay import VirtualTime

    if "FAKE_NVML_SCRIPT" not in os.environ:
        return VirtualTime(10**9)
    import ctypes

    from fakes.nvml import DriverTime, declare

    library = declare(ctypes.CDLL("libnvidia-ml.so.1"))
    library.fake_nvml_load(Path(os.environ["FAKE_NVML_SCRIPT"]).read_bytes())
    return DriverTime(library)


def _when_imported(name: str, then: Callable[[ModuleType], object]) -> None:
    if name in sys.modules:
        then(sys.modules[name])
        return

    class Finder:
        def find_spec(self, wanted: str, path: Any = None, target: Any = None) -> Any:
            spec = PathFinder.find_spec(wanted, path) if wanted == name else None
            if spec is not None and spec.loader is not None:
                load: Any = spec.loader.exec_module
                spec.loader.exec_module = lambda module: (load(module), then(module))  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
