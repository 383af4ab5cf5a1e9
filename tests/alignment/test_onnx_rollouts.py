"""Rollouts by Ava's own decoder of rounded weights: what it noted is what it computes, and is corrected for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ava_core.alignment.onnx_player import OnnxPlayer
from ava_core.alignment.policy_objective import GroupRelativePolicy
from ava_core.config.grpo import GrpoConfig
from ava_core.errors import ConfigError
from ava_core.losses import IGNORE_INDEX
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.onnx.session import Experts

PROMPTS = [prompt for prompt in ([5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15]) for _ in range(6)]
END = 200  # what the tiny model says most


def config(**settings) -> GrpoConfig:
    return GrpoConfig(**{"max_new_tokens": 12, "rollout": "onnx", **settings})


@pytest.fixture
def model(tiny_model):
    found, _ = load_pretrained(EnhancedMoEForCausalLM, tiny_model)
    return found.eval()


@pytest.fixture
def player(model):
    return OnnxPlayer(model, [END], config())


def answers_of(batch) -> list[list[int]]:
    return [[label for label in row if label != IGNORE_INDEX] for row in batch.labels.tolist()]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_noted_is_what_the_decoder_gives_whole_answers(model, temperature):
    """Each by itself, from its first token to its last: no row was taken for another when some had ended."""
    player = OnnxPlayer(model, [END], config(temperature=temperature))
    batch, decoder = player.play(PROMPTS, 5, 0), player.decoder()
    lengths = set()
    for prompt, answer, labels, sampled in zip(PROMPTS, answers_of(batch), batch.labels, batch.sampled, strict=True):
        logits = decoder.run(np.array([[*prompt, *answer[:-1]]]), decoder.cache(1, 32), all_logits=True)[0]
        log_probs = torch.from_numpy(logits[len(prompt) - 1 :] / temperature).log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(sampled[labels != IGNORE_INDEX], expected, rtol=1e-3, atol=1e-3)
        lengths.add(len(answer))
    assert len(lengths) > 3


def test_labels_are_the_answers_up_to_their_ends(player):
    batch = player.play(PROMPTS, 5, 0)
    rows = zip(PROMPTS, answers_of(batch), batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True)
    for prompt, answer, inputs, mask in rows:
        assert END not in answer[:-1] and 0 not in answer[:-1] and (len(answer) == 12 or answer[-1] in (END, 0))
        assert [token for token, seen in zip(inputs, mask, strict=True) if seen] == [*prompt, *answer[:-1]]


def test_answers_follow_the_seed_and_the_present_weights(model, player):
    first, again, other = player.play(PROMPTS, 5, 3), player.play(PROMPTS, 5, 3), player.play(PROMPTS, 5, 4)
    for name in ("input_ids", "labels", "sampled", "expert_ids", "used"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert answers_of(first) != answers_of(other)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(-3)
    swapped, fresh = player.play(PROMPTS, 5, 3), OnnxPlayer(model, [END], config()).play(PROMPTS, 5, 3)
    assert answers_of(swapped) == answers_of(fresh) != answers_of(first)


def test_replayed_routes_are_those_that_the_decoder_took(model, player):
    batch, decoder = player.play(PROMPTS, 5, 0), player.decoder()
    seen = batch.attention_mask.bool()
    assert not batch.used[~seen].any() and batch.used[seen].any(-1).all()
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers_of(batch), strict=True)):
        experts = Experts()
        decoder.run(np.array([[*prompt, *answer[:-1]]]), decoder.cache(1, 32), all_logits=True, experts=experts)
        taken = torch.zeros(experts.weights[:, 0].shape, dtype=torch.bool)
        ids, used = (part[row][seen[row]].transpose(0, 1) for part in (batch.expert_ids, batch.used))
        taken.scatter_(2, ids, used)
        assert torch.equal(taken, torch.from_numpy(experts.weights[:, 0] > 0))
    with torch.no_grad():
        output = model(batch.input_ids, attention_mask=batch.attention_mask, routes=batch.routes)
    log_probs = batch.label_log_probs(output.logits, 1.0)
    present = batch.labels != IGNORE_INDEX
    # Rounding to int8 is all that is between the two.
    assert float((log_probs - batch.sampled)[present].abs().mean()) < 0.05
    assert not OnnxPlayer(model, [END], config(replay=False)).play(PROMPTS, 5, 0).routes


@pytest.mark.parametrize("cap", [0.8, 2.0])
def test_each_token_has_the_weight_of_its_probability_by_the_model_over_that_when_it_was_drawn(player, cap):
    settings = config(importance_cap=cap, beta=0.0)
    batch = player.play(PROMPTS, 5, 0)
    batch = replace(batch, advantages=torch.linspace(-1, 1, len(PROMPTS)))
    torch.manual_seed(0)
    logits = torch.randn(*batch.input_ids.shape, 384, requires_grad=True)
    batch = replace(batch, sampled=batch.label_log_probs(logits.detach(), 1.0) + 0.6 * torch.randn(batch.labels.shape))
    judged = GroupRelativePolicy(settings).judge(logits, batch)
    judged["train_loss"].backward()
    present = batch.labels != IGNORE_INDEX
    log_probs = batch.label_log_probs(logits.detach().requires_grad_(), 1.0)
    weights = (log_probs.detach() - batch.sampled).exp().clamp(max=cap)
    other = logits.detach().requires_grad_()
    gains = weights * batch.advantages[:, None] * batch.label_log_probs(other, 1.0)
    (-gains[present].mean()).backward()
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-4, atol=1e-7)
    clipped = (batch.label_log_probs(logits.detach(), 1.0) - batch.sampled).exp()[present] > cap
    assert float(judged["clipped"]) == pytest.approx(float(clipped.float().mean())) and 0 < clipped.float().mean() < 1


def test_model_that_the_graph_can_not_have_is_refused_before_the_first_step(tiny_model):
    found, _ = load_pretrained(EnhancedMoEForCausalLM, tiny_model)
    other = EnhancedMoEForCausalLM(EnhancedMoEConfig(**{**found.config.to_dict(), "head_dim": 24}))
    message = r"^grpo.rollout = onnx: model.head_dim = 24: .*multiples of 16.*; or set grpo.rollout = generate$"
    with pytest.raises(ConfigError, match=message):
        OnnxPlayer(other, [END], config())
