"""What a plan and a trial are handed: frozen, typed, the same after it has crossed a process border."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from energybench.common.units import RESOLVED
from energybench.flops.work import Line
from energybench.runner.plan_request import spec_of
from energybench.runner.plan_spec import PlannedWorkload, PlanResult, PlanSpec
from energybench.suite.suite import load
from energybench.suite.tables import CooldownTable, DataTable, TrialsTable
from energybench.trial.spec import CellHeader, MeasureSpec, MethodSpec, Spec, stack_of
from energybench.workloads.description import DataDescription

ROOT = Path(__file__).resolve().parent.parent
SUITES = sorted((ROOT / "suites").glob("*.toml"))
KNOWN: dict[str, Any] = {
    "data": DataDescription(kind="resident", train=8, test=4, sha256="d"),
    "ledger": (Line("forward", "", "linear", 6.0),),
    "parameters": 3,
    "steps": 2,
    "epochs": 1,
    "samples": 8,
}
CELL = {"workload": "w", "method": "baseline", "role": "baseline", "digest": "d", "seed": 3}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def across(spec: Spec, folder: Path) -> Any:
    """The spec as the child reads it."""
    spec.write(folder / "spec.json")
    return type(spec).read(folder / "spec.json")


def plan_spec(file: Path, folder: Path, **options: Any) -> PlanSpec:
    return spec_of(load(file, **options), folder, device="cpu", download=False)


WITH_QUICK = [(file, True) for file in SUITES if "[quick" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize(("file", "quick"), [*((file, False) for file in SUITES), *WITH_QUICK])
def test_a_suite_that_crosses_a_process_border_is_the_same_suite(file: Path, quick: bool, tmp_path: Path) -> None:
    spec = plan_spec(file, tmp_path, quick=quick)
    there = across(spec, tmp_path)
    assert there.suite.digest_source() == spec.suite.digest_source()
    assert there.declared() == spec.declared()
    for name in set(PlanSpec.model_fields) - {"suite"}:
        assert getattr(there, name) == getattr(spec, name), name
    for kind in ("trainings", "commands"):
        before, after = ([(number, each.settings()) for number, each in getattr(side, kind)] for side in (spec, there))
        assert before == after


@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_the_place_of_every_key_and_of_what_is_not_written_is_the_suites_own(file: Path, tmp_path: Path) -> None:
    suite = load(file)
    spec = across(spec_of(suite, tmp_path, device=None, download=False), tmp_path)
    for loc, _ in suite.places():
        assert spec.where(*loc) == suite.where(loc)
        if loc[:1] != ("method",):
            assert spec.where(*loc, "not written") == suite.where((*loc, "not written"))


def test_a_swept_parameter_stands_where_its_sweep_does(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        'schema = 1\nsuite = "s"\n[[workload]]\nname = "w"\nmodel = { use = "mlp" }\n'
        'data = { use = "digits", batch = 16 }\ntrain = { epochs = 2, lr = 0.1 }\n'
        '[[method]]\nuse = "dropout"\nsweep.p = [0.1, 0.2]\n',
        encoding="utf-8",
    )
    suite = load(file)
    spec = across(spec_of(suite, tmp_path, device=None, download=False), tmp_path)
    assert spec.where("method", 0, "p") == suite.where(("method", 0, "p"))
    assert ":10:" in spec.where("method", 0, "p")


@given(parameters=st.dictionaries(st.text(), JSON, max_size=4))
def test_a_methods_parameters_arrive_as_they_were_written(
    parameters: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Those too that JSON itself does not have, such as an infinite threshold."""
    spec = MethodSpec(use="m", name="m", path="m.py", origin="given", sha256="", parameters=parameters)
    there = across(spec, tmp_path_factory.mktemp("spec"))
    assert there.parameters == parameters
    assert stack_of([spec.model_dump(mode="json")]) == (spec,)


def test_a_folder_whose_name_is_no_text_is_found_again(tmp_path: Path) -> None:
    spec = plan_spec(SUITES[0], tmp_path).model_copy(update={"base": Path("/somewhere/\udcff")})
    assert across(spec, tmp_path).base == spec.base


@pytest.mark.parametrize("change", [{"seeds": 3}, {"seed": "three"}, {"role": "witness"}])
def test_a_field_that_is_not_there_or_of_another_type_is_an_error_when_it_is_read(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CellHeader.model_validate(CELL | change)


@pytest.mark.parametrize("missing", CELL)
def test_a_field_that_is_left_out_is_an_error(missing: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({key: value for key, value in CELL.items() if key != missing}))
    with pytest.raises(ValidationError, match=missing):
        CellHeader.read(tmp_path / "in.json")


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CellHeader.model_validate(CELL).seed = 4  # type: ignore[misc]


def test_an_answer_of_a_plan_crosses_with_its_ledger(tmp_path: Path) -> None:
    result = PlanResult(
        workloads={"w": PlannedWorkload(**KNOWN, balance_flop_b=math.inf, step_s=0.25)},
        device="cpu",
        device_name="cpu",
        digest="d",
    )
    assert across(result, tmp_path) == result


def test_a_trial_opens_the_meters_that_its_suite_names() -> None:
    measure = MeasureSpec(energy="require", gpus=("GPU-1",), meters=("plug",), model={"tdp_w": 1.0}, of_children=True)
    chosen = measure.selection()
    for name in ("energy", "gpus", "meters", "model", "of_children"):
        assert getattr(chosen, name) == getattr(measure, name), name


def test_numbers_are_in_si_units_where_settings_are_resolved_and_need_a_unit_where_a_person_writes_them() -> None:
    assert CooldownTable.model_validate({"longest": 60.0}, context=RESOLVED).longest == 60.0
    assert CooldownTable.model_validate({"longest": "1 min"}, context=RESOLVED).longest == 60.0
    assert DataTable.model_validate({"use": "x", "batch": 1, "resident": 5}, context=RESOLVED).resident == 5
    with pytest.raises(ValidationError, match="no unit"):
        CooldownTable.model_validate({"longest": 60.0})
    resolved = TrialsTable(warmup="3 steps").model_dump(mode="json")
    assert TrialsTable.model_validate(resolved, context=RESOLVED).model_dump(mode="json") == resolved
