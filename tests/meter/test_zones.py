"""Zones as people write them, held against codecarbon's own calculation of each; no network, and never a guess."""

from __future__ import annotations

import socket
from typing import Any

import pycountry
import pytest
from codecarbon.core.emissions import Emissions
from codecarbon.core.units import Energy
from codecarbon.external.geography import CloudMetadata, GeoMetadata
from codecarbon.input import DataSource
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.errors import UsageError
from energybench.meter import grid
from energybench.meter.cloud_regions import placed
from energybench.meter.zones import intensity

COUNTRIES = {
    code: entry["carbon_intensity"]
    for code, entry in DataSource().get_global_energy_mix_data().items()
    if entry["carbon_intensity"] > 0
}
ALPHA_2 = {code: pycountry.countries.get(alpha_3=code).alpha_2 for code in COUNTRIES}
STATES = {
    entry["regionCode"]: name
    for name, entry in DataSource().get_country_emissions_data("usa").items()
    if name not in ("_unit", "_source", "usa")
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def grams(zone: str) -> float:
    return float(intensity(zone)["intensity_kg_per_j"]) * 3.6e9


def hint(zone: str) -> str:
    with pytest.raises(UsageError) as caught:
        intensity(zone)
    (problem,) = caught.value.problems
    assert problem.code == "E502"
    return problem.hint


def theirs(country: str, region: str) -> float:
    """g/kWh of a part of a country, by codecarbon's own calculation."""
    place = GeoMetadata(country_iso_code=country, country_name=country, region=region)
    return 1e3 * Emissions(DataSource()).get_region_emissions(Energy.from_energy(kWh=1.0), place)


# ── countries ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_country_has_one_figure_by_either_of_its_codes() -> None:
    assert len(set(ALPHA_2.values())) == len(COUNTRIES)
    for code, known in COUNTRIES.items():
        assert intensity(ALPHA_2[code]) == intensity(code)
        assert grams(code) == pytest.approx(known)
        assert (intensity(code)["zone"], intensity(code)["country_iso"]) == (code, code)


@given(st.sampled_from(sorted(COUNTRIES)), st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3), st.data())
def test_case_and_spaces_do_not_matter(code: str, short: bool, lower: list[bool], data: st.DataObject) -> None:
    name = ALPHA_2[code] if short else code
    spaces = st.text(" \t", max_size=2)
    written = "".join(c.lower() if small else c for c, small in zip(name, lower, strict=False))
    assert intensity(f"{data.draw(spaces)}{written}{data.draw(spaces)}")["zone"] == code


@given(st.text(max_size=8))
def test_a_text_is_a_zone_of_that_name_or_an_error_with_a_hint(text: str) -> None:
    if grid.find(text) is None:
        assert hint(text)
    else:
        found, letters = intensity(text)["zone"], text.strip().upper()
        assert letters in (found, ALPHA_2.get(found)) or (letters, found) == ("UK", "GBR") or "-" in found


def test_uk_is_gb() -> None:
    assert intensity("uk") == intensity("GB") == intensity("GBR")
    assert intensity("UK")["country"] == "United Kingdom"


def test_fr_is_france_and_not_the_faroes() -> None:
    assert (intensity("FR")["zone"], intensity("FR")["country"]) == ("FRA", "France")
    assert "the grid of France" in intensity("FR")["basis"]


def test_a_grid_of_0_grams_is_a_gap_and_not_a_figure() -> None:
    gaps = [c for c, entry in DataSource().get_global_energy_mix_data().items() if entry["carbon_intensity"] == 0]
    assert gaps
    for code in gaps:
        assert "0 g/kWh" in hint(code)


# ── parts of countries ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", sorted(STATES))
def test_a_state_of_the_us_has_egrids_figure(code: str) -> None:
    pounds = DataSource().get_country_emissions_data("usa")[STATES[code]]["emissions"]
    assert grams(f"US-{code}") == pytest.approx(pounds * 0.45359237)  # lb/MWh to g/kWh
    assert grams(f"USA-{code}") == pytest.approx(theirs("USA", STATES[code]), rel=1e-9)
    facts = intensity(f"us-{code.lower()}")
    assert (facts["zone"], facts["country_iso"], facts["region"]) == (f"US-{code}", "USA", STATES[code])
    assert facts["country"] == "United States"
    assert facts["place"].lower() == STATES[code]
    assert facts["place"] in facts["basis"]
    assert "eGRID" in facts["source"]


def test_every_province_of_canada_has_codecarbons_sum_over_its_mix() -> None:
    provinces = {part.code: part.name for part in pycountry.subdivisions.get(country_code="CA")}
    assert set(grid.parts("CA")) == set(provinces)
    for zone, name in provinces.items():
        assert grams(zone) == pytest.approx(theirs("CAN", name.lower()), rel=1e-9)
    mix = DataSource().get_country_energy_mix_data("can")["quebec"]
    burnt = {"coal": 995.725971, "petroleum": 816.6885263, "naturalGas": 743.8415916}
    assert grams("ca-qc") == pytest.approx(sum(mix[fuel] * g for fuel, g in burnt.items()) / mix["total"], rel=1e-9)
    assert "coal, oil and gas alone" in intensity("CA-QC")["basis"]


@pytest.mark.parametrize("written", ["SE-SE3", "SE3", "swe-se3", " se-se3 "])
def test_a_nordic_bidding_zone_has_its_own_figure(written: str) -> None:
    facts = intensity(written)
    table = DataSource().get_nordic_country_energy_mix_data()["data"]["SE3"]
    assert grams(written) == pytest.approx(table["emission_factor"])
    assert grams(written) == pytest.approx(theirs("SWE", "SE3"))
    assert (facts["zone"], facts["country_iso"], facts["year"]) == ("SE-SE3", "SWE", table["year"])


def test_a_province_of_china_has_its_figure_which_counts_co2_alone() -> None:
    assert grams("CN-YN") == pytest.approx(theirs("CHN", "yunnan"))
    assert "CO2 alone" in intensity("CN-YN")["basis"]


def test_a_part_is_never_given_the_figure_of_the_whole() -> None:
    for zone in ("US-XX", "CA-CA", "DE-BY", "FR-IDF", "SE-SE9", "CN-TB", "GB-ENG", "US-", "-US"):
        assert hint(zone)


# ── clouds ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_region_of_google_has_codecarbons_figure_of_it() -> None:
    table = DataSource().get_cloud_emissions_data()
    theirs_all = Emissions(DataSource())
    for region, impact, iso in zip(table["region"], table["impact"], table["countryIsoCode"], strict=True):
        if region == "me-cenrtal1":
            continue
        facts = intensity(f"GCP:{region}")
        assert grams(f"gcp:{region}") == pytest.approx(impact)
        kg = theirs_all.get_cloud_emissions(Energy.from_energy(kWh=1.0), CloudMetadata("gcp", region))
        assert grams(f"gcp:{region}") == pytest.approx(1e3 * kg)
        assert (facts["cloud_provider"], facts["cloud_region"], facts["country_iso"]) == ("gcp", region, iso)
        assert facts["year"] is None


def test_a_region_is_found_by_its_right_name_where_the_table_misspells_it() -> None:
    assert intensity("gcp:me-central1")["country_iso"] == "QAT"


@pytest.mark.parametrize("region", sorted(placed()))
def test_a_region_that_publishes_nothing_has_the_figure_of_where_it_lies(region: str) -> None:
    zone, place = placed()[region]
    facts = intensity(region)
    assert facts["intensity_kg_per_j"] == intensity(zone)["intensity_kg_per_j"]
    assert facts["zone"] == region
    assert f"where {region} ({place}) lies" in facts["basis"]
    assert facts["basis"].startswith(intensity(zone)["basis"])
    assert f"{facts['cloud_provider']}:{facts['cloud_region']}" == region


@pytest.mark.parametrize(
    ("region", "zone"),
    [
        ("aws:us-east-1", "US-VA"),
        ("aws:eu-west-3", "FRA"),
        ("aws:ca-central-1", "CA-QC"),
        ("azure:westeurope", "NLD"),
        ("azure:West Europe", "NLD"),
        ("azure:northeurope", "IRL"),
        ("AZURE: westus2", "US-WA"),
        ("gcp:europe-north2", "SWE"),
    ],
)
def test_regions_lie_where_their_providers_say(region: str, zone: str) -> None:
    assert grams(region) == grams(zone)


# ── what to type instead ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("England", "GBR"),
        ("scotland", "GBR"),
        ("Great Britain", "GBR"),
        ("germany", "DEU"),
        ("Germny", "DEU"),
        ("Côte d'Ivoire", "CIV"),
        ("Türkiye", "TUR"),
        ("EL", "GRC"),
        ("California", "US-CA"),
        ("USA-California", "US-CA"),
        ("US-california", "US-CA"),
        ("Québec", "CA-QC"),
        ("Quebec, Canada", "CA-QC"),
        ("US_CA", "US-CA"),
        ("us ca", "US-CA"),
        ("us:ca", "US-CA"),
        ("SE-3", "SE-SE3"),
        ("US-PR", "PRI"),
        ("CN-HK", "HKG"),
        ("eu-west-3", "aws:eu-west-3"),
        ("us-east-1a", "aws:us-east-1"),
        ("aws:us-east-1b", "aws:us-east-1"),
        ("us-central1-f", "gcp:us-central1"),
        ("westeurope", "azure:westeurope"),
        ("aws:europe-west1", "gcp:europe-west1"),
        ("google:europe-west1", "gcp:europe-west1"),
        ("aws-eu-west-3", "aws:eu-west-3"),
    ],
)
def test_a_hint_names_the_one_right_zone(written: str, right: str) -> None:
    said = hint(written)
    assert said.startswith(f"did you mean '{right}'")
    assert " or " not in said
    intensity(right)


def test_a_name_of_two_places_is_never_decided() -> None:
    assert hint("Georgia") == "did you mean 'GEO' (Georgia) or 'US-GA' (Georgia, United States)?"
    assert "'FRA' (France) or 'FRO' (Faroe Islands)" in hint("FRX")


@pytest.mark.parametrize("written", ["EU", "eu", "Europe", "European Union", "EU-27", "world"])
def test_what_is_larger_than_a_grid_has_no_figure_and_says_what_to_type(written: str) -> None:
    said = hint(written)
    assert "have no figure" in said
    assert "--intensity" in said
    assert "FRA" in said


@pytest.mark.parametrize(("written", "name"), [("LI", "Liechtenstein"), ("VAT", "Holy See"), ("AQ", "Antarctica")])
def test_a_country_without_a_figure_is_named_and_no_other_suggested(written: str, name: str) -> None:
    said = hint(written)
    assert name in said
    assert "did you mean" not in said


def test_an_unknown_part_lists_what_there_is() -> None:
    assert all(f" {code}" in hint("US-XX") for code in STATES)
    assert "SE1, SE2, SE3, SE4" in hint("SE-STO")
    assert "no parts of Germany" in hint("DE-BY")
    assert "'DEU'" in hint("DE-BY")


@pytest.mark.parametrize("written", ["", "  ", "ZZZ", "XX", "x" * 10_000, "\x00", "ﬁ", "ＦＲ"])
def test_what_is_nothing_at_all_is_told_the_forms(written: str) -> None:
    assert "aws:eu-west-3" in hint(written)
