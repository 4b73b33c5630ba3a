"""A Trainer script that writes its checkpoints into one fixed folder, and goes on from the last one that lies there.

That is what many public scripts do, and what makes a second run of them a run of one step. The suite beside it gives
each trial a copy of this folder. A tiny GPT-2 with random weights; nothing is downloaded.
"""

import argparse
import os
import random
import sys

# Text needs no torchvision, and one that was built for another torch would stop transformers from being imported.
sys.modules["torchvision"] = None

import torch  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

OUTPUT = "output"

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--freeze", type=int, default=0, help="the lowest layers that keep their initial weights")
arguments = parser.parse_args()


def sentences(count: int, seed: int, length: int = 32) -> list[dict[str, torch.Tensor]]:
    """Counting up in steps of one to three, modulo 32: there is something to learn."""
    chance = random.Random(seed)
    rows = [[(chance.randrange(32) + step * place) % 32 for place in range(length)] for step in (1, 2, 3) * count]
    return [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in rows[:count]]


set_seed(arguments.seed)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=32, n_embd=64, n_layer=4, n_head=4))
for layer in model.transformer.h[: arguments.freeze]:
    layer.requires_grad_(False)

trainer = Trainer(
    model,
    TrainingArguments(
        OUTPUT,
        max_steps=arguments.steps,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        seed=arguments.seed,
        save_steps=max(1, arguments.steps),
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
    ),
    train_dataset=sentences(256, arguments.seed),
    eval_dataset=sentences(32, arguments.seed + 1_000_003),
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(OUTPUT) if os.path.isdir(OUTPUT) else None)
print({key: round(value, 4) for key, value in trainer.evaluate().items()})
