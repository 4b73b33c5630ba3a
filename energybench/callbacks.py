"""Callbacks for trainers of others: the training as a window `train`, each evaluation as a window apart from it.

    Trainer(..., callbacks=[energybench.callbacks.huggingface()])                    transformers
    Trainer(callbacks=[energybench.callbacks.lightning()])                           lightning, pytorch_lightning
    model.fit(..., callbacks=[energybench.callbacks.keras()])                        keras

Each takes what `energybench.measure` takes. `steps` are the optimizer's updates; what the trainer reports of quality on
held-out data is the window's quality. The library is imported when its function is called.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from energybench.common.errors import Problem, UsageError
from energybench.windows.window import MeasuredWindow, measure

INSIDE = "an evaluation or a checkpoint ran inside it"  # unseen beforehand, so it could not be set apart
NO_QUALITY = ("runtime", "per_second", "jit_compilation_time", "epoch")  # what trainers list beside quality


class Marks:
    """The window of a training, and what stands apart from it. `window` stays after the training, for its quality."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._train, self._aside = measure(name, **options), list[Any]()
        self.window: MeasuredWindow | None = None
        self._open = self._unseen = False

    def begin(self) -> None:
        self.end("never closed")  # a training before this one that was broken off
        self.window, self._open, self._unseen = self._train.start(), True, False

    def end(self, error: str | None = None) -> None:
        while self._aside:
            self.back()
        if self._open:
            self._open = False
            self._train.stop(error or (INSIDE if self._unseen else None))

    def apart(self, name: str) -> None:
        """Something that is no training begins."""
        if self._open:
            aside = measure(name, apart=True)
            aside.start()
            self._aside.append(aside)

    def back(self) -> None:
        """It has ended."""
        if self._aside:
            self._aside.pop().stop()

    def ended(self) -> None:
        """Something that is no training has just ended; if nobody said that it began, the window is marked."""
        self._unseen = self._unseen or (self._open and not self._aside)
        self.back()

    def steps(self, count: int) -> None:
        if self.window is not None and self._open:
            self.window.steps = count

    def quality(self, metrics: Mapping[str, Any] | None, prefix: str = "") -> None:
        """Finite numbers among the metrics whose name begins with the prefix, without it."""
        for name, value in (metrics or {}).items():
            if self.window is None or not name.startswith(prefix) or name.endswith(NO_QUALITY):
                continue
            with contextlib.suppress(TypeError, ValueError, RuntimeError, UsageError):  # no single, finite number
                self.window.quality(name.removeprefix(prefix), float(value))


def huggingface(name: str = "train", **options: Any) -> Any:
    """A `transformers.TrainerCallback`. Evaluations and checkpoints of the trainer's own schedule stand apart;
    the window is marked if another callback asked for one."""
    base: Any = _library("transformers", "huggingface").TrainerCallback
    marks = Marks(name, options)

    class Measure(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if marks.window is not None:
                marks.steps(marks.window.steps + 1)
            self._next(control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._next(control)

        def _next(self, control: Any) -> None:
            """What comes before the next step, as the trainer does it: an evaluation, then a checkpoint."""
            if control.should_evaluate:
                marks.apart("evaluate")
            elif control.should_save:
                marks.apart("save")

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            marks.ended()
            marks.quality(metrics, "eval_")
            if control.should_save:
                marks.apart("save")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.ended()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.end()

    return _with(Measure, marks)


def lightning(name: str = "train", **options: Any) -> Any:
    """A `lightning.pytorch.Callback`, or `pytorch_lightning`'s where that is what the script imports. Validation stands
    apart; checkpoints, which Lightning writes without saying when, do not."""
    other = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    base: Any = _library("pytorch_lightning" if other else "lightning.pytorch", "lightning").Callback
    marks = Marks(name, options)

    class Measure(base):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._before = trainer.global_step
            marks.begin()

        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            marks.steps(trainer.global_step - self._before)

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            marks.apart("evaluate")

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            marks.back()
            if not trainer.sanity_checking:
                marks.quality(trainer.callback_metrics)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            marks.steps(trainer.global_step - self._before)
            marks.quality(trainer.callback_metrics)
            marks.end()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            marks.end(type(exception).__name__)

    return _with(Measure, marks)


def keras(name: str = "train", **options: Any) -> Any:
    """A `keras.callbacks.Callback`. Validation inside `fit` stands apart."""
    base: Any = _library("keras", "keras").callbacks.Callback
    marks = Marks(name, options)

    class Measure(base):
        def on_train_begin(self, logs: Any = None) -> None:
            self._before = self._updates()
            marks.begin()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            marks.steps(self._updates() - self._before)
            marks.quality(logs, "val_")

        def on_test_begin(self, logs: Any = None) -> None:
            marks.apart("evaluate")

        def on_test_end(self, logs: Any = None) -> None:
            marks.back()

        def on_train_end(self, logs: Any = None) -> None:
            marks.steps(self._updates() - self._before)
            marks.end()

        def _updates(self) -> int:
            """The optimizer's own count: a batch is no update where several are run or accumulated at once."""
            optimizer = self.model.optimizer
            return int(optimizer.iterations) if optimizer is not None and optimizer.built else 0

    return _with(Measure, marks)


def _with(kind: type, marks: Marks) -> Any:
    """An instance that has its window: `callback.marks.window`."""
    callback = kind()
    callback.marks = marks
    return callback


def _library(module: str, extra: str) -> ModuleType:
    """Raises UsageError E643 where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"pip install 'energybench[{extra}]'"
        raise UsageError(Problem("E643", f"{module} cannot be imported: {error}", hint=hint)) from None
