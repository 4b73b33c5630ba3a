"""One line of codecarbon's emissions.csv for each trial; energies include the PUE, as there."""

from __future__ import annotations

from typing import Any

from energybench.meter import combine
from energybench.meter.grid import J_PER_KWH
from energybench.meter.zones import OWN
from energybench.records.record import RunFile, Trial
from energybench.verdict.carbon import Span, Zone

EMISSIONS = (  # codecarbon 3.3's emissions.csv: kg, kg/s, W, kWh, s, GB; a test holds it against the package
    "timestamp",
    "project_name",
    "run_id",
    "experiment_id",
    "duration",
    "emissions",
    "emissions_rate",
    "cpu_power",
    "gpu_power",
    "ram_power",
    "cpu_energy",
    "gpu_energy",
    "ram_energy",
    "energy_consumed",
    "water_consumed",
    "country_name",
    "country_iso_code",
    "region",
    "cloud_provider",
    "cloud_region",
    "os",
    "python_version",
    "codecarbon_version",
    "cpu_count",
    "cpu_model",
    "gpu_count",
    "gpu_model",
    "longitude",
    "latitude",
    "ram_total_size",
    "tracking_mode",
    "cpu_utilization_percent",
    "gpu_utilization_percent",
    "ram_utilization_percent",
    "ram_used_gb",
    "on_cloud",
    "pue",
    "wue",
)


def emission(run: RunFile, trial: Trial, zone: Zone | None) -> dict[str, Any]:
    """A usable trial as codecarbon writes a tracked run; cells without a zone or a measurement stay empty."""
    assert trial.train is not None
    seconds, pue = trial.train.wall_s, zone.pue if zone else 1.0
    parts = combine.metered_by_scope(trial.train)
    kwh = {scope: joules * pue / J_PER_KWH for scope, joules in parts.items()}
    whole = sum(kwh.values()) if kwh else None
    kg = zone.kg(Span(sum(parts.values()))).mean if zone and parts else None
    cards = trial.environment.get("gpus") or {}
    names = {str(card.get("name")) for card in cards.values() if card.get("name")}
    row: dict[str, Any] = {
        "timestamp": trial.started_at,
        "project_name": f"{run.suite}/{trial.workload}/{trial.method}",
        "run_id": trial.trial,
        "experiment_id": run.run,
        "duration": seconds,
        "emissions": kg,
        "emissions_rate": None if kg is None else kg / seconds,
        "energy_consumed": whole,
        **(_where(zone) if zone else {}),
        "os": run.machine.get("platform"),
        "python_version": run.machine.get("python"),
        "cpu_count": run.machine.get("cores"),
        "cpu_model": run.machine.get("cpu"),
        "gpu_count": len(cards) or None,
        "gpu_model": ", ".join(sorted(names)) or None,
        "tracking_mode": "machine",
        "pue": pue,
    }
    for scope, name in (("cpu", "cpu"), ("gpu", "gpu"), ("dram", "ram")):
        if scope in kwh:
            row |= {f"{name}_energy": kwh[scope], f"{name}_power": parts[scope] * pue / seconds}
    return row


def _where(zone: Zone) -> dict[str, str | None]:
    """A zone in codecarbon's columns; each None where the zone does not say it."""
    alpha_3 = zone.zone if zone.zone != OWN else ""  # in records of when each zone was one
    return {
        "country_name": zone.country or None,
        "country_iso_code": zone.country_iso or alpha_3 or None,
        "region": zone.region or None,
        "cloud_provider": zone.cloud_provider or None,
        "cloud_region": zone.cloud_region or None,
        "on_cloud": "Y" if zone.cloud_provider else None,
    }
