"""A suite as it is named on a command line or in Python, with every mistake in it, and its plan.

Imports no torch: methods and models are built in a child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energybench.common.errors import EnergybenchError, Problem, SuiteError, UsageError, in_order

if TYPE_CHECKING:
    from energybench.runner.plan_request import Planned
    from energybench.suite.suite import Suite


def seconds_of(option: str, text: str) -> float:
    from energybench.common.units import UnitError, parse_seconds

    try:
        return parse_seconds(text)
    except UnitError as error:
        raise UsageError(Problem("E204", f"{option}: {error}", hint=error.hint)) from None


def load_suite(
    suite: str, quick: bool, overrides: tuple[str, ...], device: str | None, no_user_code: bool = False
) -> Suite:
    """The suite; or every mistake in it, those too that only show where methods and models are built.

    no_user_code: code that it names is a mistake too, and then nothing is built
    """
    from energybench.runner.user_code import user_code
    from energybench.suite.suite import InvalidSuite, load

    try:
        loaded = load(suite, quick=quick, overrides=overrides)
        if no_user_code and (code := user_code(loaded)):
            raise InvalidSuite(code)
        return loaded
    except InvalidSuite as error:
        if no_user_code and error.rest is not None and (code := user_code(error.rest)):
            raise SuiteError(in_order([*error.problems, *code])) from None
        if error.rest is None or all(problem.code == "E206" for problem in error.problems):
            raise  # nothing left to look at, or only --set is wrong: answer at once
        try:
            plan_suite(error.rest, device)
        except EnergybenchError as more:
            reported = {problem.where for problem in error.problems}
            raise SuiteError(
                in_order([*error.problems, *(p for p in more.problems if p.where not in reported)])
            ) from None
        raise


def plan_suite(suite: Suite, device: str | None) -> Planned:
    from energybench.process.forkserver import Launcher
    from energybench.records.scratch_folder import scratch
    from energybench.runner.plan_request import plan

    with scratch() as place:
        launcher = Launcher()
        if suite.trains:
            launcher.warm()
        return plan(suite, launcher, place, device=device, download=False)
