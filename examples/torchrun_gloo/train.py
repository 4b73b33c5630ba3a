"""A script for torchrun: data-parallel training over gloo, on processors, one process for each rank.

    torchrun --standalone --nproc_per_node=2 train.py --steps 200

With --sync-every N gradients are averaged only every N steps. Rank 0 prints the loss on held-out data as JSON. It knows
nothing of energybench.
"""

import argparse
import contextlib
import json

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--sync-every", type=int, default=1)
arguments = parser.parse_args()

distributed.init_process_group("gloo")
rank, ranks = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(arguments.seed)
model = DistributedDataParallel(nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
true_weights = torch.randn(32, 1)
own = torch.Generator().manual_seed(arguments.seed * ranks + rank)

for step in range(arguments.steps):
    inputs = torch.randn(64, 32, generator=own)
    synchronised = step % arguments.sync_every == arguments.sync_every - 1
    with contextlib.nullcontext() if synchronised else model.no_sync():
        (model(inputs) - torch.tanh(inputs @ true_weights)).square().mean().backward()
    if synchronised:
        optimizer.step()
        optimizer.zero_grad()

if rank == 0:
    held_out = torch.randn(1000, 32, generator=torch.Generator().manual_seed(arguments.seed + 1_000_003))
    with torch.no_grad():
        loss = (model.module(held_out) - torch.tanh(held_out @ true_weights)).square().mean()
    print(json.dumps({"loss": loss.item(), "ranks": ranks}))
distributed.destroy_process_group()
