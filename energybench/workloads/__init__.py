"""What is trained: tasks, models and data sets, by name or from a user's own file; and how quality is computed.

`tasks/`, `models/` and `datasets/` have one file for each family, imported when a suite names something of it, and a
table of names in their `__init__.py`; `metrics/` is what the tasks' `evaluate` share. Installed packages offer more by
entry points (`names.py`); `catalogue.py` reads all of it as text.
It may import train, the suite's tables and common, never a meter or a record.
Start with `tasks/classification.py`, a whole task.
"""
