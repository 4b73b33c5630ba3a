"""What `energybench doctor --calibrate` found of this machine, kept for `run` and `check`: what can be seen here.

One file in the user's cache, `energybench/calibration.json`, of the machine that it was found on: processor, cores,
device and torch must be the same, else nothing is known. What cannot be read is not there.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from energybench.common import user_cache
from energybench.common.limits import RECORD_B
from energybench.common.quantities import Amount, Count, Text, WindowSeconds
from energybench.common.safe_read import read_bytes
from energybench.common.sealed_files import write_text
from energybench.meter.reading import RecordModel
from energybench.stats import power

SAME = ("cpu", "cores", "device", "torch")  # of a run's machine, for a calibration to say anything of it


class Calibration(RecordModel):
    """The spread of ln(b / a) between two equal trainings, one after the other."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    at: Text  # the day, in UTC
    machine: dict[Text, Text]
    pairs: Count
    window_s: WindowSeconds  # of one training
    time_sd_log: Amount
    energy_sd_log: Amount | None = None

    def sees_rel(self, blocks: int, margin: float, energy: bool) -> float | None:
        """The smallest saving that so many blocks find four times in five; None below three, or unknown."""
        sd = self.energy_sd_log if energy else self.time_sd_log
        return None if sd is None or blocks < 3 else power.detectable(sd, blocks, margin, df=self.pairs - 1)


def place() -> Path:
    """Where it is kept."""
    return user_cache.place("calibration.json")


def machine_of(facts: dict[str, Any]) -> dict[str, str]:
    """What a calibration is of, from the facts of a machine."""
    return {name: str(facts[name]) for name in SAME if facts.get(name) is not None}


def keep(found: dict[str, Any], machine: dict[str, Any]) -> None:
    """Write what a calibration found; where that cannot be written, nothing is kept.

    Args:
        found: as `trial.calibrate.calibrate` gives it
        machine: with `cpu`, `cores`, `device` and `torch`
    """
    energy = found.get("energy") or {}
    try:
        calibration = Calibration(
            at=datetime.now(UTC).strftime("%Y-%m-%d"),
            machine=machine_of(machine),
            pairs=found["pairs"],
            window_s=found["window_s"],
            time_sd_log=found["time"]["sd_log"],
            energy_sd_log=energy.get("sd_log"),
        )
        path = place()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(calibration.model_dump(mode="json", by_alias=True), indent=1) + "\n")
    except Exception:  # a home that cannot be written to, a spread that is no figure: it only costs the sentence
        return


def kept(machine: dict[str, Any]) -> Calibration | None:
    """The calibration of this machine; None where there is none, or it is another's."""
    try:
        found = Calibration.model_validate_json(read_bytes(place(), RECORD_B))
    except (OSError, ValueError, ValidationError):
        return None
    return found if found.machine == machine_of(machine) and found.pairs > 1 else None
