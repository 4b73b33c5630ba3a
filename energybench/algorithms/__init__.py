"""Mathematics that methods share, each file for itself: channels dropped, neurons frozen, samples drawn, rates learned.

It may import papers, workloads, train, flops and common: torch and the contract of a method, never a meter or a record.
Start with the file whose subject you look for; `drop_in_layers.py` shows how a layer takes another's place.
"""
