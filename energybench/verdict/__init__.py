"""From records to figures, flags, verdicts and their sentences: everything that is judged is judged here.

It may import records, meter, flops, suite, stats and common, and prints nothing.
Start with `summary.py`, which makes the whole summary of a run, then `workload.py` for one comparison.
"""
