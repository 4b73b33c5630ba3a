"""A fake NVIDIA driver under the real binding: cards with physics, on a clock that the test moves.

    with FakeDriver(library, [FakeGpu(power=[(0, 300), (10, 80)])]) as driver:
        ...                             # anything that uses pynvml, with driver.time as its clock
        driver.energy_j(0, 0, 12)       # what the card really used: 3160 J

What the library can do stands at the top of `nvml.c`. It needs a C compiler called `cc` (or the one that $CC names);
without one the tests that use it fail, because skipping them would leave the sensors untested.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shlex
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pynvml
from fakes.replay import VirtualTime

SOURCE = Path(__file__).with_name("nvml.c")
UUID = "GPU-4e817856-1fb8-192a-7ab7-0e0e4476c184"

Curve = float | Sequence[tuple[float, float]]  # one value for ever, or (second, value) points
Span = tuple[float, ...]  # (…, from_s, to_s); leave out to_s for ever, and from_s too for all time
Failure = tuple[str | int, *tuple[float, ...]]  # (function or field, NVML error code, from_s, to_s)


@dataclass(frozen=True, kw_only=True)
class FakeGpu:
    """One card. Seconds, watts, joules, °C, MHz; field names are those of the script."""

    uuid: str = UUID
    name: str = "Fake A100"

    # what it really does
    power: Curve = 100.0
    linear: bool = False  # whether power runs straight between its points, or steps at each
    repeat_s: float = 0.0  # period of the trajectory of power; 0: it happens once
    temperature_c: Curve = 40.0  # straight between its points, as is the clock
    sm_clock_mhz: Curve = 1410.0
    throttled: Sequence[Span] = ()  # (field, share, from_s, to_s)
    compute: Sequence[Span] = ()  # (pid, from_s, to_s) of each process; graphics and mps alike
    graphics: Sequence[Span] = ()
    mps: Sequence[Span] = ()

    # its counter
    gain: float = 1.0  # what the sensor says over what is true: counter and power
    counter_gain: float = 1.0  # and the counter alone
    tick_s: float = 0.1
    phase_s: float = 0.0
    counter_start_j: float = 0.0
    wrap_mj: float = 0.0  # modulus of the counter; 0: it never wraps
    reset: Sequence[float] = ()  # when the counter restarts from 0
    frozen: Sequence[Span] = ()  # (from_s, to_s)
    jump: Sequence[Span] = ()  # (joules, at_s): what the counter gains, and the card does not draw

    # its power readings
    sampling_s: float = 0.1
    duty_s: float = 0.025  # how much of the end of each sampling period instant power sees
    average_s: float = 1.0
    noise_w: float = 0.0  # standard deviation, on instant power
    noise_seed: int = 0
    shortest_poll_s: float = 0.0  # a power read sooner after the one before gives 0 W, or the error too_fast_code
    too_fast_code: int = 0
    module_w: float = -1.0  # power of scope 1 above scope 0, which the counter then holds too; negative: no scope 1
    nonsense: Sequence[Span] = ()  # (milliwatts, from_s, to_s): what power answers instead, with success

    # its state
    errors: Sequence[Failure] = ()
    lost: Sequence[Span] = ()  # (from_s, to_s)
    mig: bool = False
    ecc: bool = True
    compute_mode: int = 0
    compute_capability: float = 0.0  # 8.6; 0: the card does not tell
    power_limit_w: float = 400.0  # as somebody has set it; the default is default_power_limit_w
    default_power_limit_w: float = 400.0
    min_power_limit_w: float = 10.0
    max_power_limit_w: float = 400.0
    max_sm_clock_mhz: float = 1410.0
    memory_clock_mhz: float = 1215.0
    slowdown_c: float = 90.0
    shutdown_c: float = 95.0
    memory_bytes: float = 80e9
    memory_used_bytes: float = 1e9


SPANS = ("lost", "frozen", "jump", "nonsense", "throttled", "compute", "graphics", "mps")
NOT_SCALARS = {"uuid", "name", "power", "linear", "temperature_c", "sm_clock_mhz", "reset", "errors", *SPANS}
SCALARS = [field.name for field in dataclasses.fields(FakeGpu) if field.name not in NOT_SCALARS]


def script(
    gpus: Sequence[FakeGpu],
    *,
    clock: Literal["virtual"] | float = "virtual",
    start_s: float = 0.0,
    driver_version: str = "550.54.15",
    call_s: float = 0.0,
    persistent: bool = True,
    errors: Sequence[Failure] = (),
) -> str:
    """The text that the library reads.

    clock: "virtual" from `start_s` on, or the second of CLOCK_MONOTONIC that is time zero on a real clock
    call_s: what each call costs
    persistent: whether the driver stays loaded without a client; if not, counters restart with the next one
    errors: of the system, and of every card
    """
    when = _words("clock virtual", start_s) if clock == "virtual" else _words("clock real", clock)
    lines = [when, f"driver {driver_version}", _words("call_s", call_s), _words("persistent", persistent)]
    lines += [_words("error", *failure) for failure in errors]
    for gpu in gpus:
        lines += [f"gpu {gpu.uuid} {gpu.name}", _curve("power", gpu.power, gpu.linear)]
        lines += [_curve("temperature_c", gpu.temperature_c), _curve("sm_clock_mhz", gpu.sm_clock_mhz)]
        lines += [_words(name, getattr(gpu, name)) for name in SCALARS]
        lines += [_words("error", *failure) for failure in gpu.errors]
        lines += [_words("reset", at_s) for at_s in gpu.reset]
        lines += [_words(name, *span) for name in SPANS for span in getattr(gpu, name)]
    return "\n".join(lines) + "\n"


def _words(*words: str | float) -> str:
    return " ".join(word if isinstance(word, str) else _number(word) for word in words)


def _number(number: float) -> str:
    return str(int(number)) if isinstance(number, int) else repr(float(number))  # numpy's repr names its type


def _curve(name: str, curve: Curve, linear: bool = True) -> str:
    points = [(0.0, curve)] if isinstance(curve, int | float) else curve
    return _words(name, "linear" if linear else "step", *(number for point in points for number in point))


def sets_of(folder: Path) -> tuple[float, float, float]:
    """What is set of the first card of `FakeDriver.environment(folder)`: (its power limit in watts, the highest locked
    clock in MHz; 0 where nobody has set it, how often something was set)."""
    file = folder / "fake-nvml.txt.set"
    return struct.unpack("3d", file.read_bytes()[:24]) if file.exists() else (0.0, 0.0, 0.0)


def build(folder: Path, script: Path | None = None, *, without_v3: bool = False) -> Path:
    """Compile the library into `folder`. Returns its path, ending in libnvidia-ml.so.1.

    script:     of the cards that it has where FAKE_NVML_SCRIPT names none
    without_v3: as a driver before 510, which has no newest way to list processes
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(
            f"the fake GPU driver needs a C compiler and there is no '{compiler[0]}': "
            "install one (on Debian: apt-get install gcc libc6-dev), or name one in CC"
        )
    # No soname: a process that has loaded the fake by its path must not find it again under the driver's name.
    library = folder / "libnvidia-ml.so.1"
    options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    options += [f'-DSCRIPT="{script}"'] if script else []
    options += ["-DWITHOUT_V3"] if without_v3 else []
    done = subprocess.run([*compiler, *options, "-lm", "-lpthread", "-ldl"], capture_output=True)
    if done.returncode:
        raise RuntimeError(f"the fake GPU driver does not compile:\n{done.stderr.decode(errors='replace')}")
    return library


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the functions that are for tests their types."""
    library.fake_nvml_load.argtypes, library.fake_nvml_load.restype = [ctypes.c_char_p], ctypes.c_char_p
    library.fake_nvml_set_ns.argtypes, library.fake_nvml_set_ns.restype = [ctypes.c_int64], None
    library.fake_nvml_now_ns.argtypes, library.fake_nvml_now_ns.restype = [], ctypes.c_int64
    library.fake_nvml_energy_j.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_double]
    library.fake_nvml_energy_j.restype = ctypes.c_double
    library.fake_nvml_calls.argtypes, library.fake_nvml_calls.restype = [], ctypes.c_long
    return library


class DriverTime(VirtualTime):
    """Virtual time that the driver keeps: what a call costs is seen here, and sleeping here moves the driver."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        super().__init__(library.fake_nvml_now_ns())

    @property
    def _now_ns(self) -> int:
        return int(self._library.fake_nvml_now_ns())

    @_now_ns.setter
    def _now_ns(self, now_ns: int) -> None:
        self._library.fake_nvml_set_ns(now_ns)


class FakeDriver:
    """The library behind the binding, from `with` to its end; then the binding is as it was before.

    Options are those of `script`. Raises ValueError, with the line, if the script is wrong. One at a time in a process.
    """

    time: DriverTime

    def __init__(self, library: Path, gpus: Sequence[FakeGpu], **options: Any) -> None:
        self.path, self.gpus, self.options = library, list(gpus), options
        self.library = declare(ctypes.CDLL(str(library)))

    def __enter__(self) -> FakeDriver:
        if pynvml.nvmlLib is not None and hasattr(pynvml.nvmlLib, "fake_nvml_load"):
            raise RuntimeError("another fake driver is in use: leave it first")
        if mistake := self.library.fake_nvml_load(script(self.gpus, **self.options).encode()):
            raise ValueError(mistake.decode())
        self.time = DriverTime(self.library)
        self._before = pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount
        self._plug(self.library, {}, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plug(*self._before)

    @property
    def calls(self) -> int:
        """How many calls there were since the script was loaded."""
        return int(self.library.fake_nvml_calls())

    def energy_j(self, gpu: int, from_s: float, to_s: float) -> float:
        """What a card really used, by its index: the exact integral of its power."""
        return float(self.library.fake_nvml_energy_j(gpu, from_s, to_s))

    def environment(self, folder: Path, clock: Literal["virtual"] | float | None = None) -> dict[str, str]:
        """What to add to the environment of child processes, so that they find the same cards.

        clock: None for real time, with zero now; else as in `script`
        """
        now_s = time.clock_gettime(time.CLOCK_MONOTONIC)
        path = folder / "fake-nvml.txt"
        text = script(self.gpus, **{**self.options, "clock": now_s if clock is None else clock})
        path.write_text(text, encoding="utf-8")
        folders = [str(self.path.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": os.pathsep.join(folders), "FAKE_NVML_SCRIPT": str(path)}

    def _plug(self, library: ctypes.CDLL | None, functions: dict[str, Any], clients: int) -> None:
        pynvml.nvmlLib, pynvml._nvmlLib_refcount = library, clients
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml._nvmlGetFunctionPointer_cache.update(functions)
