"""A suite handed to the child that checks it, and what comes back: everything its trials need. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from energybench.common.errors import CannotMeasure, CannotWrite, Problem, UsageError, in_order
from energybench.common.hashing import digest
from energybench.common.sealed_files import write_text
from energybench.process import subprocess_call
from energybench.process.forkserver import ChildOutcome, Launcher
from energybench.records.record import Cell
from energybench.suite.command_tables import CommandWorkload
from energybench.suite.suite import Suite

WARMER_C = 10.0  # than at the start of the run, a card may be when a trial begins


class Planned:
    """A suite that has passed every check, with what its trials need."""

    def __init__(self, suite: Suite, result: dict[str, Any], spec: dict[str, Any]) -> None:
        self.suite, self.spec = suite, spec
        self.workloads: dict[str, dict[str, Any]] = result["workloads"]
        self.cells = [Cell.model_validate(cell) for cell in result["cells"]]
        self.notes: list[str] = result["notes"]
        self.machine: dict[str, Any] = result["machine"]
        self.device: str = result["device"]  # as torch names it
        self.device_name: str = result["device_name"]  # "cpu", or the card's UUID
        self.digest: str = result["digest"]
        self.sources: dict[str, str] = result.get("sources", {})  # programs and files that commands name
        self.cards: Any = result.get("gpus")  # that are metered while a command runs
        self.command_device: str = result.get("command_device", "cpu")
        self.blocks: int = spec["blocks"]  # the most there will be
        self.looks: list[int] = spec["looks"]  # empty: one, when all blocks are there

    @property
    def measure(self) -> dict[str, Any]:
        """The suite's [measure] with what a trial must know of this machine's sensors."""
        cards, cooldown = self.machine.get("gpus", []), self.spec["cooldown"]
        ticks = [card["tick"]["seconds"] for card in cards if card.get("tick")]
        starts = {card["uuid"]: card["temperature_c"] for card in cards if card.get("temperature_c") is not None}
        return self.spec["measure"] | {
            "model": self.machine.get("energy_model"),
            "tick_s": max(ticks, default=0.0),
            "below_c": {uuid: cooldown["below_c"] or heat + WARMER_C for uuid, heat in starts.items()},
            "cooldown_s": cooldown["longest"],
        }

    @property
    def measure_commands(self) -> dict[str, Any]:
        """The same for a trial that is a command: which cards it uses is its own affair."""
        return self.measure | {"gpus": self.cards, "of_children": True}

    @property
    def trials(self) -> int:
        return self.blocks * sum(not cell.skipped for cell in self.cells)

    @property
    def counting_runs(self) -> list[Cell]:
        """One per cell whose steps are its own; twins and controls take the baseline's steps."""
        own = [cell for cell in self.cells if cell.role in ("baseline", "method") and not cell.command]
        return [cell for cell in own if not cell.skipped]

    def expected_s(self) -> float | None:
        """About how long: plain steps for every cell, a second of set-up for each process. A command takes its time."""
        if any(cell.command and not cell.skipped for cell in self.cells):
            return None
        metered = self.blocks * sum((c.expected_s or 0) + 1 for c in self.cells if not c.skipped)
        return metered + sum((c.expected_s or 0) * 1.5 + 1 for c in self.counting_runs)


def spec_of(
    suite: Suite, place: Path, *, device: str | None, download: bool, until_decided: bool = False, added: int = 0
) -> dict[str, Any]:
    """The suite as plain data for `energybench.runner.planner`, each part with the line it was written in."""
    looks = list(suite.trials.declared_looks) if until_decided else []
    workloads = [{**w.settings(), "where": _places(suite, ("workload", i))} for i, w in enumerate(suite.workloads)]
    for workload in workloads:
        workload.pop("extends", None)
    commands = {w.name for w in suite.workloads if isinstance(w, CommandWorkload)}
    variants = [
        {
            "label": variant.label,
            "claim": variant.claim,
            "control": variant.control,
            "tuned": variant.tuned,
            "command": variant.command,
            "values": variant.values,
            "where": suite.where((*variant.loc, "command")),
            "stack": [
                {
                    "use": layer.use,
                    "parameters": layer.parameters,
                    "where": {"": suite.where(layer.loc), "use": suite.where((*layer.loc[:2], "use"))}
                    | {k: suite.where((*layer.loc, k)) for k in layer.parameters},
                }
                for layer in variant.stack
            ],
        }
        for variant in suite.variants()
    ]
    settings = suite.digest_source()
    return {
        "base": str(suite.path.parent),
        "cache": str(place / "data"),
        "variants": variants,
        "workloads": [w for w in workloads if w["name"] not in commands],
        "commands": [w for w in workloads if w["name"] in commands],
        "pairs": [{"workload": w.name, "variant": v.label, "skipped": why} for w, v, why in suite.pairs()],
        "blocks": looks[-1] if looks else suite.trials.blocks,
        "looks": looks,
        "added": added,
        "seed": suite.trials.seed,
        "twin": suite.trials.twin,
        "threads": suite.trials.threads,
        "warmup": settings["trials"]["warmup"],
        "measure": settings["measure"],
        "metric": suite.accept.quality.metric,
        "metric_where": suite.where(("accept", "quality", "metric")),
        "energy_where": suite.where(("measure", "energy")),
        "stamp": suite.stamp,
        "accept": settings["accept"],
        "require": settings["require"],
        "meters_where": suite.where(("measure", "meters")),
        "cooldown": settings["trials"]["cooldown"],
        "carbon_where": suite.where(("measure", "carbon", "country")),
        "device": device,
        "download": download,
    }


def plan(
    suite: Suite,
    launcher: Launcher,
    place: Path,
    *,
    device: str | None = None,
    download: bool = True,
    purpose: str | None = None,
    until_decided: bool = False,
    added: int = 0,
) -> Planned:
    """Check everything that can be checked without training, in a child. Raises UsageError with every mistake.

    purpose: what the plan is for, as `planner.Plan` takes it; by default a run, or a check without download
    until_decided: as many blocks as the suite declares at most, with its looks
    added: blocks beyond the declared ones, which change no digest
    """
    spec = spec_of(suite, place, device=device, download=download, until_decided=until_decided, added=added)
    spec["purpose"] = purpose
    parts = []
    if spec["workloads"]:
        trained = {**spec, "variants": [v for v in spec["variants"] if not v["command"]]}
        trained["pairs"] = _of(spec["pairs"], trained["workloads"], trained["variants"])
        call = partial(launcher.call, "energybench.runner.planner:main")
        parts.append(_ask(call, trained, place, suite))
    if spec["commands"]:
        given = {**spec, "variants": [v for v in spec["variants"] if v["command"]]}
        given["pairs"] = _of(spec["pairs"], given["commands"], given["variants"])
        parts.append(_ask(partial(subprocess_call.call, "energybench.runner.command_plan"), given, place, suite))
    problems = in_order(Problem(**problem) for part in parts for problem in part["problems"])
    if problems:
        raise (CannotMeasure if all(p.code == "E501" for p in problems) else UsageError)(problems)
    return Planned(suite, _together(parts, suite, spec), spec)


def _of(
    pairs: list[dict[str, Any]], workloads: list[dict[str, Any]], variants: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    names, labels = {w["name"] for w in workloads}, {v["label"] for v in variants}
    return [pair for pair in pairs if pair["workload"] in names and pair["variant"] in labels]


def _together(parts: list[dict[str, Any]], suite: Suite, spec: dict[str, Any]) -> dict[str, Any]:
    """Trainings and commands of one suite as one plan, in the order of the file."""
    if not spec["commands"]:
        return parts[0]
    first, commands = parts[0], parts[-1]
    cells = [cell for part in parts for cell in part["cells"]]
    names = [workload.name for workload in suite.workloads]
    cells.sort(key=lambda cell: names.index(cell["workload"]))
    cards = {card["uuid"]: card for part in parts for card in part["machine"].get("gpus", [])}
    return {
        **first,
        "cells": cells,
        "notes": list(dict.fromkeys(note for part in parts for note in part["notes"])),
        "workloads": {name: known for part in parts for name, known in part["workloads"].items()},
        "machine": {**commands["machine"], **first["machine"]} | ({"gpus": list(cards.values())} if cards else {}),
        "sources": commands["sources"],
        "gpus": commands["gpus"],
        "command_device": commands["device_name"],
        "digest": digest(
            [
                [part["digest"] for part in parts],
                *(spec[key] for key in ("blocks", "looks", "seed", "twin", "stamp", "accept")),
                *([spec["require"]] if spec["require"] else []),
            ]
        ),  # declared before the first block
    }


def _ask(call: Callable[[Path, Path], ChildOutcome], spec: dict[str, Any], place: Path, suite: Suite) -> dict[str, Any]:
    """What a child makes of the suite. Raises UsageError E606 where it ends without an answer."""
    in_path, out_path = place / "plan.in.json", place / "plan.out.json"
    write_text(in_path, json.dumps(spec))
    out_path.unlink(missing_ok=True)
    outcome = call(in_path, out_path)
    if outcome.unwritten:
        raise CannotWrite.of(OSError(None, "the process that checks the suite found the disk full"), out_path)
    if not out_path.exists():
        hint = "a file of yours that it loads may end the process; if not, this is a bug of energybench"
        raise UsageError(Problem("E606", f"checking the suite ended early: {outcome.reason}", str(suite.path), hint))
    result: dict[str, Any] = json.loads(out_path.read_text(encoding="utf-8"))
    return result


def plan_facts(planned: Planned) -> dict[str, Any]:
    """The plan as plain data, for `check` and its `--json`."""
    return {
        "suite": planned.suite.suite,
        "path": str(planned.suite.path),
        "stamp": planned.suite.stamp,
        "blocks": planned.blocks,
        "trials": planned.trials,
        "counting_runs": len(planned.counting_runs),
        "witnesses": len(planned.counting_runs),  # the name before
        "expected_s": planned.expected_s(),
        "device": planned.device,
        "notes": planned.notes,
        "workloads": {
            name: {
                "parameters": known["parameters"],
                "steps_per_epoch": known["steps"],
                "step_s": known["step_s"],
                "data": {key: value for key, value in known["data"].items() if key != "file"},
            }
            for name, known in planned.workloads.items()
            if known["data"]
        },
        "sources": planned.sources,
        "cells": [
            {
                "workload": c.workload,
                "method": c.method,
                "role": c.role,
                "skipped": c.skipped,
                "plain_flop": c.plain_flop,
                "expected_s": c.expected_s,
                "epochs": c.epochs,
                "command": c.command,
                "methods": {s["name"]: s["path"] for s in c.stack},
                "claim": c.claim.model_dump() if c.claim else None,
            }
            for c in planned.cells
        ],
        "machine": planned.machine,
    }


def _places(suite: Suite, loc: tuple[str | int, ...]) -> dict[str, str]:
    """Where each table of a workload stands, for messages."""
    keys = ("task", "model", "data", "train", "target", "train.precision", "data.augment", "command", "quality")
    return {"": suite.where(loc)} | {key: suite.where((*loc, *key.split("."))) for key in keys}
