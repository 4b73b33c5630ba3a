"""A script as one finds many: argparse, a loop over epochs, and an accuracy in percent at the end of a log line.

Softmax regression on clusters of points, in NumPy. With --lazy a sample whose class is nearly sure (over 99 %) is left
out of the update. It knows nothing of energybench.
"""

import argparse

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--samples", type=int, default=20_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--lazy", action="store_true")
arguments = parser.parse_args()

CLASSES, FEATURES, BATCH = 10, 64, 100
random = np.random.default_rng(arguments.seed)
centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))


def clusters(count: int) -> tuple[np.ndarray, np.ndarray]:
    classes = random.integers(CLASSES, size=count)
    return centres[classes] + random.normal(scale=2.5, size=(count, FEATURES)), classes


points, classes = clusters(arguments.samples)
test_points, test_classes = clusters(2_000)
weights = np.zeros((FEATURES, CLASSES))

for epoch in range(1, arguments.epochs + 1):
    order = random.permutation(len(points))
    for batch in np.split(order, range(BATCH, len(order), BATCH)):
        inputs, targets = points[batch], classes[batch]
        scores = inputs @ weights
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        if arguments.lazy:
            unsure = chances[np.arange(len(targets)), targets] < 0.99
            inputs, targets, chances = inputs[unsure], targets[unsure], chances[unsure]
        chances[np.arange(len(targets)), targets] -= 1
        weights -= 0.01 / BATCH * inputs.T @ chances
    correct = ((test_points @ weights).argmax(axis=1) == test_classes).sum()
    print(f"Epoch {epoch}: test accuracy: {correct}/{len(test_points)} ({100 * correct / len(test_points):.2f}%)")
