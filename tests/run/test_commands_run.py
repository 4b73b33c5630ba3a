"""Suites of commands, end to end: real scripts, well-behaved and not, in Python and in /bin/sh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import energybench, start
from tiny_runs import Done, contents, only_run, processes_with, wait_for

from energybench.records.reader import read
from energybench.records.record import Trial

pytestmark = pytest.mark.slow

FINE = """
import json, os, sys
print("a word of its own")
told = {key[12:].lower(): value for key, value in os.environ.items() if key.startswith("ENERGYBENCH_")}
print(json.dumps({"accuracy": 0.75, **told, "argv": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}))
"""
WORKER = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
SCRIPTS = {
    "fine.py": FINE,
    "crash.py": "import sys\nprint('x' * 10)\nraise ValueError('no such layer')\n",
    "hang.py": "import time\nprint('up', flush=True)\ntime.sleep(600)\n",
    "deaf.py": "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n",
    "mute.py": "print('trained')\n",
    "nan.py": "print('{\"accuracy\": NaN}')\n",
    "words.py": 'print(\'{"accuracy": "high"}\')\n',
    "greedy.py": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "memory.py": "bytearray(1 << 60)\n",
    "forks.py": f"""
import json, subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", {WORKER!r}], start_new_session=True) for _ in range(2)]
print(json.dumps({{"accuracy": 0.75}}), flush=True)
""",
    "loud.py": "for _ in range(400000): print('x' * 100)\nprint('{\"accuracy\": 0.75}')\n",
    "shell.sh": 'echo "epoch 1 acc=0.5"\necho "epoch 2 acc=0.75"\n',
    "stops.sh": "echo 'out of space' >&2\nexit 3\n",
    "file.sh": 'mkdir -p out && echo "{\\"test\\": {\\"accuracy\\": 0.$1}}" > out/metrics.json\n',
    "window.py": """
import json, os, time
start = time.perf_counter()
time.sleep(0.3)
stop = time.perf_counter()
reading = {"wall_s": 0.25, "energy": []}
line = {"name": "train", "steps": 10, "samples": 640, "quality": {"accuracy": 0.75, "loss": 0.5}, "start_s": start,
        "stop_s": stop, "reading": reading, "flop": {"estimated": FLOP, "counted": None}}
with open(os.environ["ENERGYBENCH_WINDOWS"], "a") as file:
    print(json.dumps(line), file=file)
time.sleep(0.3)
""",
}
EXPECTED = {  # method → status, words of its reason
    "crash": ("failed", "it ended with status 1: ValueError: no such layer"),
    "hang": ("timeout", "it ran past its limit of 3 s"),
    "deaf": ("timeout", "it ran past its limit of 3 s, and ignored SIGTERM"),
    "mute": ("failed", "no accuracy: it printed no JSON line with the key 'accuracy'"),
    "nan": ("diverged", "its accuracy is nan"),
    "words": ("failed", 'its accuracy is "high", which is no number'),
    "greedy": ("out_of_memory", "killed by SIGKILL"),
    "memory": ("out_of_memory", "MemoryError"),
    "gone": ("failed", "could not be started"),
}
HEAD = """schema = 1
suite = "tiny"
[trials]
blocks = {blocks}
warmup = "0 s"
limit = "3 s"
threads = 1
[measure]
energy = "off"
"""


def home_of(folder: Path, tables: str, blocks: int = 1) -> Path:
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    (folder / "tiny.toml").write_text(HEAD.format(blocks=blocks) + tables)
    return folder


def with_python() -> dict[str, str]:
    """`python` is the one that runs the tests."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def ran(home: Path, *options: str, **environment: str) -> Done:
    process = energybench("run", "tiny.toml", *options, cwd=home, **with_python(), **environment)
    return Done(process, home, home / "tiny.toml", only_run(home))


@pytest.fixture(scope="module")
def marker() -> str:
    return f"energybench-command-{os.getpid()}-{time.time_ns()}"


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, marker: str) -> Done:
    names = [*EXPECTED, "forks", "loud"]
    commands = {name: f"python {name}.py" for name in names} | {"gone": "./gone.sh"}
    tables = "".join(f'\n[[method]]\nname = "{n}"\ncommand = "{commands[n]}"\n' for n in names)
    plain = '[[workload]]\nname = "w"\ncommand = "python fine.py"\nquality = { from = "json" }\n'
    home = home_of(tmp_path_factory.mktemp("commands"), plain + tables)
    (home / "gone.sh").write_text("#!/nowhere/interpreter\n")  # found when planned, not startable when run
    (home / "gone.sh").chmod(0o755)
    return ran(home, "--keep-going", MARKER=marker)


def by_method(done: Done) -> dict[str, Trial]:
    return {t.method: t for t in contents(done.folder)[1].values()}


@pytest.mark.parametrize("method", EXPECTED)
def test_a_command_that_fails_is_a_record_with_its_reason(failing: Done, method: str):
    status, reason = EXPECTED[method]
    trial = by_method(failing)[method]
    assert (trial.status, reason in (trial.reason or "")) == (status, True), (trial.status, trial.reason)


def test_the_others_go_on_and_the_exit_code_says_that_some_failed(failing: Done):
    assert failing.process.returncode == 3, failing.process.stderr
    assert {by_method(failing)[name].status for name in ("baseline", "twin", "forks", "loud")} == {"ok"}
    assert "Traceback" not in failing.process.stderr


def test_workers_left_behind_are_ended_and_their_trial_gets_no_verdict(failing: Done, marker: str):
    flags = {flag.code: flag.detail for flag in by_method(failing)["forks"].flags}
    assert flags == {"left_behind": "2 processes"}
    assert not processes_with(marker)
    assert "outlived it" in (failing.folder / "report.md").read_text()


def test_a_script_that_prints_40_megabytes_leaves_a_log_of_one_and_its_quality_is_read(failing: Done):
    assert by_method(failing)["loud"].quality == {"accuracy": 0.75}
    sizes = {file.name: file.stat().st_size for file in (failing.folder / "logs").iterdir()}
    assert sizes["b0-i0-w.loud.log"] < 1_300_000


def test_what_it_said_before_it_crashed_is_in_its_log(failing: Done):
    log = (failing.folder / "logs" / "b0-i0-w.crash.log").read_text()
    assert "xxxxxxxxxx" in log
    assert "ValueError: no such layer" in log


def test_no_record_of_a_command_has_an_estimate_or_a_witness(failing: Done):
    run, trials, counting_runs = contents(failing.folder)
    assert not counting_runs
    assert {trial.estimate for trial in trials.values()} == {None}
    assert all(cell.command for cell in run.cells)


def test_a_command_knows_its_seed_block_and_trial(tmp_path: Path):
    tables = """[[workload]]
name = "w"
command = "python fine.py {seed} --out out/{trial} {block} {{unknown}} ${unknown}"
quality = { from = "json" }
"""
    done = ran(home_of(tmp_path, tables, blocks=2), "--set", "trials.seed=40")
    assert done.process.returncode == 0, done.process.stderr
    for trial in contents(done.folder)[1].values():
        log = (done.folder / "logs" / f"{trial.trial}.log").read_text()
        told = json.loads(log.splitlines()[1])
        assert (told["seed"], told["block"], told["trial"]) == (str(40 + trial.block), str(trial.block), trial.trial)
        seed = str(40 + trial.block)
        assert told["argv"] == [seed, "--out", f"out/{trial.trial}", str(trial.block), "{unknown}", "${unknown}"]
        assert told["threads"] == "1"
        assert trial.settings["command"][2] == seed
        assert trial.seed == 40 + trial.block


def test_quality_from_a_regular_expression_is_the_last_match_and_from_a_file_that_was_written_now(tmp_path: Path):
    tables = """[[workload]]
name = "printed"
command = "sh shell.sh"
quality = { from = "regex", pattern = 'acc=([0-9.]+)' }
[[workload]]
name = "written"
command = "sh file.sh 75"
quality = { from = "file", path = "out/metrics.json", key = "test.accuracy" }
[[method]]
name = "other"
command = { printed = "sh stops.sh", written = "sh file.sh 80" }
[[method]]
name = "lazy"
command = { written = "true" }
"""
    done = ran(home_of(tmp_path, tables), "--keep-going")
    found = {(t.workload, t.method): t for t in contents(done.folder)[1].values()}
    assert found["printed", "baseline"].quality == {"accuracy": 0.75}
    assert (found["printed", "other"].status, found["printed", "other"].reason) == (
        "failed",
        "it ended with status 3: out of space",
    )
    assert found["written", "baseline"].quality == {"accuracy": 0.75}
    assert found["written", "other"].quality == {"accuracy": 0.8}
    assert found["written", "lazy"].status == "failed"
    reason = found["written", "lazy"].reason or ""
    assert "metrics.json is older than the trial" in reason or "it wrote no metrics.json" in reason
    assert ("printed", "lazy") not in found


def test_a_scripts_own_window_takes_the_place_of_the_whole_command(tmp_path: Path):
    home = home_of(
        tmp_path,
        """[[workload]]
name = "w"
command = "python window.py"
quality = { from = "window" }
[[method]]
name = "half"
command = "python half.py"
[[method]]
name = "whole"
command = "python fine.py"
""",
        blocks=3,
    )
    (home / "half.py").write_text(SCRIPTS["window.py"].replace("FLOP", "5e9"))
    (home / "window.py").write_text(SCRIPTS["window.py"].replace("FLOP", "1e10"))
    done = ran(home, "--keep-going")
    trials = {t.method: t for t in contents(done.folder)[1].values() if t.block == 0}
    plain = trials["baseline"]
    assert plain.train is not None
    assert plain.train.wall_s == 0.25  # what its window says
    assert plain.phases["command"].wall_s >= 0.3 + 0.3
    assert (plain.steps, plain.samples, plain.flop) == (10, 640, {"estimated": 1e10})
    assert plain.quality == {"accuracy": 0.75, "loss": 0.5}
    assert (trials["whole"].status, trials["whole"].reason) == (
        "failed",
        "no accuracy: none of its windows says 'accuracy'",
    )
    facts = json.loads(energybench("report", done.folder, "--json", cwd=home).stdout)
    row = next(row for row in facts["workloads"][0]["rows"] if row["method"] == "half")
    assert row["estimated_rel"] == pytest.approx(0.5)
    assert row["counted_rel"] is None


def test_a_window_is_never_held_against_a_whole_command(tmp_path: Path):
    home = home_of(
        tmp_path,
        """[[workload]]
name = "w"
command = "python window.py"
quality = "none"
[[method]]
name = "whole"
command = "sleep 0.3"
""",
        blocks=3,
    )
    (home / "window.py").write_text(SCRIPTS["window.py"].replace("FLOP", "1e10"))
    done = ran(home)
    facts = json.loads(energybench("report", done.folder, "--json", cwd=home).stdout)
    row = facts["workloads"][0]["rows"][0]
    assert row["verdict"] == "no verdict"
    (unlike,) = [flag for flag in row["flags"] if flag["code"] != "host_contention"]  # of other work beside the tests
    assert unlike["code"] == "unlike"
    assert "the whole command against the script's own window 'train'" in unlike["detail"]


TAKES = """
import json, os, sys
seconds = float(sys.argv[1])
line = {"name": "train", "start_s": 1.0, "stop_s": 1.0 + seconds,
        "reading": {"wall_s": seconds, "cpu_s": seconds, "steal_s": 0.0}}
with open(os.environ["ENERGYBENCH_WINDOWS"], "a") as file:
    print(json.dumps(line), file=file)
"""


def test_less_time_is_told_where_there_is_no_quality_to_lose_and_the_report_says_so(tmp_path: Path):
    """Seconds that each command's own window gives: 4 and 1."""
    home = home_of(
        tmp_path,
        """[[workload]]
name = "wait"
command = "python takes.py 4"
quality = "none"
[[method]]
name = "short"
command = "python takes.py 1"
claims = { training = "75 %", from = "arithmetic" }
""",
        blocks=3,
    )
    (home / "takes.py").write_text(TAKES)
    done = ran(home)
    assert done.process.returncode == 0, done.process.stderr
    facts = json.loads(energybench("report", done.folder, "--json", cwd=tmp_path).stdout)
    row = facts["workloads"][0]["rows"][0]
    assert row["verdict"] == "faster"
    assert row["measured"]["quantity"] == "time"
    assert row["measured"]["saving_rel"] == pytest.approx(0.75)
    text = (done.folder / "report.md").read_text()
    assert "Quality is not judged" in text
    assert "takes" in text.partition("\n\n")[2].partition("\n\n")[0]
    assert "less time than the plain command on wait" in text
    assert "not available" in text
    assert "takes.py 1" in text
    assert "no matched control" in text
    assert "saves" not in done.process.stdout.partition("wait")[0]  # energy was not measured


def test_no_process_of_ours_imports_torch_for_a_suite_of_commands(tmp_path: Path):
    home = home_of(tmp_path, '[[workload]]\nname = "w"\ncommand = "true"\nquality = "none"\n')
    (home / "torch.py").write_text("raise SystemExit('torch was imported')")
    process = energybench("run", "tiny.toml", cwd=home, PYTHONPATH=f"{home}:{os.environ.get('PYTHONPATH', '')}")
    assert process.returncode == 0, process.stderr
    assert "torch was imported" not in process.stderr


def test_a_suite_of_both_kinds_runs_both(tmp_path: Path):
    done = ran(
        home_of(
            tmp_path,
            """[[workload]]
name = "script"
command = "python fine.py"
quality = { from = "json" }
[[workload]]
name = "ours"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 1, lr = 0.1 }
[[method]]
name = "trick"
command = "python fine.py --trick"
[[method]]
use = "nothing"
""",
        ),
        "--set",
        "trials.limit=60 s",
    )
    assert done.process.returncode == 0, done.process.stderr
    _, trials, counting_runs = contents(done.folder)
    assert {(t.workload, t.method) for t in trials.values()} == {
        ("script", "baseline"),
        ("script", "twin"),
        ("script", "trick"),
        ("ours", "baseline"),
        ("ours", "twin"),
        ("ours", "nothing"),
    }
    assert {name.partition(".")[0] for name in counting_runs} == {"ours"}


@pytest.mark.parametrize(
    ("command", "code", "hint"),
    [
        ("pyhton fine.py", "E421", "install it"),
        ("fine.py", "E421", "python fine.py"),
        ("shell.sh", "E421", "./shell.sh"),
        ("./shell.sh", "E421", "chmod +x ./shell.sh"),
        ("SEED=1 python fine.py", "E421", 'env = { SEED = "value" }'),
        ("python fien.py", "E422", "did you mean 'fine.py'?"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_measured(tmp_path: Path, command: str, code: str, hint: str):
    home = home_of(tmp_path, f'[[workload]]\nname = "w"\ncommand = "{command}"\nquality = "none"\n')
    done = energybench("run", "tiny.toml", cwd=home, **with_python())
    assert done.returncode == 2
    assert f"error[{code}]: tiny.toml:12:1:" in done.stderr
    assert hint in done.stderr
    assert not (home / "reports").exists()


def test_another_script_under_the_same_name_is_another_run_and_the_same_one_is_continued(tmp_path: Path):
    home = home_of(tmp_path, '[[workload]]\nname = "w"\ncommand = "python fine.py"\nquality = "none"\n')

    def digest() -> str:
        facts = energybench("check", "tiny.toml", "--json", cwd=home, **with_python())
        assert facts.returncode == 0, facts.stdout
        return json.loads(facts.stdout)["sources"]["fine.py"]

    before = digest()
    assert digest() == before
    (home / "fine.py").write_text(FINE + "# changed\n")
    assert digest() != before


def test_an_interrupted_run_leaves_no_command_running_and_continues(tmp_path: Path, marker: str):
    home = home_of(tmp_path, '[[workload]]\nname = "w"\ncommand = "sleep 2.5"\nquality = "none"\n')
    own = f"{marker}-interrupted"
    process = start("run", "tiny.toml", cwd=home, MARKER=own)
    sleeping = wait_for(lambda: [p for p in processes_with(own) if b"sleep" in _argv(p)])
    process.send_signal(2)
    assert process.wait(600) == 130
    assert "The same command continues" in (process.stderr.read() if process.stderr else "")
    wait_for(lambda: not processes_with(own))
    assert sleeping
    done = energybench("run", "tiny.toml", cwd=home)
    assert done.returncode == 0, done.stderr
    assert {t.status for t in contents(only_run(home))[1].values()} == {"ok"}


def test_a_killed_run_takes_the_command_and_its_workers_with_it(tmp_path: Path, marker: str):
    command = "sh -c 'sleep 600 & sleep 600'"
    home = home_of(tmp_path, f'[[workload]]\nname = "w"\ncommand = "{command}"\nquality = "none"\n')
    own = f"{marker}-killed"
    process = start("run", "tiny.toml", "--set", "trials.limit=60 s", cwd=home, MARKER=own)
    wait_for(lambda: len([p for p in processes_with(own) if _argv(p).startswith(b"sleep")]) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: not processes_with(own))


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_warm_up_is_one_unmetered_run_of_the_plain_command_and_ends_in_time(tmp_path: Path):
    home = home_of(
        tmp_path,
        """[[workload]]
name = "w"
command = "sh -c 'echo $ENERGYBENCH_TRIAL >> trials.txt; test $ENERGYBENCH_TRIAL != warmup || sleep 60'"
quality = "none"
""",
    )
    done = ran(home, "--set", "trials.warmup=1 s")
    assert done.process.returncode == 0, done.process.stderr
    assert sorted((home / "trials.txt").read_text().split()) == ["b0-i0-w.baseline", "b0-i0-w.twin", "warmup"]


def test_a_cell_that_is_a_command_is_a_verb_of_its_own(tmp_path: Path):
    home_of(tmp_path, "")
    spec = {
        "mode": "command",
        "base": str(tmp_path),
        "command": ["python", "fine.py"],
        "metric": "accuracy",
        "workload": {"name": "w", "command": "python fine.py", "quality": {"from": "json"}},
        "threads": None,
        "device_name": "cpu",
        "limit_s": 60,
        "measure": {"energy": "off"},
        "windows": str(tmp_path / "w.jsonl"),
        "log": str(tmp_path / "log"),
        "trace": None,
        "header": {
            "trial": "t",
            "workload": "w",
            "method": "baseline",
            "role": "baseline",
            "block": 0,
            "seed": 1,
            "invocation": 0,
            "position": 0,
            "digest": "",
            "started_at": "",
        },
    }
    (tmp_path / "in.json").write_text(json.dumps(spec))
    done = energybench("cell", "in.json", "out.json", cwd=tmp_path, **with_python())
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out.json", Trial).quality["accuracy"] == 0.75


def test_this_machine_can_tell_a_marked_process(marker: str):
    child = subprocess.Popen(["sleep", "30"], env={**os.environ, "MARKER": f"{marker}-own"})
    try:
        assert processes_with(f"{marker}-own") == [child.pid]
    finally:
        child.kill()
        child.wait()
