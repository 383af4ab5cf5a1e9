"""GRPO: what is rewarded is learnt, a shuffled reward teaches nothing, and the same bytes after an interruption."""

import json
import random
import shutil
from dataclasses import replace
from functools import partial

import pytest

from ava_core.alignment.grpo import Prompts, RewardValidation
from ava_core.alignment.prepare_prompts import prepare_prompts
from ava_core.alignment.rewards.answer import Answer
from ava_core.config.grpo import GrpoConfig
from ava_core.config.prompts import PromptsConfig, PromptSource
from ava_core.data.tokenizer import CONFIG_FILE, load_tokenizer
from ava_core.errors import AvaError, ConfigError
from ava_core.launching.requests import decode, encode
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.training.request import TrainRequest
from tests.alignment.conftest import CHATML, shards_in, write_rows
from tests.alignment.trainings import assert_same_bytes_after_an_interruption, request_in, run
from tests.conftest import _finished

SETTINGS = {
    "steps": 25, "learning_rate": 0.01, "adam_learning_rate": 0.01, "evaluate_every": 5, "warmup_steps": 2,
    "global_batch_size": 32, "micro_batch_size": 16, "group_size": 8, "max_new_tokens": 12, "samples": 8,
    "rewards": [{"function": "tests.alignment.test_grpo:share_of_e"}],
}  # fmt: skip


def share_of_e(answers):
    return [answer.text.count("e") / max(len(answer.text), 1) for answer in answers]


def shuffled(answers):
    found = share_of_e(answers)
    random.Random(str([answer.text for answer in answers])).shuffle(found)
    return found


def constant(answers):
    return [0.5 for _ in answers]


def too_few(answers):
    return [1.0]


@pytest.fixture(scope="module")
def prompt_shards(chat_shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": f"{word} {number}"} for number in range(12) for word in ("king", "queen", "night", "ghost")]
    output = root / "prompts"
    source = PromptSource(path=str(write_rows(root / "rows.jsonl", rows)))
    shards_in(output, prepare_prompts, PromptsConfig(sources=[source], max_tokens=32), chat_shards)
    return output


@pytest.fixture(scope="module")
def make_request(tmp_path_factory, tiny_model, prompt_shards):
    root = tmp_path_factory.mktemp("requests")

    def make(name: str, **settings) -> TrainRequest:
        return request_in(root / name, "grpo", tiny_model, prompt_shards, {**SETTINGS, **settings})

    return make


@pytest.fixture(scope="module")
def rewarded(make_request):
    request = make_request("rewarded")
    return request.output, run(request)


def history(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_what_is_rewarded_is_learnt_on_prompts_that_were_not(rewarded):
    folder, figures = rewarded
    rows = history(folder)
    assert figures["sample_reward"] > 1.5 * figures["start_sample_reward"]
    assert figures["sample_wins"] > 0.6 and figures["kl_to_start"] > 0
    assert rows[-1]["validation_reward"] == -rows[-1]["validation_loss"] == figures["validation_reward"]
    assert rows[-1]["reward"] > 1.5 * rows[0]["reward"]
    assert {"rollout_kl", "clipped", "kl_to_start", "groups_alike", "answer_tokens"} <= rows[0].keys()
    told = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert sum(line["end"]["reward"] for line in told) / len(told) == pytest.approx(figures["sample_reward"])
    assert all(line["end"]["reward"] == share_of_e([Answer((), line["end"]["text"])])[0] for line in told)
    # Rounding is all that a replayed pass computes otherwise.
    assert abs(rows[0]["rollout_kl"]) < 1e-4


def test_rewarded_model_is_an_ordinary_model_folder(rewarded):
    model, report = load_pretrained(EnhancedMoEForCausalLM, rewarded[0])
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert len(model.generation_config.eos_token_id) == 2


def test_rollouts_end_at_the_token_of_a_template_that_goes_on_with_a_line_break(make_request, prompt_shards, tmp_path):
    shards = tmp_path / "chatml"
    shutil.copytree(prompt_shards, shards)
    settings = json.loads((shards / "tokenizer" / CONFIG_FILE).read_text())
    (shards / "tokenizer" / CONFIG_FILE).write_text(json.dumps({**settings, "chat_template": CHATML}))
    material = Prompts(replace(make_request("chatml"), shards=shards))
    end = load_tokenizer(shards / "tokenizer").convert_tokens_to_ids("<|end|>")
    assert material.stops == material.ends == (end,)
    assert set(material.compared().ends) == {end}


def test_shuffled_reward_teaches_nothing(make_request, rewarded):
    """The control: the same values, dealt out to other answers."""
    request = make_request("shuffled", rewards=[{"function": "tests.alignment.test_grpo:shuffled"}])
    run(request)
    model, _ = load_pretrained(EnhancedMoEForCausalLM, request.output)
    judge = RewardValidation(Prompts(make_request("judge")))
    found = judge.measure(model, whole=True)["validation_reward"]
    learnt = rewarded[1]["validation_reward"]
    start = rewarded[1]["start_sample_reward"]
    assert abs(found - start) < 0.5 * (learnt - start)


def test_rewards_that_never_differ_are_counted_and_move_nothing_but_the_routers(make_request):
    request = make_request(
        "constant", steps=3, warmup_steps=0, rewards=[{"function": "tests.alignment.test_grpo:constant"}]
    )
    run(request)
    assert all(row["groups_alike"] == 1 for row in history(request.output))
    assert all(abs(row["train_loss"]) < 0.01 for row in history(request.output))


def test_faulty_reward_ends_the_step_by_name(make_request):
    request = make_request("faulty", rewards=[{"function": "tests.alignment.test_grpo:too_few"}])
    with pytest.raises(AvaError, match=r"reward tests.alignment.test_grpo:too_few: gives 1 values for 32 answers"):
        run(request)
    with pytest.raises(ConfigError, match=r"reward tests.alignment.test_grpo:absent: module .* has no `absent`"):
        run(make_request("absent", rewards=[{"function": "tests.alignment.test_grpo:absent"}]))


def test_answers_must_fit_beside_the_prompts(make_request):
    with pytest.raises(ConfigError, match=r"grpo.max_new_tokens = 100: with prompts of up to 32 tokens it must be <= "):
        run(make_request("long", max_new_tokens=100))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 5}, r"grpo.global_batch_size = 32: must be a multiple of group_size x processes = 5 x 1"),
        ({"zero_stage": 3}, "grpo.zero_stage = 3: .*use 2, or less"),
    ],
)
def test_what_can_not_be_is_refused_where_it_is_used(make_request, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(make_request("refused", **settings))


def test_request_survives_its_way_to_other_processes(make_request):
    request = make_request("sent")
    assert decode(encode(request)) == request
    assert type(decode(encode(request)).train_config) is GrpoConfig


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_bytes(make_request, monkeypatch):
    assert_same_bytes_after_an_interruption(partial(make_request, checkpoint_every=5), 13, monkeypatch)


@pytest.mark.slow
def test_two_processes_learn_it_too(make_request, monkeypatch):
    """Each answers half of the prompts. Their modules come from the checkout, where the reward is found."""
    from pathlib import Path

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    request = make_request("ranks", processes=2, micro_batch_size=8)
    figures = run(request)
    assert figures["sample_reward"] > 1.5 * figures["start_sample_reward"]


def test_rollouts_of_rounded_weights_teach_the_same(make_request, rewarded):
    request = make_request("onnx", rollout="onnx")
    figures = run(request)
    rows = history(request.output)
    assert figures["sample_reward"] > 1.5 * figures["start_sample_reward"]
    assert 0 < rows[0]["rollout_kl"] < 0.05 and rows[0]["clipped"] < 0.1


def test_reward_model_can_be_learnt_from(make_request, tiny_model, pair_shards, tmp_path):
    settings = {"steps": 60, "learning_rate": 0.005, "adam_learning_rate": 0.005, "evaluate_every": 60}
    scoring = request_in(tmp_path / "reward", "reward", tiny_model, pair_shards, settings)
    run(scoring)
    _finished(scoring.output, "reward", {})
    request = make_request("scored", rollout="onnx", rewards=[{"model": str(scoring.output)}])
    figures = run(request)
    rewards = [row["reward_model"] for row in history(request.output)]
    assert sum(rewards[-5:]) > sum(rewards[:5])
    assert figures["sample_reward_model"] == figures["sample_reward"]


def test_adapter_has_no_place_in_rollouts_of_rounded_weights(make_request):
    with pytest.raises(ConfigError, match=r"grpo.rollout = onnx: has no place for grpo.adapter"):
        run(make_request("adapter", rollout="onnx", optimizer="adamw", adapter={"kind": "lora"}))


@pytest.mark.slow
def test_interrupted_training_with_rollouts_of_rounded_weights_ends_with_the_same_bytes(make_request, monkeypatch):
    def make(name):  # the other test's trainings have left checkpoints under the bare names
        return make_request(f"rounded-{name}", checkpoint_every=5, rollout="onnx")

    assert_same_bytes_after_an_interruption(make, 13, monkeypatch)
