"""What the forkserver imports once, so that a trial starts in milliseconds: imports only.

A fork after any computation (a convolution, a trace, a backward) inherits thread pools that are not there and hangs;
after imports alone it works. Nothing here may compute.
"""

import os

import torch
import torch._dynamo

import energybench.cli.command_line
import energybench.runner.planner
import energybench.trial.counting_run
from energybench.common.torchvision_shim import import_torchvision
from energybench.process.reaper import adopt_orphans_until_exit

import_torchvision()
SERVER = os.getpid()
adopt_orphans_until_exit()

__all__ = ["energybench", "torch"]
