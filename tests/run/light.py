"""`energybench run` without torch, for tests that start it a hundred times: what is real, and what is not.

Real: the runner, its folder, lock, schedule, records, seals and report; the launcher, its server and guards.
Not real: the plan, which is given, and the training, which is a nap. A trial may leave strays that try to escape.

    python tests/run/light.py SUITE [--out FOLDER] [--new] [--block K] [--plan-only]    where `reports` shall be

LIGHT_DEVICE is the card that it trains on; without it, the processor.

A trial whose name stands in the file `hold` waits for as long as it is there. If there is a file `mine.py`, it is the
method's. LIGHT_DIE="parent:report:7" kills the parent by SIGKILL before its 7th change of a file whose name holds
"report"; "trial:b1-i0-w.mine:2" kills that trial before the 2nd change of its record. (Of a file in a folder that is
held by its handle no more than the name is heard.)
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BLOCKS, SEED = 3, 5
METHODS = ("baseline", "twin", "mine")
NAP_S = 0.02
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir"}
SUITE = """schema = 1
suite = "light"
[trials]
blocks = 3
seed = 5
[measure]
energy = "off"
[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 16 }
train = { epochs = 2, lr = 0.1 }
[[method]]
name = "mine"
use = "dropout"
"""


def planned(suite: Any, launcher: Any, place: Path, **options: Any) -> Any:
    """What `energybench.runner.plan_request.plan` gives for the suite above, without asking a child."""
    from energybench.common.hashing import digest
    from energybench.records.record import Cell
    from energybench.runner.plan_request import Planned, spec_of
    from energybench.runner.plan_spec import PlannedWorkload, PlanResult
    from energybench.trial.spec import MethodSpec
    from energybench.workloads.description import DataDescription

    file = Path("mine.py")
    sha = hashlib.sha256(file.read_bytes() if file.exists() else b"").hexdigest()
    mine = MethodSpec(use="mine.py", name="mine", path="mine.py", origin="path", sha256=sha)
    cells = [
        Cell(
            workload="w",
            method=name,
            role="method" if name == "mine" else name,
            digest=sha,
            stack=[mine.model_dump(mode="json")] if name == "mine" else [],
        )
        for name in METHODS
    ]
    data = DataDescription(kind="none", sha256="d", train=64, test=32)
    result = PlanResult(
        workloads={"w": PlannedWorkload(data=data, ledger=(), parameters=10, steps=4, epochs=2, samples=64)},
        cells=tuple(cells),
        machine={"cpu": "none"},
        device="cpu",
        device_name=os.environ.get("LIGHT_DEVICE", "cpu"),
        digest=digest([sha, suite.digest_source()]),
    )
    return Planned(suite, result, spec_of(suite, place, download=False, **options))


def nap(in_path: str, out_path: str) -> None:
    """A trial that trains nothing, takes its time and writes a whole record."""
    from energybench.meter.reading import Reading
    from energybench.records.record import CountingRun, Passes, Trial, write_json

    spec = json.loads(Path(in_path).read_text(encoding="utf-8"))
    header = spec["header"]
    _die_where_told("trial", header.get("trial", ""))
    if "LIGHT_STRAYS" in os.environ:
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
    time.sleep(NAP_S)
    while _held(header.get("trial", "")):
        time.sleep(NAP_S)
    if spec["mode"] == "counting run":
        counted = {**header, "status": "ok", "counted_flop": 1e6, "wall_s": NAP_S}
        write_json(Path(out_path), CountingRun.model_validate(counted))
        return
    train = Reading(wall_s=1.0 + header["position"] / 100, cpu_s=1.0)
    write_json(
        Path(out_path),
        Trial.model_validate(
            {
                **header,
                "status": "ok",
                "epochs": 2,
                "steps": 8,
                "samples": 64,
                "phases": {"train": train},
                "passes": Passes(),
                "quality": {"accuracy": 0.5},
                "curve": [{"epoch": 1, "loss": 0.5, "wall_s": 0.5}],
            }
        ),
    )


def _held(trial: str) -> bool:
    try:
        held = trial == Path("hold").read_text()
    except FileNotFoundError:
        return False
    if held:
        Path("held").touch()
    return held


def _die_where_told(who: str, name: str = "") -> None:
    """SIGKILL to ourselves before the n-th change of a file, by Python's own audit events."""
    told, _, rest = os.environ.get("LIGHT_DIE", "").partition(":")
    where, _, count = rest.rpartition(":")
    if told != who or (who == "trial" and where != name):
        return
    left = [int(count)]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and arguments and where in str(arguments[0]) and _changes(event, arguments):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    return event != "open" or bool(isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))


def main(argv: list[str]) -> int:
    import argparse

    from rich.console import Console

    from energybench.cli.terminal_encoding import write_what_can_be_written
    from energybench.common.errors import EnergybenchError
    from energybench.common.processes import restore_child_signals
    from energybench.process import forkserver
    from energybench.runner import runner
    from energybench.runner.progress import Progress
    from energybench.runner.shard import blocks_of
    from energybench.suite.suite import load

    parser = argparse.ArgumentParser()
    parser.add_argument("suite")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--new", dest="fresh", action="store_true")
    parser.add_argument("--block", default="")
    parser.add_argument("--plan-only", action="store_true")
    asked = parser.parse_args(argv)
    write_what_can_be_written()  # as `energybench.cli.command_line` does
    restore_child_signals()
    here = str(Path(__file__).resolve().parent)  # the server finds it there; a program's own folder, first in its
    sys.path[:] = [*(entry for entry in sys.path if entry != here), here]  # path, is taken from its children's
    forkserver.PRELOAD = "light_preload"
    os.environ["ENERGYBENCH_ORDER_SEED"] = str(SEED)  # the tests know the order
    runner.plan = planned  # type: ignore[assignment]
    _die_where_told("parent")
    try:
        return runner.run(
            load(asked.suite),
            out=asked.out,
            fresh=asked.fresh,
            argv=["light"],
            progress=Progress(Console(stderr=True), Console()),
            blocks=blocks_of("--block", asked.block) if asked.block else (),
            plan_only=asked.plan_only,
        )[0]
    except EnergybenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def environment(**extra: str) -> dict[str, str]:
    """Ours, so that the server finds what it imports in place of torch; and energybench is the one beside this file."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **extra}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
