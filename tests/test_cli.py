"""The command line without a trial: words, exit codes, and what is imported when. Each call is a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE_S, energybench, environment
from json_schema import refusal

from energybench.cli.command_line import GROUPS
from energybench.cli.suite_schema import suite_schema
from energybench.suite.suite import Suite

ROOT = Path(__file__).resolve().parent.parent
VERBS = [
    "cell",
    "check",
    "claims",
    "compare",
    "doctor",
    "export",
    "flops",
    "list",
    "measure",
    "new",
    "overhead",
    "report",
    "reread",
    "run",
    "schema",
    "show",
]
# An interpreter in which torch and all that is heavy cannot be imported.
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
sys.argv = ["energybench", *{arguments}]
from energybench.cli import main
main()
"""


def call(*arguments: str, cwd: Path = ROOT, blocked: tuple[str, ...] = (), **extra: str) -> Any:
    if not blocked:
        return energybench(*arguments, cwd=cwd, **extra)
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked, arguments=list(arguments))]
    return subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def on_a_terminal(*arguments: str, **extra: str) -> str:
    """What a terminal of 80 columns is sent."""
    parent, child = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm", **extra}
    process = subprocess.Popen(
        [sys.executable, "-m", "energybench", *arguments],
        stdout=child,
        stderr=child,
        stdin=child,
        env=env,
        cwd=ROOT,
        close_fds=True,
    )
    os.close(child)
    sent, deadline = b"", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not select.select([parent], [], [], 1)[0]:
            continue
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        sent += piece
    os.close(parent)
    process.wait(PATIENCE_S)
    return sent.decode()


# ── help and words ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_verb_with_a_sentence(flag: str) -> None:
    done = call(flag)
    assert (done.returncode, done.stderr) == (0, "")
    sections = re.findall(r"^([A-Z][\w ]+):\n((?:  .+\n)+)", done.stdout, re.MULTILINE)
    verbs = {title: re.findall(r"^  (\w+) +\S", rows, re.MULTILINE) for title, rows in sections}
    assert sorted(verb for title in GROUPS for verb in verbs[title]) == VERBS
    assert [title for title, _ in sections] == ["Options", *GROUPS, "Examples"]
    assert verbs["For energybench itself"] == ["cell"]
    for line in dict(sections)["Examples"].splitlines():
        words = line.split("  ")[1].split()
        assert (words[0], words[1] in VERBS) == ("energybench", True)
    assert "docs/" in done.stdout


@pytest.mark.parametrize("verb", [*VERBS, "new method"])
def test_every_verb_has_help_of_its_own(verb: str) -> None:
    done = call(*verb.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")


def test_version_is_the_packages() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert call("--version").stdout.split()[-2:] == ["energybench", version]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["rn"], "'run'"),
        (["chekc"], "'check'"),
        (["new", "metod", "x"], "'method'"),
        (["run", "quick", "--quik"], "'--quick'"),
        (["run", "quik"], "'quick'"),
        (["check", "cifr"], "'cifar'"),
        (["run", "suites/quik.toml"], "'suites/quick.toml'"),
        pytest.param(["run", "quick", "--set", "trails.blocks=2"], "'trials'", marks=pytest.mark.slow),
        pytest.param(["run", "quick", "--set", "trials.blcks=2"], "'blocks'", marks=pytest.mark.slow),
    ],
)
def test_a_word_mistyped_is_refused_with_the_nearest_one(arguments: list[str], word: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["show", "nowhere"], ["report", "nowhere"], ["list", "nowhere"], ["run", "suites"], ["cell", "a", "b"]],
)
def test_wrong_usage_is_exit_2_and_a_message(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search("(?i)error", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_reader_who_leaves_early_causes_no_trace() -> None:
    done = subprocess.run(
        f"{sys.executable} -m energybench schema | head -1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


# ── what is imported ──────────────────────────────────────────────────────────────────────────────────────

HEAVY = ("torch", "torchvision", "scipy", "numpy", "fvcore", "codecarbon")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"], ["list", "--json"], ["--version"]])
def test_help_and_list_need_nothing_heavy(arguments: list[str]) -> None:
    done = call(*arguments, blocked=(*HEAVY, "pydantic", "rich", "psutil"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_schema_needs_no_torch() -> None:
    assert call("schema", blocked=HEAVY).returncode == 0


# ── list ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_list_as_json_and_as_text_hold_the_same_names() -> None:
    found = json.loads(call("list", "--json").stdout)
    assert set(found) == {"methods", "suites", "tasks", "models", "data"}
    text = call("list").stdout
    for kind, entries in found.items():
        assert kind in text.splitlines()
        for entry in entries:
            assert re.search(rf"^  {re.escape(entry['name'])} ", text, re.MULTILINE)
            assert entry["summary"]
            assert entry["origin"]


def test_list_knows_every_shipped_file() -> None:
    found = json.loads(call("list", "--json").stdout)
    assert {e["name"] for e in found["methods"]} == {p.stem for p in (ROOT / "methods").glob("[!_]*.py")}
    assert {e["name"] for e in found["suites"]} == {p.stem for p in (ROOT / "suites").glob("*.toml")}
    assert {"digits", "mnist5k", "cifar10"} <= {e["name"] for e in found["data"]}
    assert {"cnn", "mlp", "vit_tiny"} <= {e["name"] for e in found["models"]}


def test_list_shows_one_kind() -> None:
    assert list(json.loads(call("list", "suites", "--json").stdout)) == ["suites"]
    assert "models" not in call("list", "suites").stdout


def test_list_says_what_a_method_takes() -> None:
    methods = {e["name"]: e for e in json.loads(call("list", "methods", "--json").stdout)["methods"]}
    assert ["drop", "float", "0.8"] in methods["ssprop"]["parameters"]


def test_list_finds_methods_and_suites_here_and_says_so(tmp_path: Path) -> None:
    files = (("methods", "mine.py", '"""mine: is mine."""\n'), ("suites", "own.toml", 'about = "Ours."'))
    for kind, file, text in files:
        (tmp_path / kind).mkdir()
        (tmp_path / kind / file).write_text(text)
    found = json.loads(call("list", "--json", cwd=tmp_path).stdout)
    here = {(e["name"], e["origin"], e["summary"]) for kind in ("methods", "suites") for e in found[kind]}
    assert ("mine", "./methods", "mine: is mine.") in here
    assert ("own", "./suites", "Ours.") in here
    assert "ssprop" in {e["name"] for e in found["methods"]}  # the shipped ones from anywhere


@pytest.mark.parametrize("columns", [40, 60, 100, 200])
def test_list_keeps_to_the_width_and_never_loses_a_name(columns: int) -> None:
    text = call("list", "suites", COLUMNS=str(columns)).stdout
    assert "quick" in text
    longest = max(len(line) for line in text.splitlines())
    assert longest <= max(columns, 40)


# ── colours ───────────────────────────────────────────────────────────────────────────────────────────────

COLOURS = re.compile(r"\x1b\[[\d;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[\d;]*m")


@pytest.mark.parametrize("arguments", [["list"], ["show", "{run}"], ["report", "{run}"]])
def test_no_color_is_respected_on_a_terminal(arguments: list[str], run_folder: Path) -> None:
    filled = [word.format(run=run_folder) for word in arguments]
    assert not COLOURS.search(on_a_terminal(*filled, NO_COLOR="1"))


@pytest.mark.parametrize("arguments", [["list"], ["show", "{run}"], ["report", "{run}"]])
def test_a_pipe_gets_no_escape_codes(arguments: list[str], run_folder: Path) -> None:
    done = call(*(word.format(run=run_folder) for word in arguments))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


# ── schema ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_schema_is_json_schema_of_every_key_of_a_suite() -> None:
    schema = json.loads(call("schema").stdout)
    assert schema == json.loads(json.dumps(suite_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    keys = {field.alias or name for name, field in Suite.model_fields.items()}
    assert set(schema["properties"]) == keys
    assert schema["additionalProperties"] is False


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = suite_schema()
    references = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema))
    assert references
    assert set(references) <= set(schema["$defs"])


@pytest.mark.parametrize("file", sorted((ROOT / "suites").glob("*.toml")), ids=lambda p: p.stem)
def test_the_schema_admits_every_shipped_suite(file: Path) -> None:
    assert refusal(suite_schema(), tomllib.loads(file.read_text())) is None


@pytest.mark.parametrize(
    "wrong",
    [{"shema": 1}, {"trials": {"blcks": 1}}, {"workload": [{"model": {"use": "cnn"}}]}, {"trials": {"blocks": "3"}}],
)
def test_the_schema_refuses_what_a_suite_refuses(wrong: dict[str, Any]) -> None:
    good = tomllib.loads((ROOT / "suites" / "quick.toml").read_text())
    assert refusal(suite_schema(), {**good, **wrong})


# ── show and report, from records alone ───────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's files, written by hand: two blocks of baseline, twin and one method that takes half the time."""
    from energybench.meter.reading import Reading
    from energybench.records.record import Cell, RunFile, Trial, write_json

    folder = tmp_path_factory.mktemp("records")
    cells = [
        Cell(workload="w", method=m, role=r, plain_flop=1e9)  # type: ignore[arg-type]
        for m, r in (("baseline", "baseline"), ("twin", "twin"), ("halved", "method"))
    ]
    write_json(
        folder / "run.json",
        RunFile(
            suite="s",
            run="r",
            digest="d",
            suite_path="s.toml",
            suite_text="",
            resolved={},
            cells=cells,
            blocks=2,
            finished=True,
        ),
    )
    for block in range(2):
        for position, cell in enumerate(cells):
            seconds = (1.0 if cell.method == "halved" else 2.0) + 0.01 * block
            record = Trial(
                trial=f"b{block}-i0-w.{cell.method}",
                workload="w",
                method=cell.method,
                role=cell.role,
                block=block,
                seed=block,
                invocation=0,
                position=position,
                status="ok",
                digest="d",
                started_at="2026-01-01T00:00:00+00:00",
                quality={"accuracy": 0.75},
                epochs=2,
                phases={"train": Reading(wall_s=seconds, cpu_s=seconds)},
            )
            write_json(folder / "records" / f"{record.trial}.json", record)
    return folder


def test_report_works_where_torch_is_missing(run_folder: Path) -> None:
    done = call("report", str(run_folder), blocked=("torch", "torchvision", "fvcore", "codecarbon"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "halved" in done.stdout
    assert "49.9 %" in done.stdout  # exp of the mean log ratio of 1.00/2.00 and 1.01/2.01


def test_report_as_json_holds_the_same_facts(run_folder: Path) -> None:
    done = call("report", str(run_folder), "--json", blocked=("torch", "torchvision", "fvcore", "codecarbon"))
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["suite"] == "s"
    text = json.dumps(facts)
    assert '"halved"' in text
    # mean of ln(1.00/2.00) and ln(1.01/2.01), by hand
    saving = 1 - (1.00 / 2.00 * 1.01 / 2.01) ** 0.5
    found = [float(n) for n in re.findall(r"\d+\.\d+", text)]
    assert any(abs(n - saving) < 1e-9 for n in found)


def test_report_writes_its_page_only_when_asked(run_folder: Path) -> None:
    call("report", str(run_folder))
    assert not (run_folder / "report.md").exists()
    assert call("report", str(run_folder), "--write").returncode == 0
    assert "halved" in (run_folder / "report.md").read_text()
    (run_folder / "report.md").unlink()


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_narrow_terminal_drops_columns_and_never_crops_a_number(run_folder: Path, columns: int) -> None:
    done = call("report", str(run_folder), COLUMNS=str(columns))
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "…" not in done.stdout
    assert re.search(r"\b(49\.9|50) ?%", done.stdout)  # 1 − √(1.00/2.00 · 1.01/2.01)


def test_show_prints_the_trials_of_a_run(run_folder: Path) -> None:
    done = call("show", str(run_folder))
    assert done.returncode == 0
    for path in (run_folder / "records").iterdir():
        assert path.stem in done.stdout.replace("\n", "")


def test_show_prints_one_record_whole(run_folder: Path) -> None:
    path = run_folder / "records" / "b0-i0-w.halved.json"
    done = call("show", str(path))
    assert done.returncode == 0
    body = done.stdout[done.stdout.index("{") :]
    assert json.loads(body) == json.loads(path.read_text())


@pytest.mark.parametrize("text", ["x", "[]", "{}", "[" * 100_000])
def test_a_file_that_describes_no_trial_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(text)
    done = call("cell", "in.json", "out.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error[E601]: in.json: ")
    assert not (tmp_path / "out.json").exists()


def test_show_tells_what_a_file_of_a_run_is_by_what_it_holds(run_folder: Path, tmp_path: Path) -> None:
    """It advised to move a sound run.json out of the way, as a broken record of a trial."""
    from energybench.records.record import CountingRun, write_json

    assert call("show", str(run_folder / "run.json")).stdout == call("show", str(run_folder)).stdout
    counted = CountingRun(workload="w", method="m", role="method", seed=0, digest="d", status="ok", counted_flop=8.0)
    write_json(tmp_path / "counted.json", counted)
    done = call("show", str(tmp_path / "counted.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("w · m · ok\n")


def test_seconds_of_the_processor_that_nobody_knows_are_not_shown_as_none(tmp_path: Path) -> None:
    from energybench.meter.reading import Reading
    from energybench.records.record import Trial, write_json

    record = Trial(
        trial="t",
        workload="w",
        method="m",
        role="method",
        block=0,
        seed=0,
        invocation=0,
        position=0,
        status="ok",
        digest="d",
        started_at="2026-01-01T00:00:00+00:00",
        phases={"train": Reading(wall_s=2.0, cpu_s=None)},
    )
    write_json(tmp_path / "t.json", record)
    assert "  train: 2 s wall\n" in call("show", str(tmp_path / "t.json")).stdout


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_number_that_is_none_is_refused(number: str, run_folder: Path) -> None:
    sci = ["export", str(run_folder), "--to", "sci", "--lifespan", number, "--embodied"]
    for arguments in (["doctor", "--seconds", number], [*sci, "1"], [*sci, number]):
        done = call(*arguments)
        assert done.returncode == 2
        assert "is not a finite number" in done.stderr


def test_a_broken_record_is_told_with_its_path(run_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "b0-i0-w.halved.json"
    broken.write_bytes((run_folder / "records" / "b0-i0-w.halved.json").read_bytes()[:150])
    done = call("show", str(broken))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error[E601]: {broken}: ")
    assert "hint: " in done.stderr


def test_what_a_hint_says_can_be_typed_where_names_have_spaces(run_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "my runs"
    shutil.copytree(run_folder, home / "the first")
    for words in (["compare", "golden counts.json", home / "the first"], ["compare", home, home / "the first"]):
        done = call(*map(str, words))
        assert done.returncode == 2
        (hint,) = (line for line in done.stderr.splitlines() if line.startswith("hint: "))
        assert "golden counts.json" in shlex.split(hint) or str(home / "the first") in shlex.split(hint)
    broken = home / "the first" / "records" / "b0-i0-w.halved.json"
    broken.write_bytes(broken.read_bytes()[:150])
    hint = call("report", str(home / "the first")).stderr.partition("hint: ")[2]
    subprocess.run(hint.partition(" — ")[0], shell=True, check=True)
    assert call("report", str(home / "the first")).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "{long}"],
        ["run", "{long}/s.toml"],
        ["compare", "{long}", "{long}"],
        ["overhead", "{long}"],
        ["new", "method", "{long}"],
        ["measure", "--energy", "off", "--pairs", "1", "--vs", "{long} 1", "--", "true"],
    ],
)
def test_a_name_longer_than_the_system_takes_is_told(arguments: list[str], tmp_path: Path) -> None:
    done = call(*(word.format(long="a" * 300) for word in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert "error[E" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["check", "quick"], ["new", "method", "mine"]])
def test_a_folder_that_was_removed_under_us_is_told(arguments: list[str], tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-m", "energybench", *arguments])
    done = subprocess.run(
        f"mkdir gone && cd gone && rmdir ../gone && {command}",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error[E613]: the folder that you are in is gone\nhint: " in done.stderr


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    for verb in ("show", "report"):
        done = call(verb, str(tmp_path))
        assert done.returncode == 2
        assert f"error[E601]: {tmp_path / 'run.json'}" in done.stderr


def test_a_record_that_cannot_be_kept_is_told_before_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call("measure", "-o", str(tmp_path / "file" / "r.json"), "--", "echo", "it ran", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error[E605]" in done.stderr


def test_the_claims_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call("claims", "--markdown", str(tmp_path / "file" / "page.md"))
    assert done.returncode == 2
    assert done.stderr.startswith("error[E620]: ")


# ── new ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_method_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "methods").write_text("a file in its place")
    done = call("new", "method", "my_idea", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error[E605]: ")


def test_a_new_method_is_a_file_that_list_knows(tmp_path: Path) -> None:
    done = call("new", "method", "my_idea", cwd=tmp_path)
    assert done.returncode == 0
    assert "methods/my_idea.py" in done.stdout
    methods = {e["name"]: e for e in json.loads(call("list", "--json", cwd=tmp_path).stdout)["methods"]}
    assert methods["my_idea"]["origin"] == "./methods"
    assert ["every", "int", "2"] in methods["my_idea"]["parameters"]


@pytest.mark.parametrize("name", ["my-idea", "class", "2nd", "a b", "../x", "_x", "", "dropout"])
def test_a_name_that_no_method_can_have_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    done = call("new", "method", name, cwd=tmp_path)
    assert done.returncode == 2
    assert "error[E305]" in done.stderr
    assert list(tmp_path.rglob("*.py")) == []


def test_a_method_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    call("new", "method", "mine", cwd=tmp_path)
    (tmp_path / "methods" / "mine.py").write_text("# hours of work\n")
    assert call("new", "method", "mine", cwd=tmp_path).returncode == 2
    assert (tmp_path / "methods" / "mine.py").read_text() == "# hours of work\n"


# ── doctor ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_doctor_as_json_and_as_text_hold_the_same_facts() -> None:
    facts = json.loads(call("doctor", "--json").stdout)
    text = call("doctor").stdout
    for sensor in facts["sensors"]:
        assert f"{sensor['name']}: {'usable' if sensor['usable'] else 'not usable'}: " in text
        assert sensor["why"]
        assert sensor["usable"] or sensor["remedy"]
    for name, version in facts["versions"].items():
        assert f"{name} {version}" in text
    assert facts["energy"] in ("measured", "modelled")
    usable = any(s["usable"] and s["measured"] for s in facts["sensors"])
    assert (facts["energy"] == "measured") == usable
    assert ("Energy can be measured here." in text) == usable
