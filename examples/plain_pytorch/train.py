"""A plain PyTorch training that knows nothing of energybench: 1,797 handwritten digits, a small network.

With --selective each batch is run forward whole, and only the half with the largest losses is run backward.
"""

import argparse
import json

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--selective", action="store_true")
arguments = parser.parse_args()

torch.manual_seed(arguments.seed)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
test = torch.arange(len(images)) % 5 == 0
train_images, train_labels = images[~test], labels[~test]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(4),
    nn.Flatten(),
    nn.Linear(512, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

for epoch in range(arguments.epochs):
    for part in torch.randperm(len(train_images)).split(64):
        batch, targets = train_images[part], train_labels[part]
        if arguments.selective:
            with torch.no_grad():
                hardest = cross_entropy(model(batch), targets, reduction="none").topk(len(part) // 2).indices
            batch, targets = batch[hardest], targets[hardest]
        loss = cross_entropy(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

with torch.no_grad():
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
print(json.dumps({"accuracy": accuracy}))
