"""Lines about a run as a whole, for a terminal and the HTML page: requirements, all workloads, blocks added later."""

from __future__ import annotations

from energybench.verdict import interim_notes, wording
from energybench.verdict.figures import Overall, Required, Summary
from energybench.verdict.overall import FEWEST_WORKLOADS

OUTCOME_STYLES = {"met": "green", "not met": "bold red", "undecided": "yellow"}
OVERALL_ABOUT = (
    "The geometric mean of each method's ratios, every workload weighing the same. No verdict is drawn from it: those "
    "are per workload."
)


def uncounted(summary: Summary) -> list[str]:
    """One line a workload: operators that nobody prices, with the most calls that a cell's counted steps made."""
    most: dict[str, dict[str, int]] = {}
    for each in summary.uncounted:
        calls = most.setdefault(each.workload, {})
        calls |= {name: max(count, calls.get(name, 0)) for name, count in each.calls.items()}
    return [
        f"{workload}: without a FLOP count, with calls in the counted steps: "
        + ", ".join(f"{name} × {calls:,}" for name, calls in sorted(of.items()))
        for workload, of in most.items()
    ]


def requirements(summary: Summary) -> list[tuple[str, str]]:
    """What the suite requires and whether it is met, a sentence each with its style on a terminal."""
    return [
        (
            f"{each.outcome}: {each.workload}: {each.method} {_must(each)}: {wording.plain(each.reason)}",
            OUTCOME_STYLES[each.outcome],
        )
        for each in summary.required
    ]


def _must(required: Required) -> str:
    if required.least_rel is not None:
        return f"must save {required.asks.removeprefix('saves ')}"
    return f"must {required.asks.replace('never:', 'never be:').replace('one of:', 'be one of:')}"


def overall(summary: Summary) -> list[str]:
    """Each method over all workloads, and which workloads are not in it."""
    lines = []
    for each in summary.overall:
        saving, what, span, bounds, within = overall_cells(each)
        inside = f" [95 % for workloads like these: {bounds}]" if each.low_rel is not None else ""
        quality = "" if each.quality_within_margin is None else f"; quality within the margin on {within}"
        lines.append(
            f"{each.method} over {len(each.workloads)} workloads: {saving} {what} saved, {span}{inside}{quality}."
        )
    return lines + overall_left_out(summary)


def overall_cells(method: Overall) -> list[str]:
    """Saving, of what, range over the workloads, interval for workloads like these, quality within the margin."""
    within = wording.NOTHING
    if method.quality_within_margin is not None:
        within = f"{method.quality_within_margin} of {len(method.workloads)}"
    return [
        wording.percent(method.saving_rel),
        wording.what(method.quantity, method.scope),
        f"{wording.percent(method.least_rel)} to {wording.percent(method.most_rel)}",
        _interval(method),
        within,
    ]


def _interval(method: Overall) -> str:
    if method.low_rel is None or method.high_rel is None:
        return f"needs {FEWEST_WORKLOADS} workloads"
    return wording.interval(method.low_rel, method.high_rel, 1)


def overall_left_out(summary: Summary) -> list[str]:
    """Which workloads a method's mean does not hold, a sentence each."""
    reason = "where the comparison is struck, diverged, past its limit or missing"
    return [
        f"{each.method}: without {', '.join(each.left_out)}, {reason}." for each in summary.overall if each.left_out
    ]


def added_blocks(summary: Summary) -> list[str]:
    """Figures with the blocks that were added to a finished run; empty where none was."""
    if not summary.added:
        return []
    figures = [
        f"{row.workload}: {row.method}: {wording.measured(row.measured)} {row.measured.quantity} saved"
        for row in summary.added
    ]
    return [f"exploratory: {interim_notes.about(summary)}", *figures]
