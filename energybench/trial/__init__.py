"""One trial in a process of its own: the only room where training meets metering.

It may import train, workloads, meter, records, windows and what lies below; the parent names its modules as text.
Start with `trial.py`, or `command_trial.py` for a command that is run in place of our loop.
"""
