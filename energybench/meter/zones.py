"""The carbon intensity of a zone that somebody names, or their own figure: a table as a record holds it."""

from __future__ import annotations

from typing import Any

from energybench.common.errors import Problem, UsageError
from energybench.common.programs import starting_safely
from energybench.meter.grid import J_PER_KWH, find
from energybench.meter.zone_hints import hint

OWN = "own"  # the zone of an intensity that somebody gave


def intensity(zone: str) -> dict[str, Any]:
    """What is known of a zone's grid.

    Returns:
        {zone, country, intensity_kg_per_j, year, source, basis, country_iso} and, where they apply, {place, region,
        cloud_provider, cloud_region}; zone as it is written here, "fr" → "FRA".

    Raises:
        UsageError: E502 where no figure is known, with what to type instead.
    """
    found = find(zone)
    if found is None:
        raise UsageError(Problem("E502", f"no carbon intensity is known for '{zone}'", hint=hint(zone)))
    with starting_safely():  # it asks nvidia-smi when it is imported
        import codecarbon

    name, figure = found
    facts: dict[str, Any] = {
        "zone": name,
        "country": figure.name,
        "intensity_kg_per_j": figure.grams_kwh / 1e3 / J_PER_KWH,
        "year": figure.year,
        "source": f"codecarbon {codecarbon.__version__}, {figure.table}",
        "basis": figure.basis,
        "country_iso": figure.country,
    }
    facts |= {key: value for key, value in (("place", figure.place), ("region", figure.region)) if value}
    if figure.cloud:
        facts["cloud_provider"], facts["cloud_region"] = figure.cloud
    return facts


def own_intensity(kg_per_j: float, source: str, basis: str) -> dict[str, Any]:
    """The same of an intensity that a person gave. source: theirs; basis: where it was given."""
    return {"zone": OWN, "intensity_kg_per_j": kg_per_j, "year": None, "source": source, "basis": basis}
