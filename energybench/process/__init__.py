"""Children and their ends: trials forked from a server that has imported everything, commands run to their end.

It may import common alone and imports no torch: a parent that waits spends nothing.
Start with `forkserver.py`, then `reaper.py`, by which nothing that a child started outlives it.
"""
