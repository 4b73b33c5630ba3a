"""`overhead`: what the harness itself costs, in two trees of it."""

from __future__ import annotations

import sys

import click

from energybench.cli.common import console, print_json
from energybench.common.errors import EXIT_INCONCLUSIVE, EXIT_REGRESSION, Problem, UsageError

MOST = 0.99  # as of the margin of a suite


@click.command()
@click.argument("base")
@click.argument("head", default=".")
@click.option("--rounds", type=click.IntRange(min=3), default=7, show_default=True, help="Of either side, in turns.")
@click.option("--margin", metavar="SHARE", default="10 %", show_default=True, help="What counts as slower.")
@click.option("--only", metavar="NAME", multiple=True, help="step, help, list, parse, report; default: all.")
@click.option(
    "--method", "methods", metavar="NAME", multiple=True, help="Also a step with this method; alone: only that."
)
@click.option("--strict", is_flag=True, help="Exit 4 where something is not decided.")
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def overhead(
    base: str,
    head: str,
    rounds: int,
    margin: str,
    only: tuple[str, ...],
    methods: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> None:
    """Is HEAD's harness slower than BASE's? Folders or git refs; HEAD is by default the folder you are in."""
    from energybench.common.units import UnitError, parse_ratio
    from energybench.overhead.compare import compare_overhead, print_overhead, trees

    try:
        margin_rel = parse_ratio(margin)
    except UnitError as error:
        raise UsageError(Problem("E204", f"--margin: {error}", hint=error.hint)) from None
    if margin_rel > MOST:
        message = f"--margin: expected at most 99 %, got {margin}: twice as slow is 50 %"
        raise UsageError(Problem("E204", message, hint="--margin '10 %'"))
    with trees(base, head) as (base_tree, head_tree):
        comparison = compare_overhead(
            base_tree,
            head_tree,
            rounds=rounds,
            margin_rel=margin_rel,
            only=only,
            methods=methods,
            names=(base, head),
            say=lambda text: click.echo(text, err=True),
        )
    if as_json:
        print_json(comparison.to_json())
    else:
        print_overhead(comparison, console())
    undecided = EXIT_INCONCLUSIVE if strict and comparison.undecided else 0
    sys.exit(EXIT_REGRESSION if comparison.regressions else undecided)
