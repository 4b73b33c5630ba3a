"""A suite that was checked, as plain data for `check` and `show`."""

from __future__ import annotations

from typing import Any

from energybench.runner.expected_time import expected_time, further_plain
from energybench.runner.plan_request import Planned
from energybench.trial.spec import stack_of


def plan_facts(planned: Planned) -> dict[str, Any]:
    """The plan as plain data, for `check` and its `--json`."""
    expected = expected_time(planned)
    return {
        "suite": planned.suite.suite,
        "path": str(planned.suite.path),
        "stamp": planned.suite.stamp,
        "blocks": planned.spec.blocks,
        "trials": planned.trials + further_plain(planned),
        "possible_controls": planned.possible_controls,
        "counting_runs": len(planned.counting_runs),
        "witnesses": len(planned.counting_runs),  # the name before
        "expected_s": expected and expected.least_s,
        "expected_most_s": expected and expected.most_s,
        "device": planned.device,
        **({"devices": devices} if (devices := planned.suite.trials.devices) > 1 else {}),
        "notes": planned.notes,
        "workloads": {
            name: {
                "parameters": known.parameters,
                "steps_per_epoch": known.steps,
                "step_s": known.step_s,
                "data": known.data.for_record(),
                **({"task": known.task} if known.task else {}),
                **({"weights": known.weights.model_dump(mode="json")} if known.weights else {}),
            }
            for name, known in planned.workloads.items()
        },
        "sources": planned.result.sources,
        "cells": [
            {
                "workload": c.workload,
                "method": c.method,
                "role": c.role,
                "skipped": c.skipped,
                "plain_flop": c.plain_flop,
                "expected_s": c.expected_s,
                "epochs": c.epochs,
                "of": c.of,
                "control": c.control,
                "command": c.command,
                "methods": {each.name: each.path for each in stack_of(c.stack)},
                "claim": c.claim.model_dump() if c.claim else None,
            }
            for c in planned.cells
        ],
        "machine": planned.machine,
    }
