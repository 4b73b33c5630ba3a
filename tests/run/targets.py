"""What the launcher's tests run in a child: `module:function`(IN, OUT)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def _say(out_path: str, **facts: Any) -> None:
    Path(out_path).write_text(json.dumps(facts))


def describe(in_path: str, out_path: str) -> None:
    _say(out_path, pid=os.getpid(), session=os.getsid(0), group=os.getpgrp(), parent=os.getppid(), cwd=os.getcwd(),
         torch="torch" in sys.modules, given=Path(in_path).read_text())  # fmt: skip


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
