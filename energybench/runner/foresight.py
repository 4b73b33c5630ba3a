"""What a suite can show on this machine, told before the first trial: by what the doctor's calibration has found."""

from __future__ import annotations

from typing import Any

from energybench.records.calibration import kept
from energybench.runner.plan_request import Planned
from energybench.verdict import wording


def foresight(planned: Planned) -> dict[str, Any] | None:
    """The smallest saving that the suite's blocks see here; None where this machine was not calibrated.

    sees_rel: of time or energy, as `of` says; None where no saving can be seen
    """
    machine = planned.machine | {"device": planned.device_name}
    calibration = kept(machine)
    if calibration is None or planned.spec.blocks < 3:
        return None
    energy = bool(machine.get("gpus")) and calibration.energy_sd_log is not None
    margin = planned.suite.accept.margin
    return {
        "sees_rel": calibration.sees_rel(planned.spec.blocks, margin, energy),
        "of": "energy" if energy else "time",
        "blocks": planned.spec.blocks,
        "calibrated": calibration.at,
    }


def sentence(found: dict[str, Any]) -> str:
    """ "this machine sees savings of time from 6.0 % in this suite (10 blocks; calibrated 2026-11-30)"."""
    basis = f"({wording.plain(wording.blocks(found['blocks']))}; calibrated {found['calibrated']})"
    share = found["sees_rel"]
    if share is None or share >= 1:
        return f"this machine sees no saving of {found['of']} in this suite {basis}"
    seen = wording.plain(wording.percent(share, 0 if share >= 0.1 else 1))
    return f"this machine sees savings of {found['of']} from {seen} in this suite {basis}"
