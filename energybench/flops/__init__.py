"""FLOPs and bytes of training: the ledger (estimated, before anything runs) and the counter (counted, as it runs).

It may import common alone; ledger and counter share no code, so that each checks the other.
Start with `work.py`, the ledger's lines that a method's formula changes, then `ledger.py` and `counter.py`.
"""
