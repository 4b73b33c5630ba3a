"""What the harness itself costs, in two trees of it, in turns on one machine.

It may import everything but the command line; `probe.py` is run by path in either tree and asks little of it.
Start with `compare.py`.
"""

from energybench.overhead.compare import compare_overhead, print_overhead, trees

__all__ = ["compare_overhead", "print_overhead", "trees"]
