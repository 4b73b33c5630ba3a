"""What is kept on disk: the schema of a run and its trials, its folder, and reading it back strictly.

It may import meter (whose readings a record holds) and common, and no torch.
Start with `record.py`, the schema; `reader.py` says what is refused.
"""
