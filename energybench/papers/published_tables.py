"""The papers' tables counted again by their own rules: what `energybench claims` prints and docs/claims.md holds.

Each paper's tables are a file: gradsamp_tables.py, ssprop_tables.py, neq_tables.py. A figure is reproduced, fitted or
ours (cells.py), and the three are never counted together. Everything runs on the meta device, in a few seconds; page.py
prints it.
"""

from __future__ import annotations

from typing import Any

from energybench.papers import cells, counting_rules, gradsamp_tables, neq_tables, ssprop_tables
from energybench.papers.cells import PublishedPaper, PublishedTable, Row, ours


def facts() -> dict[str, Any]:
    """{papers: [...], counts: what there is of each kind (`cells.counts`), words: what each row's word means}."""
    papers = [gradsamp_tables.paper(), ssprop_tables.paper(), neq_tables.paper(), _samples_chosen()]
    return {"papers": [paper.facts() for paper in papers], "counts": cells.counts(papers), "words": dict(cells.WORDS)}


def _samples_chosen() -> PublishedPaper:
    table = PublishedTable(
        "When presampling pays: τ above (B′ + 3b) / 3b",
        ["presampled"],
        ["τ"],
        [Row([f"{n}b"], [ours(counting_rules.presampling_gate(n), 2)]) for n in (3, 5)],
        "Below it, choosing costs more than uniform training with as many more samples.",
    )
    return PublishedPaper(
        "Adaptive and importance sampling: samples chosen",
        "Salaün et al., arXiv 2311.14468; the gate from Katharopoulos and Fleuret 2018",
        "No FLOP of a step is removed: the promise is fewer steps to a target. A run of full length costs the same or "
        "more, so the saving is energy to target, and there is no table of FLOPs to hold.",
        (table,),
    )
