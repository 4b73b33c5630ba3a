"""What this machine can say about energy, before anything runs, and the carbon intensity that a suite asks for."""

from __future__ import annotations

from typing import Any

from energybench.common.errors import EnergybenchError, Problem, nearest
from energybench.meter import sensors, survey
from energybench.meter.carbon import model_parameters
from energybench.meter.zones import intensity, own_intensity
from energybench.runner.plan_spec import PlanSpec
from energybench.suite.tables import CarbonTable, MeasureTable


def energy(
    spec: PlanSpec, measure: MeasureTable, device: str, *, of_commands: bool = False
) -> tuple[dict[str, Any], list[Problem]]:
    """(facts of the machine, what is wrong); nothing where energy is off.

    Args:
        spec:    for the places of what is wrong
        measure: the suite's, or with the cards that a command may use
        device:  "cpu", or the UUID of the card that trains
        of_commands: whether what is metered are commands, whose own use of cards is not known
    """
    problems: list[Problem] = []
    if measure.energy == "off":
        return {}, []
    for name in measure.meters:
        if name not in sensors.offered():
            hint = nearest(name, sensors.offered()) or "install the package that offers it"
            message = f"no installed package offers the meter '{name}'"
            problems.append(Problem("E503", message, spec.where("measure", "meters"), hint))
    facts = survey.sensors(
        sensors.MeterSelection(measure.energy, measure.gpus, measure.meters, of_children=of_commands), device
    )
    unmetered = facts.pop("unmetered")
    if not facts["measured"]:
        facts["energy_model"] = model_parameters()
    if measure.energy == "require" and (message := _refusal(facts, measure, unmetered)):
        hint = 'energybench doctor says what it has; or: energy = "if available"'
        problems.append(Problem("E501", message, spec.where("measure", "energy"), hint))
    if measure.carbon:
        try:
            facts["carbon"] = _grid(measure.carbon) | {"pue": measure.carbon.pue}
        except EnergybenchError as error:
            place = spec.where("measure", "carbon", "country")
            problems += [problem.placed(place) for problem in error.problems]
    return facts, problems


def _refusal(facts: dict[str, Any], measure: MeasureTable, unmetered: list[str]) -> str:
    """Why energy that is required would not be that of what trains; "" where it is."""
    missing: dict[str, str] = facts["missing"]
    if not facts["measured"]:
        return f"this machine cannot measure energy: {'; '.join(missing.values())}"
    if measure.meters or not unmetered:  # another package's meter says itself of what it is
        return ""
    reasons = [f"{uuid}: {missing.get(uuid) or missing.get('gpu', 'not metered')}" for uuid in unmetered]
    return f"what trains is not what is metered: {'; '.join(reasons)}"


def _grid(carbon: CarbonTable) -> dict[str, Any]:
    """What is known of the grid that a suite names, or what it gives itself. Raises UsageError E502."""
    if carbon.intensity is not None:
        return own_intensity(carbon.intensity, (carbon.source or "").strip(), "given in the suite")
    return intensity(carbon.country or "")


def unless_elsewhere(spec: PlanSpec, problems: list[Problem]) -> tuple[list[Problem], list[str]]:
    """(problems, notes): a required sensor that is missing is only noted where no trial will run on this machine."""
    if not spec.metered_elsewhere:
        return problems, []
    notes = [f"{p.message}; the blocks are refused where they run if it is so there" for p in problems if _sensor(p)]
    return [problem for problem in problems if not _sensor(problem)], notes


def _sensor(problem: Problem) -> bool:
    return problem.code == "E501"
