"""What this machine can say about energy, before anything runs, and the carbon intensity that a suite asks for."""

from __future__ import annotations

from typing import Any

from energybench.common.errors import EnergybenchError, Problem, nearest
from energybench.meter import sensors, survey
from energybench.meter.carbon import intensity, model_parameters
from energybench.runner.plan_spec import PlanSpec
from energybench.suite.tables import MeasureTable


def energy(
    spec: PlanSpec, measure: MeasureTable, device: str, *, of_children: bool = False
) -> tuple[dict[str, Any], list[Problem]]:
    """(facts of the machine, what is wrong); nothing where energy is off.

    Args:
        spec:    for the places of what is wrong
        measure: the suite's, or with the cards that a command may use
        device:  "cpu", or the UUID of the card that trains
        of_children: what is metered are commands
    """
    problems: list[Problem] = []
    if measure.energy == "off":
        return {}, []
    for name in measure.meters:
        if name not in sensors.offered():
            hint = nearest(name, sensors.offered()) or "install the package that offers it"
            message = f"no installed package offers the meter '{name}'"
            problems.append(Problem("E503", message, spec.where("measure", "meters"), hint))
    wanted = sensors.MeterSelection(measure.energy, measure.gpus, measure.meters, of_children=of_children)
    facts = survey.sensors(wanted, device)
    if not facts["measured"]:
        facts["energy_model"] = model_parameters()
    if measure.energy == "require" and not facts["measured"]:
        reasons = "; ".join(facts["missing"].values())
        hint = 'energybench doctor says what it has; or: energy = "if available"'
        message = f"this machine cannot measure energy: {reasons}"
        problems.append(Problem("E501", message, spec.where("measure", "energy"), hint))
    if measure.carbon:
        try:
            facts["carbon"] = intensity(measure.carbon.country) | {"pue": measure.carbon.pue}
        except EnergybenchError as error:
            place = spec.where("measure", "carbon", "country")
            problems += [problem.placed(place) for problem in error.problems]
    return facts, problems
