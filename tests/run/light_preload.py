"""What the server of a light run imports in place of `energybench.preload`: a trial is a nap, torch is nowhere."""

import importlib
import os
import sys
import types

import light

from energybench.guard import adopt

for name in ("energybench.record", "energybench.launch"):
    importlib.import_module(name)
cell = types.ModuleType("energybench.cell")
cell.main = light.nap  # type: ignore[attr-defined]
sys.modules["energybench.cell"] = cell
SERVER = os.getpid()
adopt()
