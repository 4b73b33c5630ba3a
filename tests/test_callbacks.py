"""Callbacks in the real trainers: steps are the optimizer's updates, and an evaluation is no part of training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.clock import put_behind
from fakes.replay import VirtualTime
from torch.optim.optimizer import register_optimizer_step_post_hook

from energybench import callbacks
from energybench.common.errors import UsageError
from energybench.common.torchvision_shim import import_torchvision
from energybench.meter import pool
from energybench.records.reader import read
from energybench.windows import window
from energybench.windows.file import WindowsFile, read_windows, training

import_torchvision()  # which the trainers import too
SAMPLES, BATCH, STEP_S, PAUSE_S = (
    20,
    4,
    0.25,
    40.0,
)  # what an update takes, and an evaluation: nothing else takes time
TIME = VirtualTime()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(tmp_path / "nothing"))
    monkeypatch.delenv("ENERGYBENCH_WINDOWS", raising=False)
    monkeypatch.chdir(tmp_path)  # whatever a trainer writes
    pool._idle.clear()
    put_behind(monkeypatch, TIME)
    yield
    assert not window._open


@pytest.fixture
def updates() -> Iterator[list[int]]:
    """The true updates: a hook that torch calls after every optimizer's `step`, which takes its time."""
    seen: list[int] = []

    def step(*_: object) -> None:
        TIME.sleep(STEP_S)
        seen.append(1)

    handle = register_optimizer_step_post_hook(step)
    yield seen
    handle.remove()


# ── transformers ──────────────────────────────────────────────────────────────────────────────────────────────


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64, n_positions=16))


def texts() -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(64, (SAMPLES, 8), generator=random)
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(callback: Any, folder: Path, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class Slow(Trainer):  # type: ignore[misc]
        """Its evaluation takes a known time."""

        def evaluation_loop(self, *arguments: Any, **more: Any) -> Any:
            TIME.sleep(PAUSE_S)
            return super().evaluation_loop(*arguments, **more)

    given: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 2,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    arguments = TrainingArguments(output_dir=str(folder / "out"), **given | settings)
    return Slow(model=gpt2(), args=arguments, train_dataset=texts(), eval_dataset=texts(), callbacks=[callback])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 10), ({"gradient_accumulation_steps": 2}, 6), ({"max_steps": 3}, 3), ({"num_train_epochs": 1}, 5)],
)
def test_transformers_steps_are_the_optimizers_updates(
    tmp_path: Path, updates: list[int], settings: dict[str, Any], expected: int
) -> None:
    callback = callbacks.huggingface(energy="off", quiet=True)
    trainer(callback, tmp_path, **settings).train()
    assert callback.training.window.steps == len(updates) == expected
    assert callback.training.window.line.error is None


def test_transformers_evaluations_and_checkpoints_are_excluded_and_quality_is_theirs(
    tmp_path: Path, updates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "windows.jsonl"
    monkeypatch.setenv("ENERGYBENCH_WINDOWS", str(path))
    callback = callbacks.huggingface(energy="off")
    done = trainer(callback, tmp_path, eval_strategy="epoch", save_strategy="epoch")
    done.train()
    lines = read_windows(path)
    assert [line.name for line in lines] == ["train", "evaluate", "save", "evaluate", "save"]
    assert all(line.parent is None and line.error is None for line in lines)
    train, evaluations = lines[0], [line for line in lines if line.name == "evaluate"]
    assert train.steps == len(updates) == 10
    assert [line.wall_s for line in evaluations] == pytest.approx([PAUSE_S] * 2)
    assert train.reading is not None
    assert train.reading.pieces == 5
    assert train.wall_s == pytest.approx(10 * STEP_S)
    assert train.stop_s - train.start_s == pytest.approx(10 * STEP_S + 2 * PAUSE_S)
    assert training(lines) == train.reading
    assert set(train.quality) == {"loss"}
    metrics = done.evaluate()  # after the training: no window, but its quality
    assert [line.name for line in read_windows(path)] == [line.name for line in lines]
    assert read_windows(path)[0].quality == {"loss": pytest.approx(metrics["eval_loss"])}


def test_transformers_an_evaluation_that_nobody_announced_marks_the_window(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Sudden(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_evaluate = state.global_step == 2

    callback = callbacks.huggingface(energy="off", quiet=True)
    late = trainer(callback, tmp_path)
    late.add_callback(Sudden())  # after ours, so we cannot see it coming
    late.train()
    assert callback.training.window.line.error == callbacks.UNANNOUNCED


def test_transformers_a_training_that_breaks_is_marked_when_the_next_one_begins(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Break(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                raise ValueError("mine")

    callback = callbacks.huggingface(energy="off", quiet=True)
    broken = trainer(callback, tmp_path)
    broken.add_callback(Break())
    with pytest.raises(ValueError, match="mine"):
        broken.train()
    first = callback.training.window
    trainer(callback, tmp_path, max_steps=1).train()
    assert (first.line.error, first.steps) == ("never closed", 1)
    assert (callback.training.window.line.error, callback.training.window.steps) == (None, 1)


# ── lightning ─────────────────────────────────────────────────────────────────────────────────────────────────


def module(flavour: str, fail_at: int = -1) -> tuple[Any, Any]:
    """(the library, a module that logs a loss and waits in its validation)"""
    import importlib

    library = importlib.import_module(flavour)

    class Line(library.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == fail_at:
                raise ValueError("mine")
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch: Any, index: int) -> None:
            TIME.sleep(PAUSE_S / 5)
            self.log("accuracy", 0.75)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return library, Line()


def vectors() -> Any:
    data = torch.utils.data.TensorDataset(torch.randn(SAMPLES, 3))
    return torch.utils.data.DataLoader(data, batch_size=BATCH)


def fit(flavour: str, callback: Any, fail_at: int = -1, **settings: Any) -> None:
    library, line = module(flavour, fail_at)
    given: dict[str, Any] = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    library.Trainer(callbacks=[callback], **given | settings).fit(line, vectors(), vectors())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "expected"), [({}, 10), ({"accumulate_grad_batches": 2}, 6), ({"max_steps": 3, "max_epochs": -1}, 3)]
)
def test_lightnings_steps_are_the_optimizers_updates_and_validation_is_excluded(
    tmp_path: Path, updates: list[int], settings: dict[str, Any], expected: int
) -> None:
    path = tmp_path / "record.json"
    fit("lightning.pytorch", callbacks.lightning(energy="off", quiet=True, record=path), **settings)
    train, *evaluations = read(path, WindowsFile).windows
    assert (train.name, train.steps, len(updates)) == ("train", expected, expected)
    assert all(line.name == "evaluate" and line.wall_s == pytest.approx(PAUSE_S) for line in evaluations)
    assert len(evaluations) == (0 if "max_steps" in settings else 2)  # the sanity check before is in no window
    assert train.wall_s == pytest.approx(expected * STEP_S)
    assert train.stop_s - train.start_s == pytest.approx(expected * STEP_S + len(evaluations) * PAUSE_S)
    assert train.quality == ({} if "max_steps" in settings else {"accuracy": 0.75})
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.filterwarnings("ignore")
def test_lightning_an_exception_closes_and_marks_the_window() -> None:
    callback = callbacks.lightning(energy="off", quiet=True)
    with pytest.raises(ValueError, match="mine"):
        fit("lightning.pytorch", callback, fail_at=3)
    assert (callback.training.window.line.error, callback.training.window.steps) == ("ValueError", 3)


# ── keras ─────────────────────────────────────────────────────────────────────────────────────────────────────


def keras_fit(callback: Any, accumulate: int | None = None, **settings: Any) -> Any:
    import keras

    class Wait(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            TIME.sleep(STEP_S)

        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
            TIME.sleep(PAUSE_S / 5)

    x = np.random.default_rng(1).normal(size=(SAMPLES, 3)).astype("float32")
    model = keras.Sequential([keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=accumulate)
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    given: dict[str, Any] = {"epochs": 2, "batch_size": BATCH, "verbose": 0, "validation_data": (x, x[:, :1])}
    model.fit(x, x[:, :1], callbacks=[callback, Wait()], **given | settings)
    return model


@pytest.mark.parametrize(("accumulate", "expected"), [(None, 10), (2, 5)])
def test_keras_steps_are_the_optimizers_updates_and_validation_is_excluded(
    tmp_path: Path, accumulate: int | None, expected: int
) -> None:
    path = tmp_path / "record.json"
    callback = callbacks.keras(energy="off", quiet=True, record=path)
    model = keras_fit(callback, accumulate)
    train, *evaluations = read(path, WindowsFile).windows
    assert train.steps == expected == int(model.optimizer.iterations)
    assert [line.name for line in evaluations] == ["evaluate", "evaluate"]
    assert [line.wall_s for line in evaluations] == pytest.approx([PAUSE_S] * 2)
    assert train.wall_s == pytest.approx(10 * STEP_S)  # of every batch, whether it ends in an update or not
    assert train.stop_s - train.start_s == pytest.approx(10 * STEP_S + 2 * PAUSE_S)
    assert set(train.quality) == {"loss", "mae"}
    keras_before = callback.training.window
    model.evaluate(np.ones((4, 3)), np.ones((4, 1)), callbacks=[callback], verbose=0)  # no training: no window
    assert callback.training.window is keras_before
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_second_fit_counts_its_own_updates() -> None:
    callback = callbacks.keras(energy="off", quiet=True)
    model = keras_fit(callback, epochs=1)
    model.fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=4, epochs=3, verbose=0, callbacks=[callback])
    assert callback.training.window.steps == 6


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(UsageError, match="E643") as caught:
        callbacks.keras()
    assert "energybench[keras]" in caught.value.problems[0].hint


def test_the_old_name_of_a_callbacks_window_works_for_one_version_with_a_warning() -> None:
    training = callbacks.TrainingWindow("train", {"energy": "off"})
    callback = callbacks._with(type("Callback", (), {}), training)
    with pytest.warns(DeprecationWarning, match=r"callback\.training"):
        assert callback.marks is callback.training is training
