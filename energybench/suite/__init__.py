"""TOML → Suite: tables, inheritance, overlays, sweeps, and every mistake with its line.

It may import common and stats, and no torch.
Start with `suite.py`, then `tables.py`, which holds every key that a suite may have.
"""

from energybench.common.errors import SuiteError
from energybench.suite.suite import InvalidSuite, Suite, cell_name, load, schema_json, slug

__all__ = ["InvalidSuite", "Suite", "SuiteError", "cell_name", "load", "schema_json", "slug"]
