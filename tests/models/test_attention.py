"""Attention against written-out sums, and the wall between documents of a packed sequence."""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core import kernels
from ava_core.models import EnhancedMoEConfig
from ava_core.models.attention import Attention, attend
from ava_core.models.rope import RotaryEmbedding, rotate

DOCUMENTS = torch.tensor([[0] * 7 + [1] * 12 + [2] * 5, [3] * 11 + [4] * 1 + [5] * 12])
# The implementations that `attend` chooses from, each with a type and a mode in which it is chosen.
FUSED = ("fused", torch.float32, True)
FUSED_HALF = ("fused", torch.bfloat16, False)
PRODUCTS = ("products", torch.bfloat16, True)
NATIVE = ("native", torch.bfloat16, True)
every_path = pytest.mark.parametrize("path", [FUSED, FUSED_HALF, PRODUCTS, NATIVE], ids=lambda path: path[0])
every_differentiable_path = pytest.mark.parametrize("path", [FUSED, PRODUCTS, NATIVE], ids=lambda path: path[0])


@contextmanager
def through(path):
    """Let `attend` take that implementation whatever this machine's CPU would make it choose."""
    name, _, trained = path
    if name == "native" and kernels.library.loaded() is None:
        pytest.skip("the native kernels don't run on this machine")
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(trained):
        patch.setenv("AVA_KERNELS", "native" if name == "native" else "off")
        yield


def document_mask(documents_BS):
    S = documents_BS.shape[1]
    causal = torch.ones(S, S, dtype=torch.bool).tril()
    return (causal & (documents_BS[:, :, None] == documents_BS[:, None, :]))[:, None]


def beginning_mask(documents_BS):
    """Where each document begins, at each of its positions."""
    begins = [[row.index(document) for document in row] for row in documents_BS.tolist()]
    return torch.tensor(begins)


def make_attention(dtype=torch.float32, **fields):
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    layer = Attention(EnhancedMoEConfig(**{**shape, **fields}), layer_idx=0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer.to(dtype), RotaryEmbedding(EnhancedMoEConfig(**{**shape, **fields}))


def written_out(q, k, v, mask):
    """Softmax attention as its definition reads, in float64, one query at a time."""
    B, H, S, A = q.shape
    out = torch.zeros(B, H, S, A, dtype=torch.float64)
    q, k, v = q.double(), k.double(), v.double()
    for b in range(B):
        for h in range(H):
            g = h * k.shape[1] // H
            for s in range(S):
                seen = [t for t in range(k.shape[2]) if (mask[b, 0, s, t] if mask is not None else t <= s)]
                scores = torch.stack([q[b, h, s] @ k[b, g, t] / math.sqrt(A) for t in seen])
                out[b, h, s] = sum(p * v[b, g, t] for p, t in zip(scores.softmax(0), seen, strict=True))
    return out


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 3),
    length=st.integers(1, 6),
    documents=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    masked=st.sampled_from([None, "dense", "beginnings"]),
)
@every_path
def test_attention_is_what_its_definition_says(path, batch, groups, repeats, length, documents, masked):
    generator = torch.Generator().manual_seed(length)
    _, dtype, trained = path
    q, k, v = (
        torch.randn(batch, heads, length, 4, generator=generator).to(dtype).requires_grad_(trained)
        for heads in (groups * repeats, groups, groups)
    )
    if masked == "beginnings":  # documents of neighbours
        documents = sorted(documents)
    ids = torch.tensor([documents[:length]] * batch)
    mask = document_mask(ids) if masked else None
    with through(path):
        out = attend(q, k, v, beginning_mask(ids) if masked == "beginnings" else mask)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(
        out.detach().double(), written_out(q.detach(), k.detach(), v.detach(), mask), **tolerance
    )


@every_path
def test_one_query_looks_at_the_whole_cache(path):
    _, dtype, trained = path
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 4).to(dtype) for heads, length in ((4, 1), (2, 9), (2, 9)))
    with through(path):
        out = attend(q.requires_grad_(trained), k, v, None)
    everything = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    torch.testing.assert_close(out.detach().double(), written_out(q.detach(), k, v, everything), rtol=0.05, atol=0.05)


@every_path
def test_changing_one_document_changes_no_bit_of_another(path):
    layer, rotary = make_attention(path[1])
    x = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(1)).to(path[1])
    angles = rotary(torch.arange(24)[None])
    with through(path):
        before = layer(x, angles, beginning_mask(DOCUMENTS))
        for document in range(6):
            inside = DOCUMENTS.eq(document)
            changed = torch.where(inside[..., None], 30 * torch.randn(2, 24, 32).to(path[1]), x)
            after = layer(changed, angles, beginning_mask(DOCUMENTS))
            assert torch.equal(after[~inside], before[~inside])
            assert (after[inside] != before[inside]).any()


@every_path
def test_wall_holds_where_whole_blocks_of_a_kernel_are_masked(path):
    # PyTorch's kernel takes 512 keys at a time: the second document's queries see nothing of the first block.
    documents = torch.tensor([[0] * 520 + [1] * 90])
    q, k, v = (torch.randn(1, 2, 610, 8, generator=torch.Generator().manual_seed(i)).to(path[1]) for i in range(3))
    q.requires_grad_(path[2])
    mask = beginning_mask(documents)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, :520], changed_v[:, :, :520] = 40.0, -1e4
    with through(path):
        before, after = attend(q, k, v, mask), attend(q, changed_k, changed_v, mask)
    assert torch.equal(after[:, :, 520:], before[:, :, 520:])
    assert after.isfinite().all() and (after[:, :, :520] != before[:, :, :520]).any()


@every_differentiable_path
def test_no_gradient_crosses_from_one_document_to_another(path):
    layer, rotary = make_attention(path[1])
    x = (10 * torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(1))).to(path[1]).requires_grad_()
    with through(path):
        out = layer(x, rotary(torch.arange(24)[None]), beginning_mask(DOCUMENTS))
    for document in range(6):
        inside = DOCUMENTS.eq(document)
        (gradient,) = torch.autograd.grad(out[inside].float().square().sum(), x, retain_graph=True)
        assert (gradient[~inside] == 0).all()
        assert (gradient[inside] != 0).any(dim=-1).all()


@every_differentiable_path
def test_whole_model_lets_no_gradient_cross_documents(make_model, path):
    # The routers' own losses are about all tokens of a batch, so that their gradients are everywhere.
    model = make_model(balance_loss_weight=0.0, router_z_loss_weight=0.0).to(path[1]).train()
    x = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(1)).to(path[1]).requires_grad_()
    with through(path):
        logits = model(inputs_embeds=x, document_ids=DOCUMENTS).logits
    for document in range(6):
        inside = DOCUMENTS.eq(document)
        (gradient,) = torch.autograd.grad(logits[inside].float().square().sum(), x, retain_graph=True)
        assert (gradient[~inside] == 0).all()
        assert (gradient[inside] != 0).any()


def test_norm_over_the_projection_mixes_heads_and_norm_per_head_does_not():
    for kind, alone in (("head", True), ("projection", False)):
        layer, rotary = make_attention(qk_norm=kind)
        x = torch.randn(1, 9, 32)
        seen = []
        layer.o_proj = torch.nn.Identity()  # leaves the heads' outputs side by side
        for scale in (1.0, 5.0):
            with torch.no_grad():
                layer.q_proj.weight[8:16] *= scale  # the second head's queries
            seen.append(layer(x, rotary(torch.arange(9)[None])).view(9, 4, 8))
        # A norm of its own undoes the scale of the second head; a shared one lowers the others' share.
        assert torch.allclose(seen[0][:, [0, 2, 3]], seen[1][:, [0, 2, 3]], atol=1e-6) == alone
        assert torch.allclose(seen[0][:, 1], seen[1][:, 1], atol=1e-4) == alone


@pytest.mark.parametrize("kind, queries, keys", [("head", 8, 8), ("projection", 32, 16)])
def test_qk_norms_are_as_wide_as_what_they_normalise(kind, queries, keys):
    layer, _ = make_attention(qk_norm=kind)
    assert layer.q_norm.weight.shape == (queries,) and layer.k_norm.weight.shape == (keys,)
    assert "norm" not in "".join(make_attention(qk_norm="none")[0].state_dict())


def test_scores_depend_on_the_distance_of_positions_only():
    _, rotary = make_attention()
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i, j):
        return (rotate(q, *rotary(torch.tensor([[i]]))) * rotate(k, *rotary(torch.tensor([[j]])))).sum()

    torch.testing.assert_close(score(3, 10), score(103, 110), rtol=1e-4, atol=1e-5)
    assert (score(3, 10) - score(3, 11)).abs() > 1e-3
