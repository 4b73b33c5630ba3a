"""One trial in a process of its own: the only room where training meets metering.

It may import train, workloads, meter, records, windows and what lies below; the parent names its modules as text.
Start with `spec.py`, what each is handed, then `trial.py`, or `command_trial.py` for a command in place of our loop.
"""
