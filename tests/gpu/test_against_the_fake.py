"""The whole of `make gpu` against a driver that was made up: each part runs to its end, says that it is a fake, and no
number of it can be taken for a measurement. What a part computes of what it saw is held to mathematics."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE_S
from gpu import parts, wheels
from gpu.card import Card
from gpu.conftest import POWER_W
from gpu.page import write_page
from gpu.parts import PARTS, run_part
from gpu.refuse_fit import Timed, best, under
from gpu.results import FAKE, Results, read_all
from gpu.rise import rise, update_s
from packaging.requirements import Requirement

from energybench.meter.window import AT_ONCE_S


def assert_is_told_as_fake(folder: Path, found: dict[str, Any]) -> None:
    assert found["fake"] == FAKE
    page = write_page(folder).read_text(encoding="utf-8")
    assert page.startswith("# FAKE, no measurement: Fake Card\n")
    assert FAKE in page


def assert_went_well(found: dict[str, Any]) -> None:
    assert (found["status"], found["reason"]) == ("done", None)
    assert [check for check in found["checks"] if check["passed"] is False] == []


def test_the_first_part_runs_to_its_end(fake_machine: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    found = run_part(parts.named("counter"), tmp_path / "out", fake_machine(tmp_path), fake=True)
    assert_went_well(found)
    assert_is_told_as_fake(tmp_path / "out", found)
    assert_a_steady_card_is_found_steady(found)


@pytest.mark.parametrize("name", ["backward", "fits"])
def test_a_part_without_sensors_runs_to_its_end(name: str, tmp_path: Path) -> None:
    """In this process: what it asks of a machine is a processor."""
    results = Results(tmp_path / parts.named(name).file, name, "t", 60.0, fake=True)
    import_module(f"gpu.{name}").measure(Card(fake=True), results)
    results.end("done")
    (found,) = read_all(tmp_path)
    assert_went_well(found)
    assert all(rows for rows in found["tables"].values())


def assert_a_steady_card_is_found_steady(found: dict[str, Any]) -> None:
    """Constant power: both channels give power × time, and no load makes a step in it."""
    rows = {row["load"]: row for row in found["tables"]["windows"]}
    assert list(rows) == ["idle", "matrix product", "memory copy", "training"]
    for row in rows.values():
        for channel in ("counter", "integral"):
            # The seconds are those of the window's clock; a meter may begin and end AT_ONCE_S beside it.
            allowed_j = row[f"{channel}_error_j"] + POWER_W * AT_ONCE_S
            assert abs(row[f"{channel}_j"] - POWER_W * row["seconds"]) <= allowed_j
    shown = found["tables"]["what a sensor shows of a step in power"]
    assert [row["averaging_window_s"] for row in shown] == [None, None]


def test_all_parts_together_end_within_eight_minutes() -> None:
    assert sum(part.limit_s for part in PARTS) <= parts.WHOLE_S == 8 * 60
    assert [part.number for part in PARTS] == list(range(1, len(PARTS) + 1))


@pytest.fixture
def part_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the parts' processes a module of another content, in a folder that shadows ours."""

    def made(source: str, limit_s: float) -> dict[str, Any]:
        shadow = tmp_path / "shadow"
        (shadow / "gpu").mkdir(parents=True)
        head = "import sys, time\nfrom pathlib import Path\nfrom gpu.results import Results\n"
        head += 'results = Results(Path(sys.argv[2]) / "1-counter.json", "counter", "t", 1, fake=True)\n'
        (shadow / "gpu" / "child.py").write_text(head + source, encoding="utf-8")
        (shadow / "gpu" / "results.py").write_text((parts.TESTS / "gpu" / "results.py").read_text(encoding="utf-8"))
        monkeypatch.setattr(parts, "TESTS", shadow)
        return run_part(
            parts.Part(1, "counter", "t", limit_s / parts.LONG), tmp_path / "out", dict(os.environ), fake=True
        )

    return made


def test_what_a_part_had_found_stands_when_its_time_is_over(part_that: Any) -> None:
    found = part_that('results.fact("seen_w", 3.0)\ntime.sleep(600)\n', 2.0)
    assert found["status"] == "cut short"
    assert found["facts"] == {"seen_w": 3.0}


def test_a_part_whose_process_dies_says_with_which_code(part_that: Any) -> None:
    found = part_that('results.fact("seen_w", 3.0)\nprint("the card fell off", flush=True)\nsys.exit(7)\n', 60.0)
    assert found["status"] == "failed"
    assert "7" in found["reason"]
    assert "the card fell off" in found["reason"]
    assert found["facts"] == {"seen_w": 3.0}


def test_a_part_that_is_killed_leaves_no_run_behind(tmp_path: Path) -> None:
    program = tmp_path / "runs-until-told"
    program.write_text("#!/bin/sh\ntrap 'touch ended; exit' INT\ntouch began\nwhile :; do sleep 0.05; done\n")
    program.chmod(0o755)
    code = f"import sys; sys.executable = {str(program)!r}\nfrom pathlib import Path\nfrom gpu import harness\n"
    code += f"harness.run(Path({str(tmp_path / 's.toml')!r}), 600)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(parts.TESTS), str(parts.ROOT)])}
    part = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        wait_until((tmp_path / "began").exists)
    finally:
        part.kill()
        part.wait()
    wait_until((tmp_path / "ended").exists)


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_page_without_a_fake_says_nothing_of_one(tmp_path: Path) -> None:
    results = Results(tmp_path / "1-counter.json", "counter", "Counters", 10.0, fake=False)
    results.machine(sensors={"name": "Some Card", "driver": "1.2"})
    results.row("windows", load="idle | bare", power_w=float("nan"))
    results.check("it holds", True)
    results.end("done")
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert page.startswith("# What was seen on Some Card\n")
    assert "fake" not in page.casefold()
    assert "| idle \\| bare | – |" in page
    assert json.loads((tmp_path / "1-counter.json").read_text())["tables"]["windows"][0]["power_w"] is None
    assert [part["part"] for part in read_all(tmp_path)] == ["counter"]


# ── what parts compute ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window_s", [0.5, 1.0, 2.0])
def test_the_window_of_a_mean_is_the_length_of_its_ramp(window_s: float) -> None:
    """A mean over T seconds of a step at 10 s is a straight ramp from there to 10 + T; half of it is at 10 + T/2."""
    times = [0.05 * number for number in range(400)]
    points = [(t, 100 + 200 * min(1.0, max(0.0, (t - 10) / window_s))) for t in times]
    found = rise(points, 10.0)
    assert found is not None
    assert (found.low_w, found.high_w) == (100, 300)
    assert found.window_s == pytest.approx(window_s, abs=1e-6)
    assert found.delay_s == pytest.approx(window_s / 2, abs=1e-6)


def test_no_step_is_seen_in_steady_power_nor_without_samples() -> None:
    assert rise([(0.1 * number, 100.0) for number in range(50)], 2.0) is None
    assert rise([(0.1 * number, 100.0 + number % 2) for number in range(50)], 2.0) is None
    assert rise([], 2.0) is None


def test_a_sensors_period_is_that_of_its_changes() -> None:
    points = [(0.05 * number, float(number // 4)) for number in range(60)]
    assert update_s(points) == pytest.approx(0.2)
    assert update_s([(0.1 * number, 5.0) for number in range(10)]) is None


def test_fitted_constants_let_in_just_the_layers_that_pay() -> None:
    """Layers whose times follow the rule with known constants, at one FLOP per nanosecond."""
    calls, element = 3e6, 40.0
    layers = []
    for elements in (10**3, 10**4, 10**5, 10**6):
        for saved in (1e5, 2e6, 8e6, 6e7, 1e9):
            for factor in (1, 2):
                spent = factor * (calls + element * elements)
                layers.append(Timed(saved, elements, factor, dense_s=2.0, sparse_s=2.0 - 1e-9 * (saved - spent)))
    fitted = best(layers)
    assert fitted.slower == 0
    assert fitted.seconds == pytest.approx(sum(min(layer.dense_s, layer.sparse_s) for layer in layers))
    assert under(layers, calls, element).seconds == pytest.approx(fitted.seconds)
    assert under(layers, 0.0, 0.0).let_in == len(layers)


def test_the_fit_decides_as_the_rule_does() -> None:
    """With the constants of a processor in place of a card's, on both sides of the border."""
    import torch
    from gpu.backward import NEAR, Card, input_of, module
    from torch import nn

    from energybench.algorithms.channel_sparse import channels_kept
    from energybench.algorithms.sparse_layers import SPARSE

    ssprop, card, decided = module(), Card(fake=True), set()
    for batch, into, out, kernel, side in [*NEAR, (2, 8, 16, 3, 4), (16, 32, 64, 1, 8)]:
        for last in (False, True):
            for stride in (1, 2):
                order = torch.channels_last if last else torch.contiguous_format
                layer = SPARSE[nn.Conv2d].from_dense(nn.Conv2d(into, out, kernel, stride, padding=kernel // 2))
                x = input_of(card, (batch, into, side, side), order, narrow=False, learns=into > 3)
                positions, keep = batch * (side // stride) ** 2, channels_kept(out, 0.8)
                priced = ssprop.prices(layer, x, positions, keep)
                timed = Timed(priced.saved, priced.chosen, priced.factor, dense_s=1.0, sparse_s=1.0)
                lets_in = timed.lets_in(priced.calls, priced.element)
                assert lets_in == (not ssprop.refuse(layer, x, positions, keep))
                decided.add(lets_in)
    assert decided == {True, False}


def test_gpt2_has_as_many_tensors_and_elements_as_published() -> None:
    import math

    from gpu.fits import gpt2

    assert (len(gpt2()), sum(map(math.prod, gpt2()))) == (148, 124_439_808)


def test_the_wheels_are_all_that_a_machine_with_torch_lacks() -> None:
    """Whatever energybench, and what it is compared with, needs is there, is fetched, or is of Python itself."""
    known = {
        wheels.alike(name.split("==")[0]) for name in (*wheels.NEEDED, *wheels.TESTED, *wheels.COMPARED, *wheels.THERE)
    }
    fetched = [name.split("==")[0] for name in (*wheels.NEEDED, *wheels.TESTED, *wheels.COMPARED)]
    wanted = set()
    for name in ["energybench", *fetched]:
        try:
            requirements = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            continue  # Zeus, and what it alone needs
        for each in requirements:
            if each.marker is None or each.marker.evaluate({"extra": "", "python_version": "3.12"}):
                wanted.add(wheels.alike(each.name))
    assert wanted - known == set()
    assert {"pydantic", "codecarbon", "fvcore"} <= wanted


def test_what_these_tests_import_is_on_a_machine_with_the_wheels() -> None:
    """Whatever a file of tests/gpu imports, or one of tests/ that it imports, or the conftest of all tests."""
    known = {wheels.alike(name.split("==")[0]) for name in (*wheels.NEEDED, *wheels.TESTED, *wheels.THERE)}
    names = metadata.packages_distributions()
    asked = [parts.TESTS / "conftest.py", *(parts.TESTS / "gpu").glob("*.py")]
    seen: set[Path] = set()
    outside: set[str] = set()
    while asked:
        file = asked.pop()
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                path = parts.TESTS / (module.replace(".", "/") + ".py")
                asked += [path] if path.exists() and path not in seen else []
                top = module.partition(".")[0]
                outside |= {wheels.alike(name) for name in names.get(top, [])} if not path.exists() else set()
    assert outside - known - {"energybench", "codecarbon", "zeus"} == set()
    assert {"torch", "pytest", "hypothesis"} <= outside


def test_wheels_have_the_versions_that_are_pinned_here() -> None:
    constraints = (parts.ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = wheels.pinned([*wheels.NEEDED, *wheels.TESTED, *wheels.COMPARED], constraints)
    assert all(name.count("==") == 1 for name in found)
    assert wheels.pinned(["Some.Name"], "# of\nsome_name==1.5\n") == ["Some.Name==1.5"]
    with pytest.raises(ValueError, match="no version of: other"):
        wheels.pinned(["other"], "some-name==1.5\n")
