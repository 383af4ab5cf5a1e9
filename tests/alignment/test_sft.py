"""Fine-tuning: what it learns, what it leaves alone, and the same bytes after an interruption."""

import json
from functools import partial

import pytest

from ava_core.alignment.material import AnswerValidation, answer_of
from ava_core.alignment.packing import PackedRows
from ava_core.alignment.shards import ConversationShards
from ava_core.config import resolve
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import ConfigError
from ava_core.launching.requests import decode, encode
from ava_core.training.request import TrainRequest
from tests.alignment.trainings import assert_same_bytes_after_an_interruption, request_in, run

SETTINGS = {"steps": 80, "learning_rate": 0.01, "adam_learning_rate": 0.01, "evaluate_every": 20, "samples": 8}


@pytest.fixture
def request_for(tmp_path, tiny_model, conversation_shards):
    """A request of a fine-tuning into `tmp_path / name`."""

    def make(name: str = "sft", shards=conversation_shards, **settings) -> TrainRequest:
        return request_in(tmp_path / name, "sft", tiny_model, shards, {**SETTINGS, **settings})

    return make


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_model, conversation_shards):
    """Model folder and figures of a fine-tuning."""
    request = request_in(tmp_path_factory.mktemp("learned") / "sft", "sft", tiny_model, conversation_shards, SETTINGS)
    return request.output, run(request)


def test_held_out_answers_are_learnt_and_end_by_themselves(learned):
    _, figures = learned
    assert figures["validation_loss"] < 0.5 * figures["start_validation_loss"]
    assert figures["validation_loss_gain"] == figures["start_validation_loss"] - figures["validation_loss"]
    assert figures["start_ended_answers"] < figures["ended_answers"] >= 0.6


def test_model_folder_is_an_ordinary_one_with_the_template_and_its_parent(learned, tiny_model):
    from transformers import AutoModelForCausalLM

    import ava_core.models  # noqa: F401  registers the architecture
    from ava_core.runtime import manifest

    folder, _ = learned
    tokenizer = load_tokenizer(folder)
    assert "<|assistant|>" in tokenizer.chat_template
    record = json.loads((folder / "training.json").read_text())
    assert record["parent"]["model"] == manifest.read(tiny_model).digest
    assert record["corpus"]["train_answers"] > 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size >= len(tokenizer)
    assert model.generation_config.eos_token_id == [0, tokenizer.convert_tokens_to_ids("<|end|>")]


def test_validation_is_the_loss_of_the_answers_alone(learned, conversation_shards):
    """Against one conversation after the other, through Transformers' own loss on labels."""
    import torch

    from ava_core.models import EnhancedMoEForCausalLM
    from ava_core.models.pretrained import load_pretrained

    folder, figures = learned
    model, _ = load_pretrained(EnhancedMoEForCausalLM, folder)
    model.eval()
    total = count = 0
    for item in ConversationShards.open(conversation_shards).read("validation"):
        with torch.no_grad():
            logits = model(torch.from_numpy(item.tokens)[None]).logits[0]
        chosen = torch.from_numpy(item.learnt[1:])
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(item.tokens[1:]), reduction="none")
        total += float(losses[chosen].sum())
        count += int(chosen.sum())
    assert figures["validation_loss"] == pytest.approx(total / count, abs=1e-4)


def test_padding_and_neighbours_in_a_row_change_nothing(learned, conversation_shards):
    from ava_core.models import EnhancedMoEForCausalLM
    from ava_core.models.pretrained import load_pretrained

    model, _ = load_pretrained(EnhancedMoEForCausalLM, learned[0])
    held_out = ConversationShards.open(conversation_shards).read("validation")[:4]
    config = resolve().config.sft
    losses = [
        AnswerValidation(PackedRows.of(held_out, length, 1, 0), config).measure(model, whole=True)["validation_loss"]
        for length in (48, 96)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_prompt_of_a_conversation_ends_where_the_answer_begins(conversation_shards):
    shards = ConversationShards.open(conversation_shards)
    tokenizer = load_tokenizer(conversation_shards / "tokenizer")
    [item, *_] = shards.read("test")
    prompt, end = answer_of(item.tokens, item.learnt, ())
    assert tokenizer.decode(prompt).endswith("<|assistant|>")
    assert tokenizer.decode([end]) == "<|end|>"


def test_request_survives_its_way_to_other_processes(request_for):
    request = request_for()
    assert decode(encode(request)) == request
    assert type(decode(encode(request)).train_config) is type(request.train_config)


def test_context_shorter_than_the_conversations_is_refused(request_for):
    with pytest.raises(ConfigError, match=r"sft.sequence_length = 32: conversations have up to 48 tokens"):
        run(request_for(sequence_length=32))


def test_context_past_the_models_positions_is_refused(request_for):
    with pytest.raises(ConfigError, match=r"sft.sequence_length = 256: must be <= 128"):
        run(request_for(sequence_length=256))


def test_section_takes_over_what_train_says(make_params):
    config = resolve(params=make_params(train={"learning_rate": 0.05, "weight_decay": 0.2, "steps": 999})).config
    assert config.sft.weight_decay == 0.2 and config.sft.global_batch_size == 4
    assert config.sft.learning_rate == pytest.approx(0.01)
    assert config.sft.steps == 200
    own = resolve(params=make_params(train={"learning_rate": 0.05}, sft={"learning_rate": 0.3})).config
    assert own.sft.learning_rate == 0.3


@pytest.mark.parametrize(
    "key", ["init=models", "teacher.model=models", "tasks_every=5", "reset_optimizer=true", "keep_optimizer=true"]
)
def test_what_is_no_part_of_a_fine_tuning_is_refused(key):
    with pytest.raises(ConfigError, match=rf"sft: {key.split('=')[0].split('.')[0]}: .*leave it out"):
        resolve(overrides=[f"sft.{key}"])


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_bytes(request_for, monkeypatch):
    assert_same_bytes_after_an_interruption(partial(request_for, checkpoint_every=10), 25, monkeypatch)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(request_for):
    one, two = run(request_for("one")), run(request_for("two", processes=2, micro_batch_size=2))
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=0.05)
    assert two["tokens_seen"] == one["tokens_seen"]
