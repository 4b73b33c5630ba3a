"""Zones of the electricity grid and the carbon intensity of each, offline.

    FR, FRA            a country, by ISO 3166 alpha-2 or alpha-3; UK is taken for GB
    US-CA, CA-QC       a part of a country: a state of the US, a province of Canada or China, a bidding zone (SE-SE3)
    gcp:europe-west1   a region of a cloud: Google's own figure where codecarbon's table has one, else that of the state
                       or country where the region lies

Case and spaces do not matter. Figures are codecarbon's; each says what it is the mean of, of which year and from which
table. What is not known has no figure, never a guess; a grid's figure of 0 is a gap in the table, and none either. What
users ask for goes through zones.py, which says what to type instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from energybench.common.programs import starting_safely
from energybench.meter import cloud_regions

J_PER_KWH = 3.6e6
RESERVED = {"UK": "GB"}  # exceptionally reserved in ISO 3166 for the United Kingdom
PROVIDERS = {"aws": "AWS", "azure": "Azure", "gcp": "Google"}
NORDIC = {"SE": ("SWE", "Sweden"), "NO": ("NOR", "Norway")}  # their bidding zones are SE1 to SE4 and NO1 to NO5
PARTED = ("US", "CA", "CN", *NORDIC)  # countries that have parts with a figure
_MISSPELLED = {"me-cenrtal1": "me-central1"}  # in codecarbon 3.3's table of clouds


@dataclass(frozen=True, slots=True)
class GridFigure:
    """One yearly mean, in grams of CO2e per kWh.

    country: ISO 3166 alpha-3
    name:    of the country, as its table has it
    place:   "California", in the country; empty where it is the country
    basis:   what it is the mean of
    region:  the part of the country, as codecarbon's emissions.csv names it: "california"
    cloud:   (provider, region)
    """

    grams_kwh: float
    country: str
    name: str
    place: str
    basis: str
    year: int | None
    table: str
    region: str = ""
    cloud: tuple[str, str] | None = None


def find(zone: str) -> tuple[str, GridFigure] | None:
    """(the zone as it is written here, its figure); None for what is not known."""
    if not zone.isascii():  # "ﬁ".upper() is "FI"
        return None
    if ":" in zone:
        return _region("".join(zone.lower().split()))  # "azure:West Europe"
    name = canonical("-".join(piece.strip() for piece in zone.split("-")))
    figure = _figure(name)
    return None if figure is None else (name, figure)


def _figure(name: str) -> GridFigure | None:
    country, dash, _ = name.partition("-")
    figure = (parts(country) if dash else _countries()).get(name)
    return figure if figure and figure.grams_kwh > 0 else None


def canonical(code: str) -> str:
    """ "fr" → "FRA", "usa-ca" → "US-CA", "SE3" → "SE-SE3"; what is no code of a country stays as it is, in capitals."""
    head, dash, part = code.upper().partition("-")
    if head[:2] in NORDIC and head[2:].isdigit():
        return f"{head[:2]}-{head}{dash}{part}"
    country = alpha_3(head)
    if country is None:
        return code.upper()
    return f"{alpha_2(country)}-{part}" if dash else country


def _region(written: str) -> tuple[str, GridFigure] | None:
    if written in clouds():
        return written, clouds()[written]
    if written not in cloud_regions.placed():
        return None
    zone, place = cloud_regions.placed()[written]
    figure = _figure(zone) or _figure(alpha_3(zone.partition("-")[0]) or "")
    if figure is None:
        return None
    provider, _, region = written.partition(":")
    return written, replace(
        figure,
        basis=f"{figure.basis}, where {written} ({place}) lies",
        table=f"{figure.table}; the place by {cloud_regions.DOCUMENTS[provider]}",
        cloud=(provider, region),
    )


# ── codes of countries ────────────────────────────────────────────────────────────────────────────────────


def alpha_3(code: str) -> str | None:
    """ISO 3166 alpha-3 of an alpha-2 or alpha-3 code in capitals; None for what is none."""
    import pycountry

    code = RESERVED.get(code, code)
    by_code = pycountry.countries
    if found := by_code.get(alpha_2=code) if len(code) == 2 else by_code.get(alpha_3=code):
        return str(found.alpha_3)
    return code if code in countries() else None


def alpha_2(code: str) -> str:
    """ISO 3166 alpha-2 of an alpha-3 code; itself where it has none."""
    import pycountry

    found = pycountry.countries.get(alpha_3=code)
    return str(found.alpha_2) if found else code


# ── codecarbon's tables ───────────────────────────────────────────────────────────────────────────────────


def _tables() -> Any:
    with starting_safely():  # it asks nvidia-smi when it is imported
        from codecarbon.input import DataSource

    return DataSource()


def parts(country: str) -> dict[str, GridFigure]:
    """ "US" → "US-CA" and every other part of a country that has a figure; none for most countries."""
    read = {
        "US": _states,
        "CA": _provinces_of_canada,
        "CN": _provinces_of_china,
        **dict.fromkeys(NORDIC, _bidding_zones),
    }
    found = read[country]() if country in read else {}
    return {zone: figure for zone, figure in found.items() if zone.startswith(f"{country}-") and figure.grams_kwh > 0}


def countries() -> dict[str, str]:
    """alpha-3 → name, of every country in the table, with or without a figure."""
    return {code: str(entry["country_name"]) for code, entry in _tables().get_global_energy_mix_data().items()}


@cache
def _countries() -> dict[str, GridFigure]:
    table = _tables().get_global_energy_mix_data()
    return {
        code: GridFigure(
            float(entry["carbon_intensity"]),
            code,
            entry["country_name"],
            place="",
            basis=f"the mean of the grid of {the(entry['country_name'])}",
            year=entry.get("year"),
            table="global_energy_mix.json",
        )
        for code, entry in table.items()
        if isinstance(entry.get("carbon_intensity"), int | float)
    }


def the(country: str) -> str:
    """With its article, where English has one."""
    with_one = ("Republic", "Islands", "Netherlands", "Philippines")
    return f"the {country}" if country.startswith("United ") or country.endswith(with_one) else country


def _titled(name: str) -> str:
    return " ".join(word if word in ("of", "and") else word.capitalize() for word in name.split())


@cache
def _states() -> dict[str, GridFigure]:
    """Of the US: eGRID's total output emission rates, in pounds per MWh."""
    table: Mapping[str, Any] = _tables().get_country_emissions_data("usa")
    source = table.get("_source", {})
    kg_lb = 0.45359237
    return {
        f"US-{entry['regionCode']}": GridFigure(
            entry["emissions"] * kg_lb,  # lb/MWh × kg/lb = g/kWh
            "USA",
            "United States",
            place=_titled(name),
            basis=f"the mean of what is generated in {_titled(name)}, United States",
            year=source.get("year"),
            table=f"usa_emissions.json ({source.get('name', 'EPA eGRID')})",
            region=name,
        )
        for name, entry in table.items()
        if not name.startswith("_") and len(entry["regionCode"]) == 2
    }


@cache
def _provinces_of_canada() -> dict[str, GridFigure]:
    """codecarbon's own sum over the mix of each: coal, oil and gas by their emissions when burnt, all else by none."""
    import pycountry

    with starting_safely():
        from codecarbon.core.emissions import Emissions
        from codecarbon.core.units import Energy
        from codecarbon.external.geography import GeoMetadata

    codes = {part.name.lower(): part.code for part in pycountry.subdivisions.get(country_code="CA")}
    sums = Emissions(_tables())
    one_kwh = Energy.from_energy(kWh=1.0)
    found = {}
    for name in _tables().get_country_energy_mix_data("can"):
        if name not in codes:
            continue
        kg = sums.get_region_emissions(one_kwh, GeoMetadata("CAN", country_name="Canada", region=name))
        found[codes[name]] = GridFigure(
            1e3 * kg,
            "CAN",
            "Canada",
            place=_titled(name),
            basis=f"the mean mix of {_titled(name)}, Canada, of which coal, oil and gas alone count",
            year=2023,
            table="2023/canada_energy_mix.json (the year is its folder's)",
            region=name,
        )
    return found


@cache
def _provinces_of_china() -> dict[str, GridFigure]:
    read = getattr(_tables(), "get_china_provincial_emissions_data", None)  # since codecarbon 3.3
    return {
        code: GridFigure(
            entry["emission_factor"],
            "CHN",
            "China",
            place=entry["description"],
            basis=f"the mean of {entry['description']}, China, CO2 alone",
            year=entry.get("year"),
            table="china_provincial_emissions.json",
            region=entry["names"][0],
        )
        for code, entry in (read()["data"] if read else {}).items()
    }


@cache
def _bidding_zones() -> dict[str, GridFigure]:
    """Of Sweden and Norway; Finland is one zone and has the country's figure."""
    return {
        f"{name[:2]}-{name}": GridFigure(
            entry["emission_factor"],
            *NORDIC[name[:2]],
            place=name,
            basis=f"the mean of what is generated in {entry['description']}, of which {entry['coverage']} has a factor"
            if "coverage" in entry
            else f"the mean of what is generated in {entry['description']}",
            year=entry.get("year"),
            table="nordic_emissions.json",
            region=name.lower(),
        )
        for name, entry in _tables().get_nordic_country_energy_mix_data()["data"].items()
        if name[:2] in NORDIC and name[2:].isdigit()
    }


@cache
def clouds() -> dict[str, GridFigure]:
    """Every region in codecarbon's table of clouds, which has Google's alone: "gcp:europe-west1"."""
    found = {}
    for row in _tables().get_cloud_emissions_data().to_dict("records"):
        region = _MISSPELLED.get(row["region"], row["region"])
        state, city = (str(row[key]) if isinstance(row[key], str) else "" for key in ("state", "city"))
        where = ", ".join(part for part in (city or state, row["country_name"]) if part)
        if float(row["impact"]) > 0:
            found[f"{row['provider']}:{region}"] = GridFigure(
                float(row["impact"]),
                row["countryIsoCode"],
                row["country_name"],
                place=city or state,
                basis=f"the grid of the cloud region {row['provider']}:{region} ({where})",
                year=None,
                table="cloud/impact.csv (Google's carbon data by region)",
                region=state or city,
                cloud=(row["provider"], region),
            )
    return found
