"""[measure] carbon in a suite: a country or a figure of one's own, one of the two, with its source."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from energybench.common.errors import Problem
from energybench.common.units import RESOLVED
from energybench.suite import InvalidSuite, Suite, load, schema_json
from energybench.suite.tables import CarbonTable

WORKLOAD = """[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 64 }
train = { epochs = 1, lr = 0.1 }

[[method]]
use = "gradsamp"
skip = "every:2"
"""


def suite(folder: Path, carbon: str) -> Suite:
    path = folder / "s.toml"
    path.write_text(f'schema = 1\nsuite = "s"\n{WORKLOAD}[measure]\ncarbon = {{ {carbon} }}\n')
    return load(path)


def carbon_of(folder: Path, carbon: str) -> CarbonTable:
    table = suite(folder, carbon).measure.carbon
    assert table is not None
    return table


def problem(folder: Path, carbon: str) -> Problem:
    with pytest.raises(InvalidSuite) as caught:
        suite(folder, carbon)
    (only,) = caught.value.problems
    line = (folder / "s.toml").read_text().splitlines().index(f"carbon = {{ {carbon} }}") + 1
    assert only.where.startswith(f"{folder / 's.toml'}:{line}:")
    assert only.hint or "expected" in only.message
    return only


def test_a_country_alone_is_resolved_to_what_it_always_was(tmp_path: Path) -> None:
    resolved = suite(tmp_path, 'country = "FRA"').digest_source()
    assert resolved["measure"]["carbon"] == {"country": "FRA", "pue": 1.0}


def test_an_intensity_of_ones_own_is_kilograms_by_joule_with_its_source(tmp_path: Path) -> None:
    table = carbon_of(tmp_path, 'intensity = "56 g/kWh", source = "RTE 2023", pue = 1.1')
    assert table.intensity == pytest.approx(56e-3 / 3.6e6)
    assert (table.source, table.pue, table.country) == ("RTE 2023", 1.1, None)
    plain = json.loads(table.model_dump_json())
    assert set(plain) == {"intensity", "source", "pue"}
    assert CarbonTable.model_validate_json(table.model_dump_json(), context=RESOLVED) == table


@pytest.mark.parametrize("zone", ["FR", "fra", "US-CA", "UK", "aws:eu-west-3", "azure:West Europe", "SE3"])
def test_a_zone_may_be_written_in_any_of_its_forms(tmp_path: Path, zone: str) -> None:
    assert carbon_of(tmp_path, f'country = "{zone}"').country == zone


@pytest.mark.parametrize(
    ("carbon", "code", "words"),
    [
        ('intensity = "56 g/kWh"', "E202", "needs its source"),
        ('intensity = "56 g/kWh", source = " "', "E202", "needs its source"),
        ('intensity = "56 g/kWh", source = "RTE", country = "FR"', "E202", "a country too"),
        ('country = "FR", source = "RTE"', "E202", "names its source itself"),
        ("pue = 1.2", "E202", "names no country"),
        ('intensity = "56", source = "RTE"', "E204", "no unit"),
        ('intensity = 56, source = "RTE"', "E204", "no unit"),
        ('intensity = "56 kg/kWh", source = "RTE"', "E204", "no fuel"),
        ('country = "FR", pue = 0.9', "E202", "at least 1"),
    ],
)
def test_a_figure_that_could_be_two_or_comes_from_nowhere_is_refused_with_its_place(
    tmp_path: Path, carbon: str, code: str, words: str
) -> None:
    found = problem(tmp_path, carbon)
    assert found.code == code
    assert words in found.message


def test_an_editor_accepts_what_the_parser_accepts() -> None:
    schema = json.dumps(schema_json()["$defs"]["CarbonTable"]["properties"]["intensity"])
    (pattern,) = re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', schema)
    written = re.compile(json.loads(pattern))
    for text in ("56 g/kWh", "56 gCO2e/kWh", "771.2 lb/MWh", "0.056 kg CO₂e per kWh", "56 t/GWh"):
        assert written.match(text)
    for text in ("56", "56 g", "56 kWh/g", "g/kWh", "56 g/kwh"):
        assert not written.match(text)
