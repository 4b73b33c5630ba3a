"""`measure`: a command, metered as it is; or two, in pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from energybench.cli.common import console, print_json, say_if_heard


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--vs", metavar="'COMMAND'", help="Another command: both in turns, COMMAND against this one.")
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="With --vs: how often both run; each is first in half of the pairs.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="With --vs: unmetered runs of both before the first pair.",
)
@click.option("--show-output", is_flag=True, help="With --vs: let both write to the terminal.")
@click.option(
    "--energy", type=click.Choice(["auto", "off"]), default="auto", show_default=True, help="off: time alone."
)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the record to a file.")
@click.option("--json", "as_json", is_flag=True, help="The record on stdout; what the command writes goes to stderr.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def measure(
    vs: str | None,
    pairs: int,
    warmup: int,
    show_output: bool,
    energy: str,
    out: Path | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Meter COMMAND: time and energy of exactly its run, in one line after it. Its exit status is ours.

    energybench measure -- python train.py

    energybench measure --vs 'python train.py' -- python train.py --trick
    """
    from energybench.cli.paired_commands import CommandComparison, CommandMeters, once, words_of
    from energybench.cli.paired_commands_page import COMPARISON_KIND, RECORD_KIND, facts, line, print_versus, progress
    from energybench.common.interrupts import signals_interrupt
    from energybench.common.outputs import refuse_foreign, write_output
    from energybench.common.sealed_files import refuse_unwritable
    from energybench.meter.nvml import held_open
    from energybench.meter.ranks import path_of_rank
    from energybench.meter.shared_node import node_claimed
    from energybench.process.relay import SignalRelay
    from energybench.records.record import json_of

    if out:
        out, kind = path_of_rank(out), RECORD_KIND if vs is None else COMPARISON_KIND
        refuse_unwritable(out)
        refuse_foreign(out, kind)
    words = words_of(command)
    other = None if vs is None else words_of([vs])
    with held_open(), node_claimed(energy == "auto"):
        meters = CommandMeters(energy == "auto")
        if other is None:
            sys.stdout.flush()
            with SignalRelay() as relay:
                trial, code = once(meters, words, relay=relay, stdout=sys.stderr.fileno() if as_json else None)
                say_if_heard(line(trial))
                if out:
                    write_output(out, json_of(trial).encode(), kind)
                if as_json:
                    print_json(trial.model_dump(mode="json", by_alias=True))
                sys.exit(code)
        versus = CommandComparison(words, other, pairs)
        with signals_interrupt() as interrupts:
            with progress(console(to_stderr=True)) as say:
                versus.run(meters, warmup=warmup, show_output=show_output, say=say)
            interrupts.finish()
            summary = versus.summary()
            comparison = facts(versus, summary)
            if out:
                write_output(out, (json.dumps(comparison, indent=1, ensure_ascii=False) + "\n").encode(), kind)
            if as_json:
                print_json(comparison)
            else:
                print_versus(versus, summary, console())
            if versus.interrupted:
                say_if_heard(str(versus.interrupted))
                sys.exit(128 + versus.interrupted.number)
