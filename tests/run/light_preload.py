"""What the server of a light run imports in place of `energybench.cli.preload`: a trial is a nap, torch is nowhere."""

import importlib
import os
import sys
import types

import light

from energybench.process.reaper import adopt_orphans_until_exit

for name in ("energybench.records.record", "energybench.process.forkserver"):
    importlib.import_module(name)
cell = types.ModuleType("energybench.trial.trial")
cell.main = light.nap  # type: ignore[attr-defined]
sys.modules["energybench.trial.trial"] = sys.modules["energybench.trial.counting_run"] = cell
SERVER = os.getpid()
adopt_orphans_until_exit()
