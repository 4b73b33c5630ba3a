"""What the forkserver imports once, so that a trial starts in milliseconds: imports only.

A fork after any computation (a convolution, a trace, a backward) inherits thread pools that are not there and hangs;
after imports alone it works. Nothing here may compute.
"""

import os

import torch
import torch._dynamo

import energybench.cell
import energybench.cli
import energybench.plan
from energybench.guard import adopt
from energybench.torchvision_shim import import_torchvision

import_torchvision()
SERVER = os.getpid()
adopt()

__all__ = ["energybench", "torch"]
