"""What this machine can say about energy, before anything runs, and the carbon intensity that a suite asks for."""

from __future__ import annotations

from typing import Any

from energybench.common.errors import EnergybenchError, Problem, nearest
from energybench.meter import sensors, survey
from energybench.meter.carbon import model_parameters
from energybench.meter.zones import intensity, own_intensity
from energybench.runner.plan_spec import PlanSpec
from energybench.suite.tables import CarbonTable, MeasureTable


def energy(spec: PlanSpec, measure: MeasureTable, device: str) -> tuple[dict[str, Any], list[Problem]]:
    """(facts of the machine, what is wrong); nothing where energy is off.

    Args:
        spec:    for the places of what is wrong
        measure: the suite's, or with the cards that a command may use
        device:  "cpu", or the UUID of the card that trains
    """
    problems: list[Problem] = []
    if measure.energy == "off":
        return {}, []
    for name in measure.meters:
        if name not in sensors.offered():
            hint = nearest(name, sensors.offered()) or "install the package that offers it"
            message = f"no installed package offers the meter '{name}'"
            problems.append(Problem("E503", message, spec.where("measure", "meters"), hint))
    facts = survey.sensors(sensors.MeterSelection(measure.energy, measure.gpus, measure.meters), device)
    if not facts["measured"]:
        facts["energy_model"] = model_parameters()
    if measure.energy == "require" and not facts["measured"]:
        reasons = "; ".join(facts["missing"].values())
        hint = 'energybench doctor says what it has; or: energy = "if available"'
        message = f"this machine cannot measure energy: {reasons}"
        problems.append(Problem("E501", message, spec.where("measure", "energy"), hint))
    if measure.carbon:
        try:
            facts["carbon"] = _grid(measure.carbon) | {"pue": measure.carbon.pue}
        except EnergybenchError as error:
            place = spec.where("measure", "carbon", "country")
            problems += [problem.placed(place) for problem in error.problems]
    return facts, problems


def _grid(carbon: CarbonTable) -> dict[str, Any]:
    """What is known of the grid that a suite names, or what it gives itself. Raises UsageError E502."""
    if carbon.intensity is not None:
        return own_intensity(carbon.intensity, (carbon.source or "").strip(), "given in the suite")
    return intensity(carbon.country or "")
