"""TOML → Suite: tables, inheritance, overlays, sweeps, and every mistake with its line.

It may import common and stats, and no torch.
Start with `suite.py`, then `tables.py`, which holds every key that a suite may have.
"""

from energybench.suite.suite import Suite, SuiteError, cell_name, load, schema_json, slug

__all__ = ["Suite", "SuiteError", "cell_name", "load", "schema_json", "slug"]
