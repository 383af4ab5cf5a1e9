"""Rollouts: what was sampled is what is trained, by token, probability and expert; what rewards make of it."""

import numpy as np
import pytest
import torch

from ava_core.alignment.conversation import Message
from ava_core.alignment.player import Player
from ava_core.alignment.policy_objective import GroupRelativePolicy
from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.alignment.rollouts import RolloutBatches, advantages_of, texts_of
from ava_core.config.grpo import GrpoConfig
from ava_core.config.rewards import RewardEntry
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError
from ava_core.losses import IGNORE_INDEX
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15]]


END = 200  # what the tiny model says most


def config(**settings) -> GrpoConfig:
    return GrpoConfig(
        **{"max_new_tokens": 12, "group_size": 2, "global_batch_size": 8, "micro_batch_size": 8, **settings}
    )


@pytest.fixture
def model(tiny_model):
    found, _ = load_pretrained(EnhancedMoEForCausalLM, tiny_model)
    return found.eval()


def logits_of(model, batch):
    with torch.no_grad():
        return model(batch.input_ids, attention_mask=batch.attention_mask, routes=batch.routes).logits


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("replay", [True, False])
def test_noted_probabilities_are_those_of_the_training_pass(model, replay, temperature):
    batch = Player(model, [END], config(replay=replay, temperature=temperature)).play(PROMPTS, 5, 0)
    found = batch.label_log_probs(logits_of(model, batch), temperature)
    torch.testing.assert_close(found, batch.sampled, rtol=1e-4, atol=1e-4)
    judged = GroupRelativePolicy(config(temperature=temperature)).judge(logits_of(model, batch), batch)
    assert abs(float(judged["rollout_kl"])) < 1e-6 and judged["clipped"] == 0


def test_labels_are_the_answers_up_to_their_ends(model):
    batch = Player(model, [END], config()).play(PROMPTS * 8, 5, 0)
    rows = batch.labels.tolist()
    lengths = [sum(label != IGNORE_INDEX for label in row) for row in rows]
    assert max(lengths) == 12 and min(lengths) < 12
    for prompt, row, inputs, mask in zip(
        PROMPTS * 8, rows, batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True
    ):
        answer = [label for label in row if label != IGNORE_INDEX]
        assert END not in answer[:-1] and 0 not in answer[:-1] and (len(answer) == 12 or answer[-1] in (END, 0))
        read = [token for token, seen in zip(inputs, mask, strict=True) if seen]
        assert read == [*prompt, *answer][: len(read)] and len(read) >= len(prompt) + len(answer) - 1


def test_replayed_routes_are_the_rollouts(model):
    """Other weights in training: without replay tokens take other experts, with it the ones that they took."""
    batch = Player(model, [END], config()).play(PROMPTS, 5, 0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.moe.gate.weight.add_(torch.randn_like(layer.moe.gate.weight))
        seen = batch.attention_mask.flatten().bool()
        for routes, expected in (
            (batch.routes, True),
            (None, False),
        ):
            output = model(batch.input_ids, attention_mask=batch.attention_mask, routes=routes, output_routes=True)
            same = all(
                torch.equal(taken.expert_ids_TK[seen], noted.expert_ids_TK[seen])
                for taken, noted in zip(output.routes, batch.routes, strict=True)
            )
            assert same == expected


def test_micro_batches_have_their_rows_of_everything(model):
    batch = Player(model, [END], config()).play(PROMPTS, 5, 0)
    parts = batch.split(2)
    whole = logits_of(model, batch)
    for number, part in enumerate(parts):
        torch.testing.assert_close(logits_of(model, part), whole[2 * number : 2 * number + 2], rtol=1e-4, atol=1e-4)


def test_same_seed_gives_the_same_answers_and_leaves_the_random_state(model):
    player = Player(model, [END], config())
    state = torch.get_rng_state()
    first, again, other = (player.play(PROMPTS, 5, seed).input_ids for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_advantages_are_by_group_and_0_where_all_are_alike():
    rewards = np.array([1.0, 0.0, 0.5, 0.5, 0.2, 0.8])
    found, alike = advantages_of(rewards, 2, "none")
    assert alike == 1 and found.tolist() == pytest.approx([0.5, -0.5, 0, 0, -0.3, 0.3])
    scaled, _ = advantages_of(rewards, 2, "group")
    assert scaled[[0, 4]] == pytest.approx(np.array([0.7070, -0.7069]), abs=1e-3) and (scaled[2:4] == 0).all()
    thirds, alike = advantages_of(np.array([0.1] * 3), 3, "group")
    assert alike == 1 and (thirds == 0).all()


def test_objective_is_that_of_the_papers(model):
    """Token by token, by hand: ratio, clip, advantage, and the divergence from a reference."""
    settings = config(beta=0.3, clip=0.1)
    batch = Player(model, [END], settings).play(PROMPTS, 5, 0)
    torch.manual_seed(0)
    logits = logits_of(model, batch) + 0.2 * torch.randn(*batch.input_ids.shape, model.config.vocab_size)
    from dataclasses import replace

    reference = batch.sampled + 0.1 * torch.randn_like(batch.sampled)
    batch = replace(batch, advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]), reference=reference)
    judged = GroupRelativePolicy(settings).judge(logits, batch)
    gains, kls = [], []
    for row in range(4):
        for place in range(batch.labels.shape[1]):
            label = int(batch.labels[row, place])
            if label == IGNORE_INDEX:
                continue
            now = float(logits[row, place].log_softmax(-1)[label])
            ratio, advantage = np.exp(now - float(batch.sampled[row, place])), float(batch.advantages[row])
            gains.append(min(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage))
            back = float(reference[row, place]) - now
            kls.append(np.exp(back) - 1 - back)
    assert float(judged["kl_to_start"]) == pytest.approx(np.mean(kls), rel=1e-4)
    assert float(judged["train_loss"]) == pytest.approx(-np.mean(gains) + 0.3 * np.mean(kls), rel=1e-4)


def batches(model, rewards=None, seed=0, **settings) -> RolloutBatches:
    asked = [Answer((Message("user", str(number)),), "") for number in range(len(PROMPTS))]
    chosen = rewards or [RewardEntry(function="tests.alignment.test_rollouts:shorter")]
    chosen = RewardSet.from_config(chosen)
    settings = config(**settings)
    found = RolloutBatches(
        PROMPTS, asked, chosen, lambda tokens: " ".join(map(str, tokens)), settings, seed, Ranks(0, 0, 1)
    )
    found.player = Player(model, [END], settings)
    return found


def shorter(answers):
    return [1 / (1 + len(answer.text.split())) for answer in answers]


def nan(answers):
    return [float("nan") for _ in answers]


def test_batch_is_a_function_of_the_step_and_says_what_was_rewarded(model):
    made = batches(model)
    first, again, second = made.batch(0), made.batch(0), made.batch(1)
    assert torch.equal(first.input_ids, again.input_ids) and torch.equal(first.advantages, again.advantages)
    assert not (first.input_ids.shape == second.input_ids.shape and torch.equal(first.input_ids, second.input_ids))
    assert len(first) == 8 and {"reward", "groups_alike", "answer_tokens", "ended_answers"} <= first.figures.keys()
    answers = texts_of(first, made.asked * 2, [END], made.decode)
    assert first.figures["reward"] == pytest.approx(np.mean(shorter(answers)))


def test_each_prompt_is_asked_once_in_a_pass(model):
    made = batches(model, global_batch_size=4, micro_batch_size=4)
    seen = []
    for step in range(2):
        batch = made.batch(step)
        for inputs, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            first = int((labels != IGNORE_INDEX).nonzero()[0]) + 1
            seen.append(tuple(inputs[:first][mask[:first].bool()].tolist()))
    assert sorted(seen) == sorted(tuple(prompt) for prompt in PROMPTS for _ in range(2))


def test_reward_that_gives_no_number_ends_the_training_by_name(model):
    with pytest.raises(AvaError, match=r"reward tests.alignment.test_rollouts:nan: value 1 = nan: must be finite"):
        batches(model, [RewardEntry(function="tests.alignment.test_rollouts:nan")]).batch(0)
