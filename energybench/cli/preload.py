"""What the forkserver imports once, so that a trial starts in milliseconds: imports only.

A fork after any computation (a convolution, a trace, a backward) inherits thread pools that are not there and hangs;
after imports alone it works. Nothing here may compute.
"""

import importlib
import os
import pkgutil

import torch
import torch._dynamo

import energybench.algorithms
import energybench.cli.command_line
import energybench.runner.planner
import energybench.trial.counting_run
from energybench.common.torchvision_shim import import_torchvision
from energybench.process.in_child import be_silent_about_callers_that_left
from energybench.process.reaper import adopt_orphans_until_exit

import_torchvision()
# With the libraries that they need (scipy alone takes half a second): else the first method that uses one would be
# billed its import, which plain training never pays.
for _module in pkgutil.iter_modules(energybench.algorithms.__path__, "energybench.algorithms."):
    importlib.import_module(_module.name)
SERVER = os.getpid()
be_silent_about_callers_that_left()
adopt_orphans_until_exit()

__all__ = ["energybench", "torch"]
