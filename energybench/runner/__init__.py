"""Blocks → trials as processes: the plan, the order, the folder, the progress, what has changed since.

It may import trial, report, verdict and what lies below, but its parent process imports no torch: what needs it is
asked of a child (`planner.py`, `trial/trial.py`).
Start with `runner.py`; `planner.py` holds everything that can be checked before training.
"""
