"""Reward model and DPO: what they learn, TRL's numbers as the reference, and the same bytes after an interruption."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from ava_core.alignment.pair_material import PreferredPairs, RewardPairs
from ava_core.alignment.pair_objectives import DirectPreference, PairwiseReward
from ava_core.alignment.shards import ConversationShards
from ava_core.config.preference_training import DpoConfig, RewardConfig
from ava_core.data.tokenizer import load_tokenizer
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.launching.requests import decode, encode
from ava_core.models import EnhancedMoEForCausalLM, EnhancedMoEForSequenceClassification
from ava_core.models.pretrained import load_pretrained
from ava_core.progress import Progress
from ava_core.runtime import manifest
from ava_core.training.request import TrainRequest
from tests.alignment.trainings import assert_same_bytes_after_an_interruption, request_in, run

SETTINGS = {"steps": 60, "learning_rate": 0.005, "adam_learning_rate": 0.005, "evaluate_every": 20, "warmup_steps": 5}


@pytest.fixture(scope="module")
def make_request(tmp_path_factory, tiny_model, pair_shards):
    """A request of a step that trains on pairs; the same name again goes on in the same state folder."""
    root = tmp_path_factory.mktemp("requests")

    def make(step: str, name: str, **settings) -> TrainRequest:
        return request_in(root / f"{step}{name}", step, tiny_model, pair_shards, {**SETTINGS, **settings})

    return make


@pytest.fixture(scope="module")
def preferred(make_request):
    request = make_request("dpo", "preferred", samples=8)
    return request.output, run(request)


@pytest.fixture(scope="module")
def rewarded(make_request):
    request = make_request("reward", "rewarded")
    return request.output, run(request)


def test_dpo_ranks_held_out_pairs_and_says_how_far_it_went(preferred):
    folder, figures = preferred
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert rows[0]["train_loss"] == pytest.approx(math.log(2), abs=0.02) and rows[0]["reward_accuracy"] < 1
    assert figures["validation_accuracy"] >= 0.8 and figures["validation_margin"] > 0
    assert figures["validation_loss"] < math.log(2) and figures["kl_to_start"] > 0
    assert {"start_answer_tokens", "answer_tokens", "repetition_4gram", "ended_answers"} <= figures.keys()


def test_start_judges_by_chance_and_its_distance_to_itself_is_none(make_request):
    """Before the first step the margins are those of float32 against float32: 0."""
    request = make_request("dpo", "start")
    material = PreferredPairs(request)
    material.batches(Ranks(0, 0, 1), request.train_config and Progress(quiet=True))
    from ava_core.training.beginning import build_from
    from ava_core.training.initial import Parent

    start = build_from(Parent.read(request.init), request.model_config, material)
    found = material.validation().measure(start, whole=True)
    assert found["validation_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found["validation_margin"] == pytest.approx(0, abs=1e-4)


def test_aligned_model_is_an_ordinary_model_folder(preferred, tiny_model):
    folder, _ = preferred
    model, report = load_pretrained(EnhancedMoEForCausalLM, folder)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = load_tokenizer(folder)
    assert model.generation_config.eos_token_id == [0, tokenizer.convert_tokens_to_ids("<|end|>")]
    assert json.loads((folder / "training.json").read_text())["parent"]["model"] == manifest.read(tiny_model).digest


def test_reward_model_scores_held_out_pairs(rewarded, pair_shards):
    """As any script would: Transformers' class, one answer after the other."""
    folder, figures = rewarded
    assert figures["validation_accuracy"] >= 0.8
    model, report = load_pretrained(EnhancedMoEForSequenceClassification, folder)
    assert not report["missing_keys"] and not report["unexpected_keys"] and model.config.num_labels == 1
    items = ConversationShards.open(pair_shards, "preference").read("validation")
    with torch.no_grad():
        scores = [float(model.eval()(torch.from_numpy(item.tokens)[None]).logits) for item in items]
    won = np.mean([good > bad for good, bad in zip(scores[::2], scores[1::2], strict=True)])
    assert won == pytest.approx(figures["validation_accuracy"])


@pytest.mark.parametrize("objective", ["sigmoid", "ipo"])
def test_objective_is_trls(make_request, objective, tmp_path, monkeypatch):
    """The same pairs, the same start and another model: TRL's loss and the margins that it logs."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import trl
    from datasets import Dataset

    request = make_request("dpo", "trl", objective=objective, beta=0.3)
    material = PreferredPairs(request)
    batches = material.batches(Ranks(0, 0, 1), Progress(quiet=True))
    from ava_core.training.beginning import build_from
    from ava_core.training.initial import Parent

    start = build_from(Parent.read(request.init), request.model_config, material)
    model = build_from(Parent.read(request.init), request.model_config, material)
    for each in (start, model):
        each.config.balance_loss_weight = each.config.router_z_loss_weight = each.config.router_diversity_weight = 0.0
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch = batches.batch(0)
    with torch.no_grad():
        logits = model.eval()(batch.input_ids, document_ids=batch.document_ids).logits
    judged = DirectPreference(request.train_config).judge(logits, batch)
    answers = [
        batch.input_ids[row, batch.document_ids[row] == place]
        for row, pairs in enumerate(batch.pairs.tolist())
        for place in range(2 * pairs)
    ]
    prompts = [
        int((batch.labels[row, batch.document_ids[row] == place] != -100).nonzero()[0]) + 1
        for row, pairs in enumerate(batch.pairs.tolist())
        for place in range(2 * pairs)
    ]
    rows = [
        {
            "prompt_ids": good[:asked].tolist(),
            "chosen_ids": good[asked:].tolist(),
            "rejected_ids": bad[asked:].tolist(),
        }
        for good, bad, asked in zip(answers[::2], answers[1::2], prompts[::2], strict=True)
    ]
    # The tokens are the ones that we have.
    monkeypatch.setattr(trl.DPOTrainer, "_prepare_dataset", lambda self, dataset, *_: dataset)
    settings = trl.DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=len(rows), per_device_eval_batch_size=len(rows),
        beta=0.3, loss_type=objective, report_to=[], use_cpu=True, bf16=False, max_length=None, disable_dropout=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    data = Dataset.from_list(rows)
    trainer = trl.DPOTrainer(
        model, ref_model=start, args=settings, train_dataset=data, eval_dataset=data,
        processing_class=load_tokenizer(request.shards / "tokenizer"),
    )  # fmt: skip
    theirs = trainer.evaluate()
    assert float(judged["train_loss"]) == pytest.approx(theirs["eval_loss"], rel=1e-3)
    assert float(judged["reward_margin"]) == pytest.approx(theirs["eval_rewards/margins"], rel=1e-3)
    assert float(judged["reward_accuracy"]) == pytest.approx(theirs["eval_rewards/accuracies"], abs=1e-6)


def test_reward_objective_is_the_bradley_terry_loss(make_request):
    batch = RewardPairs(make_request("reward", "loss")).batches(Ranks(0, 0, 1), Progress(quiet=True)).batch(0)
    torch.manual_seed(0)
    logits = torch.randn(*batch.ends.shape, 1)
    judged = PairwiseReward(RewardConfig(center=0.5)).judge(logits, batch)
    losses, wins = [], []
    for row, pairs in enumerate(batch.pairs.tolist()):
        for pair in range(pairs):
            good, bad = (float(logits[row, 2 * pair + side, 0]) for side in (0, 1))
            losses.append(math.log(1 + math.exp(bad - good)) + 0.5 * (good + bad) ** 2)
            wins.append(good > bad)
    assert float(judged["train_loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(judged["reward_accuracy"]) == pytest.approx(np.mean(wins))


def test_equal_answers_are_half_right():
    config = DpoConfig()
    from ava_core.alignment.pair_rows import PairBatch

    batch = PairBatch(
        input_ids=torch.zeros(1, 4, dtype=torch.int64), labels=torch.tensor([[3, -100, 3, -100]]),
        document_ids=torch.tensor([[0, 0, 1, 1]]), pairs=torch.tensor([1]), ends=torch.tensor([[1, 3]]),
        reference=torch.zeros(1, 2),
    )  # fmt: skip
    judged = DirectPreference(config).judge(torch.zeros(1, 4, 8), batch)
    assert judged["reward_accuracy"] == 0.5 and float(judged["train_loss"]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("step", ["dpo", "reward"])
def test_request_survives_its_way_to_other_processes(make_request, step):
    request = make_request(step, "sent")
    assert decode(encode(request)) == request
    assert type(decode(encode(request)).train_config) is {"dpo": DpoConfig, "reward": RewardConfig}[step]


@pytest.mark.parametrize(
    ("step", "setting", "message"),
    [
        ("dpo", {"loss": {"label_smoothing": 0.1}}, "dpo: loss: the loss is of pairs of answers: leave it out"),
        (
            "reward",
            {"optimizer": "adamw", "adapter": {"kind": "lora"}},
            "reward: adapter: the head of a reward model .*: leave it out",
        ),
        ("dpo", {"sequence_length": 32}, "dpo.sequence_length = 32: preferences have up to 64 tokens"),
        ("reward", {"sequence_length": 256}, "reward.sequence_length = 256: must be <= 128"),
    ],
)
def test_what_can_not_be_is_refused_by_name(make_request, step, setting, message):
    with pytest.raises(ConfigError, match=message):
        run(make_request(step, "refused", **setting))


@pytest.mark.slow
@pytest.mark.parametrize("step", ["dpo", "reward"])
def test_interrupted_training_ends_with_the_same_bytes(make_request, step, monkeypatch):
    make = partial(make_request, step, checkpoint_every=10)
    assert_same_bytes_after_an_interruption(make, 25, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_two_processes_train_the_same_model(make_request, preferred, zero_stage):
    """Each scores a share of the pairs with the start, and reads a share of each batch."""
    request = make_request("dpo", f"ranks{zero_stage}", processes=2, micro_batch_size=2, zero_stage=zero_stage)
    figures = run(request)
    assert figures["validation_loss"] == pytest.approx(preferred[1]["validation_loss"], abs=0.05)
    assert figures["validation_accuracy"] >= 0.8
