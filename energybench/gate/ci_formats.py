"""A comparison, or one run, in the formats that build servers read. Imports no torch.

junit                JUnit XML: one test case per comparison; what failed is a failure, what is open is skipped
markdown             the page of the comparison, as in $GITHUB_STEP_SUMMARY
smaller-is-better    github-action-benchmark's customSmallerIsBetter: HEAD's cost relative to plain training, in %
bigger-is-better     customBiggerIsBetter: HEAD's saving, in %
pytest-benchmark     pytest-benchmark's JSON: HEAD's seconds of every cell, for `pytest-benchmark compare`
"""

from __future__ import annotations

import json
import math
import re
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from energybench.common.outputs import Kind, json_kind
from energybench.common.version import __version__
from energybench.gate import gate_page
from energybench.gate.compare_runs import GateResult, Side
from energybench.gate.regression import FAILS, OPEN, Finding
from energybench.records.record import Trial
from energybench.verdict import pairing, wording
from energybench.verdict.figures import Measured

UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


def junit(result: GateResult) -> str:
    """<testsuites> with a <testsuite> per level."""
    root = ET.Element("testsuites", name=_xml(f"energybench {result.suite}"))
    for level in dict.fromkeys(each.level for each in result.findings):
        findings = [each for each in result.findings if each.level == level]
        failed, open_ = (sum(each.outcome in outcomes for each in findings) for outcomes in (FAILS, OPEN))
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_xml(f"{result.suite}.{level}"),
            tests=str(len(findings)),
            failures=str(failed),
            errors="0",
            skipped=str(open_),
            time="0",
        )
        for each in findings:
            suite.append(_test_case(result, each))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _test_case(result: GateResult, finding: Finding) -> ET.Element:
    case = ET.Element(
        "testcase",
        classname=_xml(f"{result.suite}.{finding.level}.{finding.workload}"),
        name=_xml(f"{finding.method}: {finding.quantity}"),
        time="0",
    )
    sentence = _xml(wording.plain(gate_page.sentence(finding)))
    if finding.outcome in FAILS:
        ET.SubElement(case, "failure", message=sentence, type=finding.outcome).text = sentence
    elif finding.outcome in OPEN:
        ET.SubElement(case, "skipped", message=sentence)
    return case


def _xml(text: str) -> str:
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def benchmark(head: Side, bigger: bool) -> list[dict[str, Any]]:
    """github-action-benchmark's [{name, unit, value, range, extra}].

    Args:
        head:   the run whose savings are given; what is struck or without a figure is left out.
        bigger: savings in %, of which more is better; else costs relative to plain training in %.
    """
    entries = []
    for workload in head.summary.workloads:
        for row in workload.rows:
            figure = row.measured
            if figure is None or row.verdict_forbidden:
                continue
            quantity = wording.what(figure.quantity, figure.scope)
            value = 100 * (figure.saving_rel if bigger else 1 - figure.saving_rel)
            entry = {
                "name": f"{workload.name}: {row.method} ({quantity})",
                "value": round(value, 4),
                "unit": "% saved" if bigger else "% of plain training",
                "extra": f"{quantity}; verdict: {row.verdict}; {wording.plain(wording.repeated(row))}",
            }
            if (reach := _reach(figure)) is not None:
                entry["range"] = f"± {reach:.4g}"
            entries.append(entry)
    return entries


def _reach(figure: Measured) -> float | None:
    """The wider half of the 95 % interval, in %."""
    if figure.low_rel is None or figure.high_rel is None:
        return None
    reach = max(figure.high_rel - figure.saving_rel, figure.saving_rel - figure.low_rel)
    return 100 * reach if math.isfinite(reach) else None


def pytest_benchmark(head: Side) -> dict[str, Any]:
    """Seconds of every cell, each block a round; twins and controls are left out. On several devices a cell is a
    benchmark on each: their seconds are never averaged."""
    run, trials, _ = head.records
    began = run.invocations[0].started_at if run.invocations else ""
    cells = dict.fromkeys((t.workload, t.method) for t in trials if t.role in ("baseline", "method"))
    benchmarks = []
    for workload, method in cells:
        of_cell = [t for t in trials if (t.workload, t.method) == (workload, method)]
        for device, of_it in _by_device(head, of_cell):
            label = f"{method}, {device}" if device else method
            if used := pairing.newest(of_it):
                benchmarks.append(_benchmark(run.suite, workload, label, [pairing.seconds(t) for t in used]))
    machine = {
        "node": "",
        "processor": run.machine.get("cpu", ""),
        "machine": run.machine.get("platform", ""),
        "python_version": run.machine.get("python", ""),
        "system": "Linux",
        "cpu": {"brand_raw": run.machine.get("cpu", ""), "count": run.machine.get("cores")},
    }
    commit = {"id": run.digest, "time": began, "author_time": began, "dirty": False, "project": run.suite, "branch": ""}
    return {
        "machine_info": machine,
        "commit_info": commit,
        "benchmarks": benchmarks,
        "datetime": began,
        "version": __version__,
    }


def _by_device(head: Side, trials: list[Trial]) -> Iterable[tuple[str, list[Trial]]]:
    """Device → its trials; "" where one ran them all."""
    several = head.pooling is not None and head.pooling.several
    return head.pooling.by_device(trials).items() if head.pooling is not None and several else [("", trials)]


def _benchmark(suite: str, workload: str, method: str, seconds: Sequence[float]) -> dict[str, Any]:
    name, n = f"{workload}[{method}]", len(seconds)
    mean, spread = statistics.fmean(seconds), statistics.stdev(seconds) if n > 1 else 0.0
    q1, median, q3 = statistics.quantiles(seconds, method="inclusive") if n > 1 else [seconds[0]] * 3
    iqr = q3 - q1
    inside_fences = [value for value in seconds if q1 - 1.5 * iqr <= value <= q3 + 1.5 * iqr]
    beyond_sd, beyond_fences = sum(abs(value - mean) > spread for value in seconds), n - len(inside_fences)
    stats = {
        "min": min(seconds),
        "max": max(seconds),
        "mean": mean,
        "stddev": spread,
        "rounds": n,
        "median": median,
        "iqr": iqr,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond_fences,
        "stddev_outliers": beyond_sd,
        "outliers": f"{beyond_sd};{beyond_fences}",
        "ld15iqr": min(inside_fences),
        "hd15iqr": max(inside_fences),
        "ops": 1 / mean,
        "total": math.fsum(seconds),
        "data": list(seconds),
        "iterations": 1,
    }
    options = {
        "disable_gc": False,
        "timer": "perf_counter",
        "min_rounds": n,
        "max_time": 0.0,
        "min_time": 0.0,
        "warmup": False,
    }
    return {
        "group": workload,
        "name": name,
        "fullname": f"{suite}::{name}",
        "params": None,
        "param": None,
        "extra_info": {"workload": workload, "method": method},
        "options": options,
        "stats": stats,
    }


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


OF_THE_GATE: dict[str, Callable[[GateResult], str]] = {"junit": junit, "markdown": gate_page.markdown}
OF_HEAD: dict[str, Callable[[Side], str]] = {
    "smaller-is-better": lambda head: _as_json(benchmark(head, bigger=False)),
    "bigger-is-better": lambda head: _as_json(benchmark(head, bigger=True)),
    "pytest-benchmark": lambda head: _as_json(pytest_benchmark(head)),
}
FORMATS = (*OF_THE_GATE, *OF_HEAD)


def _is_benchmark(entries: Any) -> bool:
    return isinstance(entries, list) and all("; verdict: " in entry["extra"] for entry in entries)


def _is_pytest_benchmark(found: Any) -> bool:
    of_cells = (set(each["extra_info"]) == {"workload", "method"} for each in found["benchmarks"])
    return set(found) == {"machine_info", "commit_info", "benchmarks", "datetime", "version"} and all(of_cells)


KINDS: dict[str, Kind] = {  # what another output of the same form may replace
    "junit": Kind("a JUnit file", lambda found: b'<testsuites name="energybench ' in found[:200]),
    "markdown": Kind("a summary", lambda found: found.lstrip(b"#").startswith(b" energybench: ")),
    "smaller-is-better": json_kind("a list of benchmarks", _is_benchmark),
    "bigger-is-better": json_kind("a list of benchmarks", _is_benchmark),
    "pytest-benchmark": json_kind("a file of benchmarks", _is_pytest_benchmark),
}
