"""A suite run many times over: what each run decides, and whether any run is decided against another.

    python tests/replications.py run suites/quick.toml 20 reports/quick-twenty-runs.csv
    python tests/replications.py table reports/quick-twenty-runs.csv

Half of the runs have the suite's own seed, half another. A row is a method against plain training, or, as "gradsamp
against its control", against plain training for the budget that it paid for. The table stands in docs/statistics.md,
and tests/test_replications.py holds it to the file.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

OTHER_SEED = 7
COLUMNS = ("run", "seed", "row", "saving_rel", "low_rel", "high_rel", "cost", "quality_change", "quality")
SAVED, LOST, SAME = ("saves", "faster"), ("costs more", "slower"), ("no saving", "no difference")
Row = dict[str, str]


def run(suite: str, times: int, out: Path) -> None:
    """Runs it so often, one after the other, and writes a line for each row of each run."""
    with out.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, COLUMNS)
        lines.writeheader()
        for number in range(times):
            other = ["--set", f"trials.seed={OTHER_SEED}"] if number % 2 else []
            with tempfile.TemporaryDirectory() as place:
                words = ["run", suite, *other, "--out", f"{place}/run", "--json"]
                done = subprocess.run([sys.executable, "-m", "energybench", *words], capture_output=True, check=True)
            report = json.loads(done.stdout)
            for row in rows(report):
                lines.writerow({"run": number + 1, "seed": OTHER_SEED if other else "", **row})
            file.flush()
            print(f"run {number + 1} of {times}", file=sys.stderr)


def rows(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of one run's `--json`."""
    for workload in report["workloads"]:
        for row in workload["rows"]:
            cost, quality = row["cost_verdict"], row["quality_verdict"]
            yield _line(row["method"], row["measured"], row["quality"], cost, quality)
            if control := row["control"]:
                name = f"{row['method']} against its control"
                cost, quality = _cost(control["measured"], report["accept"]["margin"]), _quality(control["quality"])
                yield _line(name, control["measured"], control["quality"], cost, quality)


def _line(name: str, measured: dict[str, Any], quality: dict[str, Any], cost: str, held: str) -> dict[str, Any]:
    figures = {key: f"{measured[key]:.4f}" for key in ("saving_rel", "low_rel", "high_rel")}
    return {"row": name, **figures, "cost": cost, "quality_change": f"{quality['change']:.4f}", "quality": held}


def _cost(measured: dict[str, Any], margin: float) -> str:
    """The word for the cost alone."""
    from energybench.stats.paired import Paired, cost_verdict

    change = Paired(measured["n"], math.log1p(-measured["saving_rel"]), measured["sd_log"], measured["df"])
    return cost_verdict(change, margin, measured["quantity"])


def _quality(quality: dict[str, Any]) -> str:
    if quality["bound"] >= quality["limit"]:
        return "held"
    return "lost" if quality["best"] < quality["limit"] else "open"


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_decided(row: Row) -> bool:
    """Both of its verdicts."""
    return row["cost"] in (*SAVED, *LOST, *SAME) and row["quality"] in ("held", "lost")


def decided_of_runs(lines: Sequence[Row]) -> list[tuple[int, int]]:
    """(rows with both verdicts decided, rows) of each run."""
    runs: dict[str, list[bool]] = {}
    for row in lines:
        runs.setdefault(row["run"], []).append(is_decided(row))
    return [(sum(decided), len(decided)) for decided in runs.values()]


def contradicted(lines: Sequence[Row]) -> list[str]:
    """Rows that one run decides one way and another run another way."""
    found = []
    for name in dict.fromkeys(row["row"] for row in lines):
        costs = {row["cost"] for row in lines if row["row"] == name} - {"inconclusive", "no verdict"}
        words = {row["quality"] for row in lines if row["row"] == name} & {"held", "lost"}
        if len(costs) > 1 or len(words) > 1:
            found.append(name)
    return found


def table(lines: Sequence[Row]) -> str:
    """What stands in docs/statistics.md."""
    page = ["| row | time saved, of the runs: least, median, most | verdicts on time | verdicts on quality |"]
    page.append("|---|---:|---|---|")
    for name in dict.fromkeys(row["row"] for row in lines):
        of_row = [row for row in lines if row["row"] == name]
        savings = sorted(float(row["saving_rel"]) for row in of_row)
        middle = savings[len(savings) // 2]
        spread = ", ".join(f"{100 * value:.0f} %".replace("-", "−") for value in (savings[0], middle, savings[-1]))
        page.append(f"| {name} | {spread} | {_counted(of_row, 'cost')} | {_counted(of_row, 'quality')} |")
    decided = decided_of_runs(lines)
    fewest = min(decided)
    whole = sum(count == of for count, of in decided)
    page.append("")
    page.append(
        f"Of {len(decided)} runs {whole} decided both verdicts of all {fewest[1]} rows; the fewest were {fewest[0]}. "
        f"Decided one way in one run and another way in another: {', '.join(contradicted(lines)) or 'none'}."
    )
    return "\n".join(page) + "\n"


def _counted(lines: Sequence[Row], key: str) -> str:
    return ", ".join(f"{word} {count}" for word, count in Counter(row[key] for row in lines).most_common())


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        print(table(read(Path(sys.argv[2]))), end="")
