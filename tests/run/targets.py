"""What the launcher's tests run in a child: `module:function`(IN, OUT)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from energybench.records.record import write_json


def _say(out_path: str, **facts: Any) -> None:
    """Whole or not at all: whoever waits for the file reads it at once."""
    unfinished = Path(f"{out_path}.unfinished")
    unfinished.write_text(json.dumps(facts))
    unfinished.replace(out_path)


def describe(in_path: str, out_path: str) -> None:
    _say(
        out_path,
        pid=os.getpid(),
        session=os.getsid(0),
        group=os.getpgrp(),
        parent=os.getppid(),
        cwd=os.getcwd(),
        server=psutil.Process(os.getppid()).ppid(),
        torch="torch" in sys.modules,
        given=Path(in_path).read_text(),
    )


def train(in_path: str, out_path: str) -> None:
    """What hung when the server had computed before it forked: a convolution forwards and backwards, in threads."""
    import torch

    torch.set_num_threads(2)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    loss = model(torch.ones(4, 1, 16, 16)).square().mean()
    loss.backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    _say(out_path, finite=bool(torch.isfinite(gradient).all()))


def load_methods(in_path: str, out_path: str) -> None:
    """Every shipped method's module, and which other modules that brought with it."""
    from energybench.train.discovery import load, sources

    before = set(sys.modules)
    methods = [load(source) for source in sources(Path(in_path).parent).values()]
    _say(out_path, methods=len(methods), brought=sorted(set(sys.modules) - before - {m.__module__ for m in methods}))


def allocate(in_path: str, out_path: str) -> None:
    """Twenty times three blocks of 8 MiB, written to and freed: how many pages were faulted in, of how many."""
    from energybench.process.in_child import keep_freed_memory

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for number in range(20):
        blocks = [bytes([number + 1]) * (8 << 20) for _ in range(3)]
        del blocks
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    _say(out_path, faults=faults, pages=20 * 3 * (8 << 20) // resource.getpagesize(), kept=keep_freed_memory())


def lay_out(in_path: str, out_path: str) -> None:
    """Where the memory of three tensors of a small net's activations begins: as they come, and after other draws."""
    import torch

    from energybench.process import heap_layout

    def addresses() -> list[int]:
        return [tensor.data_ptr() for tensor in [torch.empty(1 << size) for size in (16, 18, 17)]]

    first = addresses()
    redrawn = []
    for _ in range(8):
        heap_layout.draw()
        redrawn.append(addresses())
    before_b = psutil.Process().memory_info().rss
    for _ in range(300):
        heap_layout.draw()
    grown_b = psutil.Process().memory_info().rss - before_b
    _say(out_path, first=first, redrawn=redrawn, grown_b=grown_b)


def hang(in_path: str, out_path: str) -> None:
    """Ignores what can be ignored, and so does its child; says both process ids."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    _say(out_path, pids=[os.getpid(), child.pid])
    time.sleep(600)


def leave(in_path: str, out_path: str) -> None:
    """Ends well and leaves a child behind."""
    _say(out_path, pids=[subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid])


def fail(in_path: str, out_path: str) -> None:
    print("about to fail")
    raise ValueError("a trace for the log")


def talk(in_path: str, out_path: str) -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.system("echo from a shell")


def kill_self(in_path: str, out_path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_with(in_path: str, out_path: str) -> None:
    os._exit(int(Path(in_path).read_text()))


def word(in_path: str, out_path: str) -> None:
    Path(out_path).write_text(os.environ.get("ENERGYBENCH_A_WORD", ""))


SLEEP = "import time; time.sleep(600)"
ESCAPES = {
    "leaves the session": SLEEP,
    "ignores SIGTERM": f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}",
    "a daemon, forked twice": f"import os\nif not os.fork():\n  os.setsid()\n  if not os.fork(): {SLEEP}",
    "never the same process for long": "import os, time\nwhile True:\n  if os.fork(): os._exit(0)\n"
    "  os.setsid()\n  time.sleep(0.001)",
}


def escape(in_path: str, out_path: str) -> None:
    """Starts what a kill of the process group does not reach, with the marker in IN in its environment.

    A second word in IN says what the trial then does: "end" or "hang".
    """
    marker, then = Path(in_path).read_text().split()
    environment = {**os.environ, "ESCAPED": marker}
    for name, code in ESCAPES.items():
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
        if name.startswith("a daemon"):
            child.wait()
    for _ in range(WORKERS):
        _worker(environment)
    while len(_alive(marker)) < WORKERS + len(ESCAPES):
        time.sleep(0.02)
    _say(out_path, trial=os.getpid(), guard=os.getppid(), escaped=len(_alive(marker)))
    if then == "hang":
        time.sleep(600)


WORKERS = 8


def _worker(environment: dict[str, str]) -> None:
    """A forked loader of data that keeps no tie to us."""
    if not os.fork():
        os.setsid()
        os.execve(sys.executable, [sys.executable, "-c", SLEEP], environment)


def _alive(marker: str) -> list[int]:
    from tiny_runs import processes_with

    return processes_with(f"ESCAPED={marker}")


def cannot_write(in_path: str, out_path: str) -> None:
    """Its record goes to a disk that is full, as far as it is concerned."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    write_json(Path(out_path), {"much": "x" * 1000})


def converse(in_path: str, out_path: str) -> None:
    """A trial that takes turns and trains nothing. Beside IN: `family` lets it start a child, `hang` lets it hang."""
    from energybench.process.in_child import line

    spoken, place, told = line(), Path(in_path).parent, []
    assert spoken is not None
    if (place / "family").exists():
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
    message = {"at": "ready"}
    while True:
        spoken.send_bytes(json.dumps(message).encode())
        told.append(json.loads(spoken.recv_bytes())["until"])
        if message["at"] == "trained":
            break
        if (place / "hang").exists():
            (place / "hanging").touch()
            time.sleep(600)
        message = {"at": "trained"} if told[-1] is None else {"at": "rest", "progress": told[-1], "part_s": 1.0}
        message |= {"excess_s": None}
    Path(out_path).write_text(json.dumps({"told": told}))


def leave_early(in_path: str, out_path: str) -> None:
    os._exit(7)
