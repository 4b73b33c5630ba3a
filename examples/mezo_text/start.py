"""The body that MeZO starts from: a small GPT-2 trained by back-propagation on every second sentence of SST-2.

    ENERGYBENCH_DATA=… python start.py

Writes start.pt beside this file, without the head: MeZO then has a body that knows the language and a task to learn.
"""

from pathlib import Path

import torch
from torch.nn import functional

from energybench.workloads.datasets.text import sst2
from energybench.workloads.models.text import gpt2_classifier

LENGTH, BATCH, EPOCHS = 48, 32, 3

data = sst2(length=LENGTH)
inputs, targets = (part[::2] for part in data["train"])
torch.manual_seed(0)
model = gpt2_classifier((LENGTH,), 2, data["facts"]["extra"]["vocabulary"], layers=2, heads=2, width=64)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(1, EPOCHS + 1):
    losses = []
    for some in torch.randperm(len(inputs)).split(BATCH):
        loss = functional.cross_entropy(model(inputs[some]), targets[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")

body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("score.")}
torch.save(body, Path(__file__).with_name("start.pt"))
