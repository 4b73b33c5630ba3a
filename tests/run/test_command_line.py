"""The verbs that start processes of their own: run, check, cell, and what they say of a wrong suite."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench, environment
from tiny_runs import Done, contents, only_run, write_suite

pytestmark = pytest.mark.slow


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────

OWNER = '''"""owner: has gradients of its own"""
import torch
from energybench import Method


class Owner(Method):
    replaces = frozenset({"gradients"})
    runs = frozenset({"forward"})

    def gradients(self, run, batch, inner):
        with torch.no_grad():
            return run.forward(batch)
'''
LISTENER = '''"""listener: reads what gradients returns"""
from energybench import Method


class Listener(Method):
    def gradients(self, run, batch, inner):
        return inner(batch)
'''


def test_several_mistakes_are_told_together_each_with_its_line_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    (tmp_path / "listener.py").write_text(LISTENER)
    methods = """
[[method]]
use = "gradsmp"

[[method]]
use = "dropout"
q = 0.5

[[method]]
name = "stack"
use = ["owner.py", "listener.py"]
"""
    suite = write_suite(tmp_path, methods, blocks="two", twins=True)
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for text, said in (("blocks =", "blocks"), ("twins =", "'twin'"), ('"gradsmp"', "'gradsamp'"), ("q = 0.5", "'q'")):
        place = f"tiny.toml:{line_of(suite, text)}:"
        assert place in done.stderr, done.stderr
        told = next(block for block in done.stderr.split("error[")[1:] if place in block)
        assert said in told
    assert not (tmp_path / "reports").exists()

    check = energybench("check", suite, "--json", cwd=tmp_path)
    facts = json.loads(check.stdout)
    assert (check.returncode, facts["ok"]) == (2, False)
    assert [f"error[{p['code']}]: {p['where']}: {p['message']}" for p in facts["problems"]] == [
        line for line in done.stderr.splitlines() if line.startswith("error[")
    ]


def test_a_bad_composition_is_refused_with_the_order_that_works_and_that_order_works(tmp_path: Path) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    (tmp_path / "listener.py").write_text(LISTENER)
    table = '\n[[method]]\nname = "stack"\nuse = ["owner.py", "listener.py"]\n'
    suite = write_suite(tmp_path, table)
    refused = energybench("check", suite, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"error[E310]: tiny.toml:{line_of(suite, '[[method]]')}" in refused.stderr
    assert "would never act" in refused.stderr
    hint = re.search(r"this order works: use = (\[.*\])", refused.stderr)
    assert hint
    order = json.loads(hint.group(1))
    assert sorted(order) == ["listener.py", "owner.py"]
    write_suite(tmp_path, table.replace('["owner.py", "listener.py"]', json.dumps(order)))
    assert energybench("check", suite, cwd=tmp_path).returncode == 0


def test_a_sensor_that_is_required_and_missing_is_exit_5(tmp_path: Path) -> None:
    facts = json.loads(energybench("doctor", "--json", cwd=tmp_path).stdout)
    if facts["energy"] == "measured":
        pytest.skip("this machine measures energy")
    suite = write_suite(tmp_path)
    suite.write_text(suite.read_text().replace('energy = "off"', 'energy = "require"'))
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 5
    assert f"error[E501]: tiny.toml:{line_of(suite, 'energy =')}:" in done.stderr
    assert not (tmp_path / "reports").exists()


def test_an_unknown_country_is_told_with_its_line(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    wrong = 'energy = "if available"\ncarbon = { country = "FRX" }'
    suite.write_text(suite.read_text().replace('energy = "off"', wrong))
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 2
    assert f"error[E502]: tiny.toml:{line_of(suite, 'FRX')}:" in done.stderr
    assert "hint: " in done.stderr


# ── check ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_prints_the_plan_of_what_run_then_does(finished: Done) -> None:
    before = sorted(finished.home.rglob("*"))
    as_json = energybench("check", finished.suite, "--json", cwd=finished.home)
    as_text = energybench("check", finished.suite, cwd=finished.home)
    assert (as_json.returncode, as_text.returncode) == (0, 0), as_json.stderr + as_text.stderr
    assert sorted(finished.home.rglob("*")) == before  # no file, no folder
    plan = json.loads(as_json.stdout)
    assert plan["ok"]
    run, trials, counting_runs = contents(finished.folder)
    assert plan["trials"] == len(trials)
    assert plan["witnesses"] == len(counting_runs)
    assert [(c["workload"], c["method"], c["plain_flop"]) for c in plan["cells"]] == [
        (c.workload, c.method, c.plain_flop) for c in run.cells
    ]
    assert plan["cells"][0]["plain_flop"] == pytest.approx(counting_runs["w.baseline"].counted_flop, rel=1e-3)
    for cell in plan["cells"]:
        if cell["control"] not in ("possible", "unlikely"):  # those are one line together
            assert cell["method"] in as_text.stdout
    assert plan["workloads"]["own"]["parameters"] == 2 * 3 + 3 + 3 + 1
    assert f"{plan['trials']} trials" in as_text.stdout


# ── run ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_as_json_prints_the_report_alone_on_stdout(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "dropout"\n')
    done = energybench("run", suite, "--json", "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts == json.loads(energybench("report", "here", "--json", cwd=tmp_path).stdout)
    assert (tmp_path / "here" / "report.md").exists()
    assert not (tmp_path / "reports").exists()


def test_settings_and_quick_are_stamped_on_the_run(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "\n[quick]\nworkload.train = { epochs = 1 }\n")
    done = energybench("run", suite, "--quick", "--set", "trials.twin=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    run, trials, _ = contents(folder)
    assert run.stamp == ["quick", "--set trials.twin=false"]
    assert [(t.method, t.epochs) for t in trials.values()] == [("baseline", 1)]
    title = (folder / "report.md").read_text().splitlines()[0]
    for text in (title, done.stdout):
        assert "quick" in text
        assert "--set trials.twin=false" in " ".join(text.split())


def test_report_and_show_of_a_real_run_need_no_torch(finished: Done) -> None:
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'fvcore', 'codecarbon'):\n"
        "            raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from energybench.cli.command_line import main\n"
        "main()\n"
    )
    record = next((finished.folder / "records").iterdir())
    for arguments in (["report", finished.folder], ["show", finished.folder], ["show", record]):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=finished.home,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_report_prints_what_run_printed(finished: Done) -> None:
    again = energybench("report", finished.folder, cwd=finished.home)
    printed = finished.process.stdout.rstrip().rpartition("report: ")[0].rstrip()
    assert again.stdout.rstrip() == printed


def test_a_folder_of_records_can_be_moved_and_still_reads(finished: Done, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "moved")
    moved = energybench("report", "moved", "--json", cwd=tmp_path)
    here = energybench("report", finished.folder, "--json", cwd=finished.home)
    assert json.loads(moved.stdout) == json.loads(here.stdout)


# ── new and cell ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_method_checks_and_runs_and_its_estimate_is_its_count(tmp_path: Path) -> None:
    assert energybench("new", "method", "every_other", cwd=tmp_path).returncode == 0
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "every_other"\n', twin=False)
    assert energybench("check", suite, cwd=tmp_path).returncode == 0
    done = energybench("run", suite, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, trials, counting_runs = contents(only_run(tmp_path))
    mine = next(t for t in trials.values() if t.method == "every_other")
    assert (mine.status, mine.flags, mine.steps) == ("ok", [], 4)  # every second of 2 × 4 batches
    counting_run = counting_runs["w.every_other"]
    assert counting_run.estimate is not None
    assert counting_run.counted_flop == pytest.approx(counting_run.estimate.estimated_flop, rel=1e-3)
    assert counting_run.counted_flop == pytest.approx(counting_run.estimate.plain_flop / 2, rel=1e-3)


def test_one_trial_can_be_run_from_a_file(tmp_path: Path) -> None:
    """`cell IN OUT` is what a scheduler calls; IN.json is what `run` gives its children."""
    spec = _captured_spec(tmp_path)
    (tmp_path / "in.json").write_text(json.dumps(spec))
    done = energybench("cell", "in.json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["status"], record["reason"]) == ("ok", None)
    assert (record["trial"], record["method"]) == (spec["header"]["trial"], "baseline")
    original = json.loads(next((tmp_path / "out" / "records").glob("*.baseline.json")).read_text())
    assert record["weights_sha256"] == original["weights_sha256"]
    losses = [[(point["epoch"], point["loss"]) for point in found["curve"]] for found in (record, original)]
    assert losses[0] == losses[1]


def _captured_spec(folder: Path) -> dict[str, Any]:
    """IN.json of a run's baseline, and its data kept; in this process, so that we see what the launcher is given."""
    import io

    from rich.console import Console

    from energybench.process.forkserver import Launcher
    from energybench.runner import runner
    from energybench.runner.progress import Progress
    from energybench.suite.suite import load

    found: dict[str, Any] = {}

    class Watched(Launcher):
        def call(self, target: str, in_path: Path, out_path: Path, **options: Any) -> Any:
            if target.startswith("energybench.trial.trial"):
                spec = json.loads(in_path.read_text())
                if (spec["mode"], spec["header"]["method"]) == ("trial", "baseline"):
                    kept = folder / "data.pt"
                    shutil.copy(spec["data"]["file"], kept)
                    found.update(spec | {"data": spec["data"] | {"file": str(kept)}})
            return super().call(target, in_path, out_path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Launcher", Watched)
        quiet = Progress(Console(file=io.StringIO()), Console(file=io.StringIO()), quiet=True)
        assert runner.run(load(write_suite(folder)), out=folder / "out", progress=quiet)[0] == 0
    return found


# ── no network ────────────────────────────────────────────────────────────────────────────────────────────

DENY = """
import os, socket

def deny(what):
    def refuse(self, address, *rest):
        if isinstance(self, socket.socket) and self.family == socket.AF_UNIX:
            return what(self, address, *rest)
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write(f"{address}\\n")
        raise OSError("no network: " + str(address))
    return refuse

class Socket(socket.socket):
    connect = deny(socket.socket.connect)
    connect_ex = deny(socket.socket.connect_ex)
    sendto = deny(socket.socket.sendto)

def resolve(host, *rest, **more):
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{host}\\n")
    raise socket.gaierror("no network: " + str(host))

socket.socket = Socket
socket.getaddrinfo = socket.gethostbyname = resolve
"""


def test_a_whole_run_asks_nothing_of_the_network(tmp_path: Path) -> None:
    """Denied to the parent, its server and every trial; energy is modelled and carbon asked for, which needs tables."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(DENY)
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "dropout"\n')
    energy = 'energy = "if available"\ncarbon = { country = "FRA" }'
    suite.write_text(suite.read_text().replace('energy = "off"', energy))
    path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    extra = {"PYTHONPATH": path, "ATTEMPTS": str(tmp_path / "attempts")}
    probe = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 1)"],
        env=environment(**extra),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no network" in probe.stderr  # the hook works
    (tmp_path / "attempts").unlink()
    done = energybench("run", suite, cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()
    run, trials, _ = contents(only_run(tmp_path))
    assert run.machine["carbon"]["zone"] == "FRA"
    for trial in trials.values():
        assert trial.train is not None
        figures = [e for e in trial.train.energy if e.source != "unavailable"]
        assert figures
        assert all(e.energy_j is not None and e.energy_j > 0 for e in figures)
        assert trial.train.energy
