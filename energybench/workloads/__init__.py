"""What is trained: tasks (one file each), models and data sets, by name or from a user's own file.

It may import train, the suite's tables and common, never a meter or a record.
Start with `classification.py`, a whole task; `models.py` and `datasets.py` hold the tables of names.
"""
