"""`@pytest.mark.energy(budget="12 J")`: what a test may take, and whether what was measured keeps to it.

within         energy + error ≤ budget: the test passes
over           energy − error > budget: it fails
undecided      the budget lies inside the error, or the error is not known: it fails too, for a pass means that the
               budget was kept
not measured   no sensor, or one that may not decide: the test is skipped, with the reason
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from energybench.common.errors import nearest
from energybench.common.units import UnitError, format_si, parse_joules
from energybench.pytest_energy.metered_calls import Bill

BudgetVerdict = Literal["within", "over", "undecided", "not measured"]
SCOPES = ("gpu", "cpu", "dram", "module", "machine")
EXAMPLE = '@pytest.mark.energy(budget="12 J")'


class BadBudget(ValueError):
    """The marker is written wrongly; the text says how to write it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """joules, of these parts of the machine; of none in particular: of all that is measured."""

    joules: float
    of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """One test's budget, what was measured, and what follows."""

    name: str
    budget: Budget
    verdict: BudgetVerdict
    sentence: str
    bill: Bill | None


def read_marker(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Budget:
    """The marker's budget. Raises BadBudget."""
    if unknown := sorted(set(kwargs) - {"budget", "of"}):
        raise BadBudget(f"the marker energy has no '{unknown[0]}': {nearest(unknown[0], ('budget', 'of'))}")
    given = [*args, *([kwargs["budget"]] if "budget" in kwargs else [])]
    if len(given) != 1:
        raise BadBudget(f"the marker energy needs one budget: {EXAMPLE}")
    try:
        joules = parse_joules(given[0])
    except UnitError as error:
        raise BadBudget(f"the marker energy: {error}: {error.hint}") from None
    named = kwargs.get("of", ())
    of = tuple(named.replace("+", " ").split()) if isinstance(named, str) else tuple(named)
    if wrong := [scope for scope in of if scope not in SCOPES]:
        raise BadBudget(f"the marker energy: of = '{wrong[0]}': {nearest(str(wrong[0]), SCOPES)}")
    return Budget(joules, of)


def judge(name: str, budget: Budget, bill: Bill | None, reason: str = "") -> Judgement:
    """Hold what was measured to a budget.

    Args:
        name: of the test
        budget: in joules
        bill: what one call took; None where it was not metered
        reason: why there is no bill
    """

    def judged(verdict: BudgetVerdict, sentence: str) -> Judgement:
        return Judgement(name, budget, verdict, sentence, bill)

    if bill is None:
        return judged("not measured", f"not measured: {reason}")
    if budget.of:
        bill = bill.of(budget.of)
    if bill.energy_j is None:
        modelled = "; modelled energy keeps to no budget" if bill.modelled_j is not None else ""
        return judged("not measured", f"not measured: {bill.reason}{modelled}")
    if bill.no_verdict:
        return judged("not measured", f"not decided by this figure: {bill.no_verdict}")
    error = ", error unknown," if bill.error_j is None else f" ± {format_si(bill.error_j, 'J', 2)}"
    energy = f"{format_si(bill.energy_j, 'J')}{error} by {', '.join(bill.sources)}"
    calls = f" a call, over {bill.calls} calls" if bill.calls > 1 else ""
    both = f"{energy}{calls}; the budget is {format_si(budget.joules, 'J')}"
    if bill.error_j is None:
        return judged("undecided", f"undecided: {both}. {bill.error_reason}, so no budget is proven to be kept")
    if bill.energy_j - bill.error_j > budget.joules:
        return judged("over", f"over budget: {both}")
    if bill.energy_j + bill.error_j <= budget.joules:
        return judged("within", f"within budget: {both}")
    more = "a longer window (--benchmark-max-time), or a budget that it is proven to keep"
    return judged("undecided", f"undecided: {both}. What would decide: {more}")
