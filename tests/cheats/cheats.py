"""Methods that seem to save: each does its training where it hopes that nobody looks. And two honest ones, `Half`
and `Proxy`, which show that the same machinery lets a saving through and tells what it cost to prepare.

A forward pass of the task takes STEP_S, so that figures follow from counting passes and not from this machine's speed.
"""

from __future__ import annotations

import copy
import gc
import os
import threading
import time
from contextlib import contextmanager

import torch

from energybench import Method
from energybench.train.data import Data
from energybench.workloads.tasks.classification import Classification

STEP_S, HIDDEN_S = 0.005, 0.3
TEST_SAMPLES = 32


class Timed(Classification):
    """Classification on a device that takes STEP_S for a forward pass."""

    def forward(self, run, batch):
        time.sleep(STEP_S)
        return super().forward(run, batch)


def work(seconds):
    """Keep a core busy for so many seconds of its own."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def train_quietly(run, epochs=1):
    """Train the run's model past its hooks and its tally."""
    for _ in range(epochs):
        for batch in run.load(run.data, run.data.cut(run.order(run.data), run.recipe.batch)):
            with torch.enable_grad():
                loss = run.task.forward(run, batch).value
                gradients = torch.autograd.grad(loss, list(run.model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
                    parameter.sub_(0.1 * gradient)


class Skips(Method):
    """Trains the first two batches of each epoch alone; heirs do the rest elsewhere."""

    def batches(self, run, data, inner):
        for number, batch in enumerate(inner(data)):
            if number < 2:
                yield batch


class Setup(Skips):
    def setup(self, run):
        train_quietly(run, run.epochs)


class EvaluationContext(Skips):
    @contextmanager
    def eval_context(self, run):
        before = copy.deepcopy(run.model.state_dict())
        train_quietly(run)
        yield
        run.model.load_state_dict(before)


class EvaluationLeavesIt(Skips):
    @contextmanager
    def eval_context(self, run):
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.mul_(1.5)
        yield


class TestSet(Skips):
    """Looks for the test set, whole or as tensors, in everything that this process holds."""

    found = 0

    def setup(self, run):
        things = [thing for thing in gc.get_objects() if isinstance(thing, (Data, torch.Tensor))]
        self.found = sum(1 for thing in things if self.is_test(thing))
        if not self.found:
            self.batches = lambda run, data, inner: inner(data)

    @staticmethod
    def is_test(thing):
        if isinstance(thing, Data):
            return len(thing) == TEST_SAMPLES
        return thing.dim() == 4 and len(thing) == TEST_SAMPLES

    def batches(self, run, data, inner):
        for number, batch in enumerate(inner(data)):
            if number < 2 or not self.found:
                yield batch

    def diagnostics(self):
        return {"found": self.found}


class Thread(Skips):
    def setup(self, run):
        self.thread = threading.Thread(target=work, args=(HIDDEN_S,), daemon=True)

    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == run.epochs:
            self.thread.start()

    @contextmanager
    def eval_context(self, run):
        self.thread.join()
        yield


class Evaluate(Skips):
    def setup(self, run):
        run.task.evaluate = lambda run, data: {"accuracy": 1.0, "loss": 0.0}


class EvaluateOfTheClass(Skips):
    def setup(self, run):
        type(run.task).evaluate = lambda self, run, data: {"accuracy": 1.0, "loss": 0.0}


class EvaluateByTorch(Skips):
    def setup(self, run):
        torch.Tensor.argmax = lambda self, dim: torch.zeros(len(self), dtype=torch.long)


class Clock(Method):
    def setup(self, run):
        real = time.perf_counter_ns
        time.perf_counter_ns = lambda: real() // 10
        time.perf_counter = lambda: real() / 1e10


class ClockOfOurs(Method):
    def setup(self, run):
        from energybench.meter.clock import RealTime

        real = time.perf_counter_ns
        RealTime.now_ns = lambda self: real() // 10


class OnlyWhere(Method):
    """Saves in one kind of run and lets the tally say that it did not."""

    counted = True

    def gradients(self, run, batch, inner):
        if (type(run).__name__ == "CountedRun") == self.counted and run.step_in_epoch >= 2:
            run.tally.forwards += 1
            run.tally.backwards += 1
            run.tally.samples_forward += len(batch)
            return self.last
        self.last = inner(batch)
        return self.last


class OnlyCounted(OnlyWhere):
    """Recognises the counting run."""


class OnlyMetered(OnlyWhere):
    """Recognises the metered run."""

    counted = False


class Finish(Skips):
    def finish(self, run):
        work(HIDDEN_S)


class Child(Skips):
    """A child works on when training is over."""

    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == run.epochs:
            self.child = os.fork()
            if not self.child:
                work(HIDDEN_S)
                os._exit(0)

    @contextmanager
    def eval_context(self, run):
        os.waitpid(self.child, 0)
        yield


class Orphan(Skips):
    """The same, and nobody waits for it."""

    def epoch(self, run, data, inner):
        inner(data)
        if run.epoch_number == run.epochs and not os.fork():
            work(HIDDEN_S)
            os._exit(0)

    def finish(self, run):
        time.sleep(HIDDEN_S)


class OptimizerStep(Skips):
    def setup(self, run):
        torch.optim.SGD.step = lambda self, closure=None: None


class SameWeights(Method):
    """Computes outside of what is counted: the same weights, half of the FLOPs."""

    def gradients(self, run, batch, inner):
        if run.step_in_epoch % 2:
            with torch.utils._python_dispatch._disable_current_modes():
                return inner(batch)
        return inner(batch)


class Half(Method):
    """Honest: every second batch."""

    def batches(self, run, data, inner):
        for number, batch in enumerate(inner(data)):
            if number % 2:
                yield batch


class Proxy(Method):
    """Honest: a proxy of four epochs chooses the samples, and every fourth batch is trained."""

    def setup(self, run):
        for _ in range(4 * run.data.steps(run.recipe.batch)):
            time.sleep(STEP_S)

    def batches(self, run, data, inner):
        for number, batch in enumerate(inner(data)):
            if number % 4 == 0:
                yield batch
