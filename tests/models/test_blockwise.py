"""Attention in blocks: numbers and gradients of the whole, and memory that doesn't grow with the sequence's square."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from ava_core import kernels
from ava_core.models import blockwise
from ava_core.models.blockwise import attend_by_products, attend_fused
from ava_core.models.masks import dense_mask, layer_masks

BLOCKS = {"QUERIES": (16, 16), "FUSED_QUERIES": 16, "SCORES": 2 * 4 * 16 * 70}
S = 70


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in BLOCKS.items():
        monkeypatch.setattr(blockwise, name, value)


def heads(batch=3, dtype=torch.float32):
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, S, h, 8, dtype=dtype).transpose(1, 2).requires_grad_() for h in (4, 2, 2))
    return q, k, v


def beginnings(rows):
    """Documents, padding and a window of 30, of each of `rows` sequences."""
    documents = torch.tensor([[0] * 20 + [20] * 50, [S] * 33 + [33] * 37, [0] * 3 + [3] * 60 + [63] * 7])[:rows]
    return torch.maximum(documents, torch.arange(S) - 29)


MASKS = {
    "causal": None,
    "one for all": beginnings(1),
    "one each": beginnings(3),
    "dense": dense_mask(beginnings(3), 0, 0, S),
}


WAYS = [(way, mask) for way in (attend_by_products, attend_fused) for mask in MASKS]
OF_TORCH = [(attend_fused, "causal"), (attend_fused, "dense")]
"""Taken whole by PyTorch's own attention."""


@pytest.mark.parametrize(("way", "mask"), [each for each in WAYS if each not in OF_TORCH])
def test_blocks_and_their_gradients_are_those_of_the_whole(way, mask, small_blocks):
    mask = MASKS[mask]
    q, k, v = heads()
    out = way(q, k, v, mask)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), grad)
    dense = torch.ones(S, S, dtype=torch.bool).tril() if mask is None else mask
    if dense.dim() == 2 and mask is not None:
        dense = dense_mask(dense, 0, 0, S)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_sums_over_blocks_are_not_rounded_to_bfloat16(small_blocks):
    exact, low = heads(), [t.detach().bfloat16().requires_grad_() for t in heads()]
    out = attend_by_products(*exact, None)
    grad = torch.randn_like(out)
    references = torch.autograd.grad(out, exact, grad)
    gradients = torch.autograd.grad(attend_by_products(*low, None), low, grad.bfloat16())
    for found, expected in zip(gradients, references, strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_without_autograd_blocks_are_the_same(small_blocks):
    q, k, v = heads()
    expected = attend_fused(q, k, v, beginnings(3))
    with torch.no_grad():
        assert torch.equal(attend_fused(q, k, v, beginnings(3)), expected)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1] * 6], None),
        ([[1] * 4 + [0] * 2], None),  # padding on the right is behind all tokens
        ([[0, 0, 1, 1, 1, 1], [1] * 6], [[6, 6, 2, 2, 2, 2], [0] * 6]),
        ([[0, 1, 1, 1, 0, 0]], [[6, 1, 1, 1, 1, 1]]),
    ],
)
def test_padding_at_the_ends_needs_no_dense_mask(model, rows, expected):
    mask = torch.tensor(rows)
    (found,) = {id(m): m for m in masks_of(model, mask)}.values()
    assert (found if found is None else found.tolist()) == expected


def test_padding_between_tokens_hides_just_that(model):
    found = masks_of(model, torch.tensor([[1, 0, 1, 1, 0, 1]]))[0]
    assert found[0, 0, 5].tolist() == [True, False, True, True, False, True]
    assert found[0, 0, 4].tolist() == [True, False, True, True, False, False]


def masks_of(model, attention_mask):
    B, S = attention_mask.shape
    embeds, positions = torch.zeros(B, S, model.config.hidden_size), torch.arange(S)[None]
    return layer_masks(model.config, embeds, attention_mask, None, positions, None)


PEAK = """
import sys
import torch
from pathlib import Path
from ava_core.models.attention import attend
from ava_core.models import EnhancedMoEConfig
from ava_core.models.masks import layer_masks

length, dtype, trained = int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3] == "trained"
torch.set_num_threads(1)

def run(S, masked):
    config = EnhancedMoEConfig(hidden_size=32, num_layers=1, sliding_window=S // 2 if masked else None)
    q, k, v = (torch.randn(1, heads, S, 8, dtype=dtype).requires_grad_(trained) for heads in (2, 1, 1))
    positions = torch.arange(S)[None]
    documents = (positions >= S // 3).long() if masked else None
    padding = (positions >= 9).long() if masked else None
    (mask,) = layer_masks(config, torch.zeros(1, S, 32), padding, None, positions, documents)
    assert (mask is not None) == masked
    out = attend(q, k, v, mask)
    if trained:
        out.sum().backward()

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

run(600, True)
before = peak()
for masked in (False, True):
    run(length, masked)
    print(peak() - before)
"""
LONG = 12_288
"""Positions; a byte for each pair of them are 144 MiB, and heads or wider types multiply that. Blocks take a third."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["trained", "evaluated"])
@pytest.mark.parametrize("path", ["float32", "off", "native"])
def test_memory_of_attention_does_not_grow_with_the_square_of_the_sequence(path, mode):
    if path == "native" and kernels.library.loaded() is None:
        pytest.skip("the native kernels don't run on this machine")
    dtype = path if path == "float32" else "bfloat16"
    environment = os.environ | {"AVA_KERNELS": "off" if dtype == path else path}
    command = [sys.executable, "-c", PEAK, str(LONG), dtype, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    plain, masked = map(int, done.stdout.split())
    assert max(plain, masked) < 0.75 * LONG**2, done.stdout


@pytest.mark.slow
def test_blocks_compile_into_one_graph(small_blocks):
    q, k, v = heads()
    compiled = torch.compile(attend_fused, backend="aot_eager", fullgraph=True)
    found, expected = (attend(q, k, v, beginnings(3)) for attend in (compiled, attend_fused))
    grad = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(out, (q, k, v), grad) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
