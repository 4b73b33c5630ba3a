"""May this build pass: two runs compared, golden counts, histories, and their pages for terminals and CI.

It may import report, verdict, records and what lies below; it reads records and trains nothing.
Start with `regression.py`, which holds the test, then `compare_runs.py`, which reads two runs for it.
"""

from energybench.gate.regression import (
    FAILS,
    FAMILY,
    OPEN,
    Comparison,
    Finding,
    Records,
    chance,
    exit_code,
    holm,
    judge,
    welch,
)

__all__ = [
    "FAILS",
    "FAMILY",
    "OPEN",
    "Comparison",
    "Finding",
    "Records",
    "chance",
    "exit_code",
    "holm",
    "judge",
    "welch",
]
