"""A training loop in the manner of nanoGPT: settings are globals, overridden by a file and by --key=value; the last
checkpoint lies in `out_dir`, and a line for each evaluation goes to stdout.

    python train.py config/tiny.py --max_iters=50

A character-level model of a few sums, trained in PyTorch. It knows nothing of energybench.
"""

import math
import os
import sys
import time
from ast import literal_eval
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

# ── settings, which a file and the command line override ──
out_dir = "out"
init_from = "scratch"  # or "resume"
eval_interval = 25
max_iters = 200
batch_size = 16
block_size = 32
n_layer, n_head, n_embd = 2, 2, 64
dropout = 0.0
learning_rate = 1e-3
warmup_iters = 10
seed = 1337
frozen_embeddings = False
for argument in sys.argv[1:]:
    if argument.startswith("--"):
        key, _, value = argument[2:].partition("=")
        assert key in globals(), f"unknown setting: {key}"
        try:
            globals()[key] = literal_eval(value)
        except (SyntaxError, ValueError):
            globals()[key] = value
    else:
        exec(Path(argument).read_text())
# ──────────────────────────────────────────────────────────

torch.manual_seed(seed)
text = "".join(f"{a}+{b}={a + b};" for a in range(40) for b in range(40))
letters = sorted(set(text))
data = torch.tensor([letters.index(letter) for letter in text])
train_data, val_data = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv, self.out = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, n_head, c // n_head).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, 2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout if self.training else 0)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(letters), n_embd), nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*(Block() for _ in range(n_layer)))
        self.head = nn.Sequential(nn.LayerNorm(n_embd), nn.Linear(n_embd, len(letters)))

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(self.tokens(x) + self.places(torch.arange(x.shape[1])))
        return functional.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten())


def get_batch(split: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(split) - block_size - 1, (batch_size,))
    return (
        torch.stack([split[start : start + block_size] for start in starts]),
        torch.stack([split[start + 1 : start + block_size + 1] for start in starts]),
    )


@torch.no_grad()
def estimate_loss(model: nn.Module, split: torch.Tensor) -> float:
    model.eval()
    loss = sum(model(*get_batch(split)).item() for _ in range(5)) / 5
    model.train()
    return loss


os.makedirs(out_dir, exist_ok=True)
checkpoint_path = os.path.join(out_dir, "ckpt.pt")
model, iter_num = GPT(), 0
if frozen_embeddings:
    model.tokens.requires_grad_(False)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
if init_from == "resume" and os.path.exists(checkpoint_path):
    checkpoint = torch.load(checkpoint_path)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    iter_num = checkpoint["iter_num"]
    print(f"Resuming training from {out_dir} at iteration {iter_num}")

began = time.time()
while True:
    if iter_num % eval_interval == 0 or iter_num >= max_iters:
        losses = estimate_loss(model, train_data), estimate_loss(model, val_data)
        print(f"step {iter_num}: train loss {losses[0]:.4f}, val loss {losses[1]:.4f}", flush=True)
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": iter_num}, checkpoint_path
        )
    if iter_num >= max_iters:
        break
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * min(1.0, (iter_num + 1) / warmup_iters) * (1 + math.cos(iter_num / max_iters)) / 2
    loss = model(*get_batch(train_data))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    iter_num += 1
print(f"iter {iter_num}: {1000 * (time.time() - began) / max(1, max_iters):.2f}ms per iteration", file=sys.stderr)
