"""Exports: the shapes that other tools read, identities between figures, and nothing modelled called an emission."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from energybench.common.errors import UsageError
from energybench.meter.reading import Energy, Reading
from energybench.meter.zones import intensity, own_intensity
from energybench.records.reader import read_folder
from energybench.records.record import Looks, write_json
from energybench.report.export import EMISSIONS, export

sys.path.insert(0, str(Path(__file__).parent / "report"))
from synthetic import GPU, JOULES, MODEL, SECONDS, Run

RAPL = ("rapl", "cpu")
ZONE = {
    "zone": "FRA",
    "country": "France",
    "intensity_kg_per_j": 0.056 / 3.6e6,
    "year": 2023,
    "source": "a table",
    "pue": 1.5,
}
EVIL = '=cmd|" /C calc"!A1\nco2: 9 <script>, "x": \u202e{'


def written(folder: Path, run: Run, **machine: Any) -> Path:
    """A run's folder on disk."""
    meta, trials, counting_runs = run.records()
    meta = meta.model_copy(update={"machine": {**meta.machine, "carbon": ZONE, "cores": 8} | machine})
    write_json(folder / "run.json", meta)
    for index, trial in enumerate(trials):
        write_json(folder / "records" / f"{index}.json", trial)
    for index, counting_run in enumerate(counting_runs):
        write_json(folder / "witness" / f"{index}.json", counting_run)
    return folder


def half(**options: Any) -> Run:
    return Run(**{"sensors": (GPU, RAPL), "noise": 0.02} | options).method("half", time=0.6, energy=0.5)


def table(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def codes(folder: Path, form: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        export(folder, form, **options)
    (problem,) = caught.value.problems
    assert problem.hint
    return problem.code


# ── every trial ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_trial_is_a_row_with_its_joules_and_what_they_are(tmp_path: Path) -> None:
    run = half(sensors=(GPU, RAPL, MODEL)).change("half", 1, status="failed", reason="cable")
    found = table(export(written(tmp_path, run), "csv")[0])
    assert len(found) == 3 * 3
    (row,) = [r for r in found if (r["method"], r["block"]) == ("baseline", "0")]
    names = ("measured_gpu_gpu_counter_j", "measured_cpu_rapl_j", "modelled_cpu_model_cpu_load_tdp_85_W_j")
    gpu, cpu, model = (float(row[name]) for name in names)
    assert float(row["measured_j"]) == pytest.approx(gpu + cpu)
    assert model > 0  # shown, and in no sum
    (failed,) = [r for r in found if r["status"] == "failed"]
    assert (failed["usable"], failed["reason"], failed["measured_j"]) == ("False", "cable", "")


def test_names_that_would_be_one_column_are_two(tmp_path: Path) -> None:
    quality = {"top-1": 0.25, "top_1": 0.75, "accuracy": 0.5}
    run = Run(blocks=1, sensors=(GPU,)).change("baseline", 0, quality=quality)
    (row,) = [r for r in table(export(written(tmp_path, run), "csv")[0]) if r["method"] == "baseline"]
    found = {name: float(value) for name, value in row.items() if name.startswith("quality_") and value}
    assert sorted(found.values()) == sorted(quality.values())
    assert found["quality_accuracy"] == 0.5
    alone = run.change("twin", 0, quality={"top-1": 0.125})  # the same column in every row
    (row,) = [r for r in table(export(written(tmp_path, alone), "csv")[0]) if r["method"] == "twin"]
    assert row["quality_top-1"] == "0.125"


def test_what_a_lost_sensor_leaves_is_no_total_and_an_unknown_error_is_not_0(tmp_path: Path) -> None:
    """Two cards of which one was lost: 5 J are not what the trial took. And a sensor without a budget is not exact."""

    def window(*figures: Energy) -> dict[str, Reading]:
        return {"train": Reading(wall_s=1.0, energy=list(figures))}

    known = Energy(source="gpu_counter", scope="gpu", device="a", energy_j=5.0, error_j=0.5)
    lost = Energy(source="gpu_counter", scope="gpu", device="b", reason="fell off the bus")
    vague = Energy(source="meter(plug)", scope="cpu", energy_j=3.0)
    run = Run(blocks=1, sensors=(GPU,)).method("half")
    for label, figures in {"baseline": (known,), "twin": (known, lost), "half": (known, vague)}.items():
        run.change(label, 0, phases=window(*figures))
    found = {r["method"]: r for r in table(export(written(tmp_path, run), "csv")[0])}
    told = {m: (r["measured_j"], r["measured_error_j"], r["usable"]) for m, r in found.items()}
    assert told == {"baseline": ("5.0", "0.5", "True"), "twin": ("", "", "False"), "half": ("8.0", "", "True")}


def test_parquet_holds_the_same_rows_with_types(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = written(tmp_path, half().method(EVIL, energy=0.9))
    found = parquet.read_table(io.BytesIO(export(folder, "parquet")[0])).to_pylist()
    text = table(export(folder, "csv")[0])
    assert len(found) == len(text)
    assert [row["trial"] for row in found] == [t.trial for t in _trials(folder)]
    assert EVIL in {row["method"] for row in found}  # typed, so it needs no escape
    assert [row["measured_j"] for row in found] == pytest.approx([float(row["measured_j"]) for row in text])
    assert isinstance(found[0]["block"], int)


def _trials(folder: Path) -> Any:
    from energybench.report.export import ExportedRun

    return ExportedRun(read_folder(folder)).trials


def test_without_pyarrow_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert codes(written(tmp_path, half()), "parquet") == "E611"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", " =1", "\t=1"])
def test_no_spreadsheet_takes_a_name_for_a_formula(tmp_path: Path, name: str) -> None:
    for form in ("csv", "emissions"):
        content = export(written(tmp_path / form, half().method(name, energy=0.9)), form)[0].decode()
        for cell in (cell for row in csv.reader(io.StringIO(content)) for cell in row):
            assert not cell.lstrip().startswith(("=", "+", "@"))
            assert not cell.lstrip().startswith("-") or _number(cell)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_a_name_with_quotes_and_line_breaks_stays_one_cell(tmp_path: Path) -> None:
    found = table(export(written(tmp_path, half().method(EVIL, energy=0.9)), "csv")[0])
    assert len({len(row) for row in found}) == 1
    assert None not in {key for row in found for key in row}


# ── codecarbon ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_columns_are_codecarbons_own_in_its_order() -> None:
    from codecarbon.output_methods.emissions_data import EmissionsData

    assert tuple(field.name for field in dataclasses.fields(EmissionsData)) == EMISSIONS


def test_energies_are_kwh_with_the_pue_and_emissions_are_energy_times_intensity(tmp_path: Path) -> None:
    content, notes = export(written(tmp_path, half(noise=0.0)), "emissions")
    found = table(content)
    assert notes == []
    (row,) = [r for r in found if r["run_id"] == "b0-i0-cnn-digits.baseline"]
    names = [
        "energy_consumed",
        "gpu_energy",
        "cpu_energy",
        "emissions",
        "duration",
        "emissions_rate",
        "gpu_power",
        "pue",
    ]
    figures = {name: float(row[name]) for name in names}
    assert figures["gpu_energy"] * 3.6e6 == pytest.approx(JOULES * 1.5)
    assert figures["energy_consumed"] == pytest.approx(figures["gpu_energy"] + figures["cpu_energy"])
    assert figures["emissions"] == pytest.approx(figures["energy_consumed"] * 0.056)
    assert figures["emissions_rate"] * figures["duration"] == pytest.approx(figures["emissions"])
    assert figures["gpu_power"] == pytest.approx(JOULES * 1.5 / SECONDS)
    assert (figures["pue"], row["country_iso_code"], row["ram_energy"]) == (1.5, "FRA", "")  # not seen: empty, never 0


def test_pandas_reads_it_as_codecarbons_own(tmp_path: Path) -> None:
    import pandas

    found = pandas.read_csv(io.BytesIO(export(written(tmp_path, half()), "emissions")[0]))
    assert found["energy_consumed"].sum() > 0
    assert found["ram_energy"].isna().all()


def test_modelled_energy_is_no_emission(tmp_path: Path) -> None:
    content, notes = export(written(tmp_path, half(sensors=(MODEL,))), "emissions")
    for row in table(content):
        assert {row[name] for name in ("emissions", "energy_consumed", "cpu_energy", "cpu_power")} == {""}
    assert "no measured energy" in notes[0]


@pytest.mark.parametrize(
    ("zone", "cells"),
    [
        ("FR", ("France", "FRA", "", "", "", "")),
        ("US-CA", ("United States", "USA", "california", "", "", "")),
        ("CA-QC", ("Canada", "CAN", "quebec", "", "", "")),
        ("SE3", ("Sweden", "SWE", "se3", "", "", "")),
        ("gcp:europe-west9", ("France", "FRA", "Paris", "gcp", "europe-west9", "Y")),
        ("aws:us-east-1", ("United States", "USA", "virginia", "aws", "us-east-1", "Y")),
    ],
)
def test_a_zone_is_told_in_the_columns_that_codecarbon_has_for_it(
    tmp_path: Path, zone: str, cells: tuple[str, ...]
) -> None:
    facts = intensity(zone) | {"pue": 1.0}
    columns = ("country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "on_cloud")
    for row in table(export(written(tmp_path, half(), carbon=facts), "emissions")[0]):
        assert tuple(row[name] for name in columns) == cells
        assert float(row["emissions"]) == pytest.approx(
            float(row["energy_consumed"]) * facts["intensity_kg_per_j"] * 3.6e6
        )


def test_an_intensity_of_ones_own_has_emissions_and_no_country(tmp_path: Path) -> None:
    own = own_intensity(0.04 / 3.6e6, "RTE 2023", "given in the suite") | {"pue": 1.1}
    folder = written(tmp_path, half(), carbon=own)
    for row in table(export(folder, "emissions")[0]):
        assert (row["country_name"], row["country_iso_code"], row["region"]) == ("", "", "")
        assert float(row["emissions"]) == pytest.approx(float(row["energy_consumed"]) * 0.04)
    block = card(folder, method="half")
    assert "geographical_location" not in block
    assert "40.0 g/kWh, given in the suite, by RTE 2023" in block["source"]


def test_a_card_names_the_part_of_the_country(tmp_path: Path) -> None:
    folder = written(tmp_path, half(), carbon=intensity("US-CA") | {"pue": 1.0})
    assert card(folder, method="half")["geographical_location"] == "California, United States"


def test_without_a_country_energies_stand_and_emissions_are_empty(tmp_path: Path) -> None:
    content, notes = export(written(tmp_path, half(), carbon=None), "emissions")
    assert {row["emissions"] for row in table(content)} == {""}
    assert all(float(row["energy_consumed"]) > 0 for row in table(content))
    assert "no country" in notes[0]


# ── a model card ──────────────────────────────────────────────────────────────────────────────────────────


def card(folder: Path, **options: Any) -> dict[str, Any]:
    text = export(folder, "model-card", **options)[0].decode()
    assert text.startswith("---\n")
    assert text.endswith("\n---\n")
    return yaml.safe_load(text.strip().strip("-"))["co2_eq_emissions"]


def test_a_card_gives_grams_of_one_training_run_and_says_how_they_were_measured(tmp_path: Path) -> None:
    found = card(written(tmp_path, half(noise=0.0)), method="half")
    assert set(found) == {"emissions", "source", "training_type", "geographical_location", "hardware_used"}
    assert found["emissions"] == pytest.approx(1000 * 2 * JOULES * 0.5 / 3.6e6 * 0.056 * 1.5, rel=1e-5)
    assert found["geographical_location"] == "France"
    assert found["training_type"] == "pre-training"
    for said in ("measured", "the card's energy counter", "RAPL", "FRA 56.0 g/kWh in 2023", "PUE 1.5"):
        assert said in found["source"]


def test_a_hostile_country_or_processor_adds_no_key(tmp_path: Path) -> None:
    folder = written(tmp_path, half(), cpu=EVIL, carbon={**ZONE, "country": EVIL, "source": EVIL})
    found = card(folder, method="baseline")
    assert set(found) == {"emissions", "source", "training_type", "geographical_location", "hardware_used"}
    assert isinstance(found["emissions"], float)


def test_a_card_is_of_one_model_and_of_a_measured_one(tmp_path: Path) -> None:
    assert codes(written(tmp_path / "two", half()), "model-card") == "E610"
    assert codes(written(tmp_path / "none", half()), "model-card", method="hlaf") == "E610"
    assert codes(written(tmp_path / "model", half(sensors=(MODEL,))), "model-card", method="half") == "E610"
    assert codes(written(tmp_path / "nowhere", half(), carbon=None), "model-card", method="half") == "E610"


def test_a_method_that_is_called_plain_training_has_a_card_of_its_own(tmp_path: Path) -> None:
    run = Run(sensors=(GPU,)).method("plain training", energy=0.5)
    folder = written(tmp_path, run)
    plain, ours = (card(folder, method=label)["emissions"] for label in ("baseline", "plain training"))
    assert plain == pytest.approx(JOULES * 1000 * ZONE["intensity_kg_per_j"] * 1.5, rel=1e-5)  # type: ignore[operator]
    assert ours == pytest.approx(plain / 2, rel=1e-5)


# ── SCI ───────────────────────────────────────────────────────────────────────────────────────────────────


def score(folder: Path, **options: Any) -> dict[str, Any]:
    return json.loads(export(folder, "sci", **options)[0])


@pytest.mark.parametrize(("per", "units"), [("run", 1), ("epoch", 6), ("sample", 6000)])
def test_a_score_is_e_times_i_plus_m_per_r(tmp_path: Path, per: str, units: int) -> None:
    found = score(written(tmp_path, half(noise=0.0)), per=per, embodied=150.0, lifespan=4.0)
    for cell, joules, seconds in zip(found["cells"], (2 * JOULES, JOULES), (SECONDS, 0.6 * SECONDS), strict=True):
        assert cell["R"] == units
        energy = joules * 1.5 / 3.6e6
        made = 150e3 * seconds / (4 * 365.25 * 86400)
        assert cell["E_kwh"] * units == pytest.approx(energy)
        assert cell["M_g"] * units == pytest.approx(made)
        assert cell["sci_g"] * units == pytest.approx(energy * found["I_g_per_kwh"] + made)


def test_both_parts_of_a_score_are_of_the_same_trials(tmp_path: Path) -> None:
    """Blocks since the last look are in no energy, and so in no seconds either."""
    folder = written(tmp_path, Run(blocks=5, sensors=(GPU,)).method("half", energy=0.5))
    meta, trials, _ = read_folder(folder)
    meta = meta.model_copy(update={"looks": Looks(at=[3, 20], taken=[3]), "blocks": 20, "finished": False})
    write_json(folder / "run.json", meta)
    for path, trial in zip(sorted((folder / "records").glob("*.json")), trials, strict=True):
        if trial.block >= 3:
            slow = {"train": trial.phases["train"].model_copy(update={"wall_s": 1000 * SECONDS})}
            write_json(path, trial.model_copy(update={"phases": slow}))
    cell = score(folder, embodied=150.0, lifespan=4.0)["cells"][0]
    assert cell["trials"] == 3
    assert cell["M_g"] == pytest.approx(150e3 * SECONDS / (4 * 365.25 * 86400))


def test_without_embodied_emissions_there_is_no_score_and_it_is_said(tmp_path: Path) -> None:
    folder = written(tmp_path, half())
    found = score(folder)
    assert "missing" in found["M"]
    assert {cell["sci_g"] for cell in found["cells"]} == {cell["M_g"] for cell in found["cells"]} == {None}
    assert all(cell["operational_g"] > 0 for cell in found["cells"])
    assert "M is missing" in export(folder, "sci")[1][0]


def test_half_of_what_embodied_emissions_need_is_refused(tmp_path: Path) -> None:
    assert codes(written(tmp_path, half()), "sci", embodied=150.0) == "E610"


def test_a_score_needs_measured_energy(tmp_path: Path) -> None:
    assert codes(written(tmp_path, half(sensors=(MODEL,))), "sci") == "E610"


def test_a_method_that_skips_epochs_has_no_more_functional_units_for_it(tmp_path: Path) -> None:
    run = Run(sensors=(GPU,)).method("half", energy=0.5, epochs=3.0)
    cells = {cell["method"]: cell["R"] for cell in score(written(tmp_path, run), per="epoch")["cells"]}
    assert cells["half"] == cells["baseline"] == 6


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────


def call(*arguments: str | Path, code: int = 0) -> str:
    """What a command prints on stdout; its own errors are told by their code."""
    from click.testing import CliRunner

    from energybench.cli.command_line import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def refused(*arguments: str | Path) -> str:
    """What a command is refused with."""
    from click.testing import CliRunner

    from energybench.cli.command_line import app

    error = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
    assert isinstance(error, UsageError)
    return str(error)


def test_an_export_goes_to_stdout_or_whole_into_a_file(tmp_path: Path) -> None:
    folder, out = written(tmp_path / "run", half()), tmp_path / "new" / "emissions.csv"
    printed = call("export", folder, "--to", "emissions")
    assert call("export", folder, "--to", "emissions", "-o", out) == ""
    assert out.read_text() == printed
    assert printed.startswith("timestamp,project_name,")


def test_the_carbon_report_is_printed_written_and_given_as_json(tmp_path: Path) -> None:
    folder = written(tmp_path, half())
    facts = json.loads(call("report", folder, "--carbon", "--zones", "fra, pol", "--json", "--write"))
    assert [zone["zone"] for zone in facts["zones"]] == ["FRA", "POL"]
    assert (folder / "carbon.md").read_text().startswith("# synthetic: energy and carbon\n")
    assert "What is not in it" in (folder / "carbon.md").read_text()
    assert not (folder / "report.md").exists()
    assert "CO₂e FRA" in call("report", folder, "--carbon")


def test_an_intensity_and_a_pue_of_ones_own_are_options_of_the_carbon_report(tmp_path: Path) -> None:
    folder = written(tmp_path, half())
    options = ["--intensity", "56 gCO2e/kWh", "--pue", "1.2", "--zones", "US-CA, eu-west-3"]
    assert "did you mean 'aws:eu-west-3'" in refused("report", folder, *options)
    facts = json.loads(call("report", folder, *options[:-1], "US-CA", "--json"))
    assert [(zone["zone"], zone["pue"]) for zone in facts["zones"]] == [("US-CA", 1.2), ("own", 1.2)]
    assert facts["zones"][1]["intensity_kg_j"] == pytest.approx(0.056 / 3.6e6)
    for wrong in (["--intensity", "56"], ["--intensity", "0 g/kWh"], ["--intensity", ""]):
        assert "E204" in refused("report", folder, "--carbon", *wrong)
    for wrong in (["--zones", ""], ["--zones", " , "], ["--zones", "FR,XX"]):
        assert "E502" in refused("report", folder, "--carbon", *wrong)
    for wrong in (["--pue", "0.9"], ["--pue", "nan"], ["--pue", "1", "--html"], ["--intensity", "", "--require"]):
        call("report", folder, *wrong, code=2)


def test_several_folders_stand_side_by_side_and_none_of_them_is_written(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a", half()), written(tmp_path / "b", half(), cpu="Another one")
    assert "never averaged" in call("report", one, other)
    facts = json.loads(call("report", one, other, "--json"))
    assert [run["apart"] for run in facts["runs"]] == [None, "another device"]
    assert json.loads(call("report", one, one, "--json"))["suite"] == "synthetic"  # one run twice is one run
    assert f"energybench report --all {one} {other} --html site" in refused("report", one, other, "--write")
    assert call("report", one, other, "--carbon").count("This benchmark itself took") == 2
    assert not list(tmp_path.rglob("*.md"))
