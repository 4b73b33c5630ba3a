"""What this machine can say about energy, before anything runs, and the carbon intensity that a suite asks for."""

from __future__ import annotations

from typing import Any

from energybench.common.errors import EnergybenchError, Problem, nearest
from energybench.meter import sensors, survey
from energybench.meter.carbon import intensity, model_parameters


def energy(spec: dict[str, Any], device: str) -> tuple[dict[str, Any], list[Problem]]:
    """(facts of the machine, what is wrong); nothing where energy is off.

    spec:   as `energybench.runner.plan_request.spec_of` gives it
    device: "cpu", or the UUID of the card that trains
    """
    measure, problems = spec["measure"], list[Problem]()
    if measure["energy"] == "off":
        return {}, []
    for name in measure["meters"]:
        if name not in sensors.offered():
            hint = nearest(name, sensors.offered()) or "install the package that offers it"
            message = f"no installed package offers the meter '{name}'"
            problems.append(Problem("E503", message, spec["meters_where"], hint))
    facts = survey.sensors(measure, device)
    if not facts["measured"]:
        facts["energy_model"] = model_parameters()
    if measure["energy"] == "require" and not facts["measured"]:
        why = "; ".join(facts["missing"].values())
        hint = 'energybench doctor says what it has; or: energy = "if available"'
        message = f"this machine cannot measure energy: {why}"
        problems.append(Problem("E501", message, spec["energy_where"], hint))
    if measure.get("carbon"):
        try:
            facts["carbon"] = intensity(measure["carbon"]["country"]) | {"pue": measure["carbon"]["pue"]}
        except EnergybenchError as error:
            problems += [problem.placed(spec["carbon_where"]) for problem in error.problems]
    return facts, problems
