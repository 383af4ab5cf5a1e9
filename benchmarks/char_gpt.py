"""The baseline of the quality benchmark: a plain dense character-level GPT trained with AdamW, as on one page.

Sizes, rates and schedule are those of nanoGPT's CPU recipe (4 layers, 128 wide, context 64, batch 12, 2000 steps; no
dropout, float32). It knows nothing of Ava, so that a fault of ours can't flatter us.

Usage: python -m benchmarks.char_gpt TEXT [--steps 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
PEAK_RATE, LAST_RATE, WARMUP, BETAS, DECAY, CLIP = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1, 1.0


class Block(nn.Module):
    """Pre-norm attention and a GELU layer four times as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class CharGPT(nn.Module):
    """Embeddings of characters and positions, blocks, and a head that shares the embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


def encode(text: str, characters: str) -> Tensor:
    """Token id of each character: its index in `characters`."""
    numbers = {character: number for number, character in enumerate(characters)}
    return torch.tensor([numbers[character] for character in text])


def train(text: str, steps: int, seed: int) -> dict[str, float]:
    """Train on the first 90% of `text`, score the rest.

    Returns:
        bits_per_byte: of the last 10%, every byte scored once, in windows of CONTEXT that don't overlap.
        seconds: from the first step to the last; scoring_seconds: after that.
        tokens, parameters, steps.
    """
    torch.manual_seed(seed)
    cut = int(0.9 * len(text))
    characters = "".join(sorted(set(text)))
    training, validation = encode(text[:cut], characters), encode(text[cut:], characters)
    model = CharGPT(len(characters))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS)
    started = time.perf_counter()
    for step in range(steps):
        starts = torch.randint(len(training) - CONTEXT, (BATCH, 1))
        windows = training[starts + torch.arange(CONTEXT + 1)]
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    seconds = time.perf_counter() - started
    scoring = time.perf_counter()
    nats = score(model.eval(), training[-1:], validation)
    return {
        "bits_per_byte": nats / math.log(2) / len(text[cut:].encode()),
        "seconds": seconds,
        "scoring_seconds": time.perf_counter() - scoring,
        "tokens": steps * BATCH * CONTEXT,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
    }


def rate(step: int, steps: int) -> float:
    """Learning rate at a step: linear warm-up, then cosine decay."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return LAST_RATE + 0.5 * (1 + math.cos(math.pi * done)) * (PEAK_RATE - LAST_RATE)


@torch.no_grad()
def score(model: CharGPT, before: Tensor, text: Tensor) -> float:
    """Nats of `text`, each character once; the first of each window follows the last of the one before."""
    stream = torch.cat([before, text])
    total = 0.0
    for start in range(0, len(text), CONTEXT):
        window = stream[start : start + CONTEXT + 1]
        total += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum"))
    return total


def main() -> None:
    """Train once and print the figures as JSON."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.char_gpt", description=__doc__.split("\n")[0])
    flags.add_argument("text", type=Path)
    flags.add_argument("--steps", type=int, default=2000)
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()
    print(json.dumps(train(given.text.read_text(), given.steps, given.seed)))


if __name__ == "__main__":
    main()
