import torch
from torch.nn import functional as F

from ava_core import kernels
from ava_core.models import EnhancedMoEConfig
from ava_core.models.rope import RotaryEmbedding, rotate
from tests.kernels.conftest import assert_close, exact, random


def test_rms_norm_is_that_of_torch():
    for width in (384, 50):
        x, weight = random(60, width), random(width)
        out = kernels.rms_norm(x, weight, 1e-6)
        grad = torch.randn_like(out)
        out.backward(grad)
        exact_x, exact_weight = exact(x, weight)
        expected = F.rms_norm(exact_x, (width,), exact_weight, 1e-6)
        expected.backward(grad.float())
        assert_close(out, expected)
        assert_close(x.grad, exact_x.grad)
        assert_close(weight.grad, exact_weight.grad)


def test_heads_are_normed_and_rotated():
    cosines, sines = RotaryEmbedding(EnhancedMoEConfig(hidden_size=136, num_attention_heads=4))(
        torch.arange(9)[None] + 3
    )
    for weighted in (True, False):
        x, weight = random(2, 9, 3, 34), random(34)
        out = kernels.norm_rotate(x, weight if weighted else None, cosines, sines, 1e-6)
        grad = torch.randn_like(out)
        out.backward(grad)
        exact_x, exact_weight = exact(x, weight)
        normed = F.rms_norm(exact_x, (34,), exact_weight, 1e-6) if weighted else exact_x
        expected = rotate(normed.transpose(1, 2), cosines, sines)
        expected.backward(grad.float())
        assert_close(out, expected)
        assert_close(x.grad, exact_x.grad)
        if weighted:
            assert_close(weight.grad, exact_weight.grad)


def test_each_sequence_may_have_positions_of_its_own():
    rotary = RotaryEmbedding(EnhancedMoEConfig(hidden_size=128, num_attention_heads=4))
    positions = torch.tensor([[0, 1, 2], [7, 8, 9]])
    x = random(2, 3, 4, 32)
    together = kernels.norm_rotate(x, None, *rotary(positions), 1e-6)
    for i in range(2):
        own = slice(i, i + 1)
        assert torch.equal(together[own], kernels.norm_rotate(x[own], None, *rotary(positions[own]), 1e-6))


def test_zero_computation_experts_are_a_multiple_of_the_token_and_a_mix_of_constants():
    for C in (0, 3):
        base, x, constants = random(21, 38), random(21, 38), random(C, 38)
        scale, mix = torch.rand(21, requires_grad=True), torch.rand(21, C, requires_grad=True)
        out = kernels.zero_computation(base, x, scale, mix, constants if C else None)
        grad = torch.randn_like(out)
        out.backward(grad)
        exact_base, exact_x, exact_constants, exact_scale, exact_mix = exact(base, x, constants, scale, mix)
        expected = exact_base + exact_scale[:, None] * exact_x + exact_mix @ exact_constants
        expected.backward(grad.float())
        assert_close(out, expected)
        assert_close(base.grad, exact_base.grad)
        assert_close(x.grad, exact_x.grad)
        assert_close(scale.grad, exact_scale.grad, tolerance=1e-5)
        if C:
            assert_close(mix.grad, exact_mix.grad, tolerance=1e-5)
            assert_close(constants.grad, exact_constants.grad)


def test_cross_entropy_with_smoothing_and_z_loss():
    logits, labels = torch.randn(9, 1003) * 3, torch.randint(0, 1003, (9,))
    labels[3] = -100
    losses, normalisers, grad = kernels.cross_entropy_and_gradient(
        logits, labels, label_smoothing=0.1, z_weight=0.01, gradient=True
    )
    exact_logits = logits.clone().requires_grad_()
    expected = F.cross_entropy(exact_logits, labels, reduction="none", label_smoothing=0.1, ignore_index=-100)
    lse = exact_logits.logsumexp(-1) * (labels >= 0)
    (expected.sum() + 0.01 * lse.square().sum()).backward()
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(normalisers, lse.detach())
    assert_close(grad, exact_logits.grad)
    assert grad[3].eq(0).all()


def test_nan_among_the_logits_is_not_lost():
    logits = torch.zeros(2, 40)
    logits[0, 7] = torch.nan
    losses, *_ = kernels.cross_entropy_and_gradient(
        logits, torch.tensor([1, 1]), label_smoothing=0.0, z_weight=0.0, gradient=False
    )
    assert losses[0].isnan()
    assert losses[1].isfinite()
