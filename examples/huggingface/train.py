"""A Hugging Face Trainer script that knows nothing of energybench: a tiny GPT-2 with random weights, generated text.

With --freeze N the embeddings and the lowest N layers keep their initial weights: no backward runs through them.
Nothing is downloaded.
"""

import argparse
import json
import random
import sys
import tempfile

# Text needs no torchvision, and one that was built for another torch would stop transformers from being imported.
sys.modules["torchvision"] = None

import torch  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--freeze", type=int, default=0)
arguments = parser.parse_args()


def sentences(count: int, seed: int, length: int = 64) -> list[dict[str, torch.Tensor]]:
    """Counting up and down in steps of one to five, modulo 64: there is something to learn."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        start, step = chance.randrange(64), chance.choice([-5, -3, -2, -1, 1, 2, 3, 5])
        tokens = torch.tensor([(start + step * place) % 64 for place in range(length)])
        found.append({"input_ids": tokens, "labels": tokens})
    return found


set_seed(arguments.seed)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=96, n_layer=4, n_head=4))
if arguments.freeze:
    frozen = [model.transformer.wte, model.transformer.wpe, *model.transformer.h[: arguments.freeze]]
    for parameter in (p for module in frozen for p in module.parameters()):
        parameter.requires_grad_(False)

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            seed=arguments.seed,
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=sentences(512, arguments.seed),
        eval_dataset=sentences(64, arguments.seed + 1_000_003),
    )
    trainer.train()
    print(json.dumps({"eval_loss": trainer.evaluate()["eval_loss"]}))
