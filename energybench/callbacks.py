"""Callbacks for trainers of others: the training as a window `train`, from which each evaluation is excluded.

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
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from energybench.common.errors import Problem, UsageError
from energybench.common.renamed import RenamedNameWarning
from energybench.windows.measure import measure
from energybench.windows.window import MeasuredWindow

UNANNOUNCED = "an evaluation or a checkpoint ran inside it"  # not known beforehand, so it could not be excluded
NO_QUALITY = ("runtime", "per_second", "jit_compilation_time", "epoch")  # what trainers list beside quality


class TrainingWindow:
    """The window of a training, and those that are excluded from it.

    window: of the training; it stays after the training, for its quality
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._train, self._excluded = measure(name, **options), list[Any]()
        self.window: MeasuredWindow | None = None
        self._open = self._unannounced = False

    def begin(self) -> None:
        self.end("never closed")  # a training before this one that was broken off
        self.window, self._open, self._unannounced = self._train.start(), True, False

    def end(self, error: str | None = None) -> None:
        while self._excluded:
            self.end_excluded()
        if self._open:
            self._open = False
            self._train.stop(error or (UNANNOUNCED if self._unannounced else None))

    def begin_excluded(self, name: str) -> None:
        """Something that is no training begins: pause the window."""
        if self._open:
            excluded = measure(name, exclude_from_parent=True)
            excluded.start()
            self._excluded.append(excluded)

    def end_excluded(self) -> None:
        """It has ended: the training goes on."""
        if self._excluded:
            self._excluded.pop().stop()

    def excluded_has_ended(self) -> None:
        """Something that is no training has just ended; if it was not excluded from its beginning, mark the window."""
        self._unannounced = self._unannounced or (self._open and not self._excluded)
        self.end_excluded()

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
    """A `transformers.TrainerCallback`. Evaluations and checkpoints of the trainer's own schedule are excluded; the
    window is marked if another callback asked for one.

    Args:
        name: of the window
        options: as `energybench.measure` takes them

    Raises:
        UsageError: E643 where transformers is not installed, E641 for a wrong option
    """
    base: Any = _library("transformers", "huggingface").TrainerCallback
    training = TrainingWindow(name, options)

    class HuggingFaceCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if training.window is not None:
                training.steps(training.window.steps + 1)
            self._what_comes_next(control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._what_comes_next(control)

        def _what_comes_next(self, control: Any) -> None:
            """What comes before the next step, as the trainer does it: an evaluation, then a checkpoint."""
            if control.should_evaluate:
                training.begin_excluded("evaluate")
            elif control.should_save:
                training.begin_excluded("save")

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            training.excluded_has_ended()
            training.quality(metrics, "eval_")
            if control.should_save:
                training.begin_excluded("save")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.excluded_has_ended()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.end()

    return _with(HuggingFaceCallback, training)


def lightning(name: str = "train", **options: Any) -> Any:
    """A `lightning.pytorch.Callback`, or `pytorch_lightning`'s where that is what the script imports. Validation is
    excluded; checkpoints, which Lightning writes without saying when, are not.

    Args:
        name: of the window
        options: as `energybench.measure` takes them

    Raises:
        UsageError: E643 where Lightning is not installed, E641 for a wrong option
    """
    other = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    base: Any = _library("pytorch_lightning" if other else "lightning.pytorch", "lightning").Callback
    training = TrainingWindow(name, options)

    class LightningCallback(base):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._before = trainer.global_step
            training.begin()

        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            training.steps(trainer.global_step - self._before)

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            training.begin_excluded("evaluate")

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            training.end_excluded()
            if not trainer.sanity_checking:
                training.quality(trainer.callback_metrics)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            training.steps(trainer.global_step - self._before)
            training.quality(trainer.callback_metrics)
            training.end()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            training.end(type(exception).__name__)

    return _with(LightningCallback, training)


def keras(name: str = "train", **options: Any) -> Any:
    """A `keras.callbacks.Callback`. Validation inside `fit` is excluded.

    Args:
        name: of the window
        options: as `energybench.measure` takes them

    Raises:
        UsageError: E643 where Keras is not installed, E641 for a wrong option
    """
    base: Any = _library("keras", "keras").callbacks.Callback
    training = TrainingWindow(name, options)

    class KerasCallback(base):
        def on_train_begin(self, logs: Any = None) -> None:
            self._before = self._updates()
            training.begin()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            training.steps(self._updates() - self._before)
            training.quality(logs, "val_")

        def on_test_begin(self, logs: Any = None) -> None:
            training.begin_excluded("evaluate")

        def on_test_end(self, logs: Any = None) -> None:
            training.end_excluded()

        def on_train_end(self, logs: Any = None) -> None:
            training.steps(self._updates() - self._before)
            training.end()

        def _updates(self) -> int:
            """The optimizer's own count: a batch is no update where several are run or accumulated at once."""
            optimizer = self.model.optimizer
            return int(optimizer.iterations) if optimizer is not None and optimizer.built else 0

    return _with(KerasCallback, training)


def _with(callback_class: Any, training: TrainingWindow) -> Any:
    """An instance that has its window: `callback.training.window`."""

    def marks(self: Any) -> TrainingWindow:
        warnings.warn("callback.marks is called callback.training now", RenamedNameWarning, stacklevel=2)
        return training

    callback_class.marks = property(marks)
    callback = callback_class()
    callback.training = training
    return callback


def _library(module: str, extra: str) -> ModuleType:
    """Raises UsageError E643 where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"pip install 'energybench[{extra}]'"
        raise UsageError(Problem("E643", f"{module} cannot be imported: {error}", hint=hint)) from None
