"""The training loop and the contract of a method: five hooks around one loop, data and recipe, discovery by name.

It may import flops (the ledger's lines) and common, never a meter, a record or a report.
Start with `run.py`, which prints the loop, then `method.py` and `interface.py`, the two halves of the contract;
`method_check.py` and `stack_check.py` tell who does not keep it.
"""
