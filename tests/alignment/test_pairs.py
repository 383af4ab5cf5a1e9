"""Pairs: rows of every shape, what is refused, the model's own answers as the worse ones, and how they are packed."""

import json

import numpy as np
import pytest
import torch

from ava_core.alignment.packing import PackedRows
from ava_core.alignment.pair_rows import PairRows
from ava_core.alignment.pairs import Opponent
from ava_core.alignment.prepare_pairs import prepare_pairs
from ava_core.alignment.shards import ConversationShards
from ava_core.config.preferences import PreferencesConfig, PreferenceSource
from ava_core.data.tokenizer import load_tokenizer, special_ids
from ava_core.errors import AvaError, ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.models.vocabulary import grow_vocabulary
from ava_core.progress import Progress
from tests.alignment.conftest import exchange, shards_in, write_rows

ASK, GOOD, BAD = "Who's there?", "Nay, answer me.", "The king."
USER = {"role": "user", "content": ASK}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


SHAPES = [
    {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
    {"prompt": [USER], "chosen": [said(GOOD)], "rejected": [said(BAD)]},
    {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
    {"chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]},
    {"prompt": ASK, "chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]},
]


@pytest.fixture
def make_pairs(chat_shards, tmp_path):
    def make(rows, name="preferences", model=None, seed=0, **settings):
        source = PreferenceSource(path=str(write_rows(tmp_path / f"{name}.jsonl", rows)))
        config = PreferencesConfig(**{"sources": [source], "max_tokens": 96, **settings})
        output = tmp_path / name
        return output, shards_in(output, prepare_pairs, config, chat_shards, model=model, seed=seed)

    return make


def others(count=8):
    """Rows beside the one that is looked at: a split needs one each."""
    return [{"prompt": f"A{n}", "chosen": f"B{n}", "rejected": f"C{n}"} for n in range(count)]


def texts(folder, split="train") -> list[str]:
    tokenizer = load_tokenizer(folder / "tokenizer")
    return [tokenizer.decode(item.tokens) for item in ConversationShards.open(folder, "preference").read(split)]


def all_texts(folder) -> list[str]:
    return [text for split in ("train", "validation", "test") for text in texts(folder, split)]


@pytest.mark.parametrize("row", SHAPES, ids=range(len(SHAPES)))
def test_every_shape_gives_the_two_sides_after_each_other(make_pairs, row):
    alike = [json.loads(json.dumps(row).replace(ASK, f"{ASK} {number}")) for number in range(6)]
    found = all_texts(make_pairs(alike)[0])
    assert len(found) == 12
    for good, bad in zip(found[::2], found[1::2], strict=True):
        prompt = good.removesuffix(f"{GOOD}<|end|>")
        assert bad == f"{prompt}{BAD}<|end|>" and prompt.endswith("<|assistant|>") and ASK in prompt


def test_only_the_last_answer_is_learnt(make_pairs):
    turns = [USER, said("First."), {"role": "user", "content": "And now?"}]
    rows = [
        {"chosen": [*turns[:2], {**turns[2], "content": f"And {n}?"}, said(GOOD)],
         "rejected": [*turns[:2], {**turns[2], "content": f"And {n}?"}, said(BAD)]}
        for n in range(6)
    ]  # fmt: skip
    folder, _ = make_pairs(rows)
    tokenizer = load_tokenizer(folder / "tokenizer")
    for number, item in enumerate(ConversationShards.open(folder, "preference").read("train")):
        assert tokenizer.decode(item.tokens[item.learnt]) == f"{(GOOD, BAD)[number % 2]}<|end|>"
        assert item.num_bytes == len((GOOD, BAD)[number % 2])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ASK, "chosen": GOOD, "rejected": f" {GOOD}"}, "rejected: is the same as the preferred answer"),
        ({"prompt": ASK, "chosen": GOOD, "rejected": " "}, "content: the assistant's message is empty|answer is empty"),
        ({"chosen": GOOD, "rejected": BAD}, "prompt: is missing: chosen is a text"),
        ({"chosen": [USER, said(GOOD)], "rejected": [{**USER, "content": "Else?"}, said(BAD)]}, "another prompt"),
        ({"prompt": ASK, "chosen": [GOOD], "rejected": BAD}, "message 1: role: is NoneType"),
        ({"prompt": ASK, "chosen": GOOD}, "rejected: is missing; the row has chosen, prompt"),
        ({"prompt": ASK, "chosen": GOOD, "rejected": {}}, "rejected: is dict, not a list of messages"),
    ],
)
def test_faulty_pair_is_named_before_any_work(make_pairs, row, message):
    with pytest.raises(AvaError, match=rf"preferences.jsonl.*9.*{message}|{message}"):
        make_pairs([*others(), row])
    _, made = make_pairs([*others(), row], faulty="leave_out")
    assert made.metrics["left_out"] == 1 and made.metrics["train_conversations"] % 2 == 0


def test_pairs_of_one_prompt_are_in_one_split(make_pairs):
    rows = [{"prompt": f"P{n}", "chosen": f"good {k}", "rejected": "bad"} for n in range(12) for k in range(4)]
    folder, _ = make_pairs(rows)
    prompts = [{text.split("<|assistant|>")[0] for text in texts(folder, split)} for split in ("train", "validation")]
    assert prompts[0] and prompts[1] and not prompts[0] & prompts[1]


def test_pair_that_is_too_long_is_left_out_and_named(make_pairs):
    folder, made = make_pairs([*others(), {"prompt": ASK * 9, "chosen": GOOD, "rejected": BAD}])
    [line] = (folder / "left_out.jsonl").read_text().splitlines()
    assert "more than preferences.max_tokens = 96" in line and made.metrics["left_out"] == 1


def test_own_answers_of_a_model_are_the_worse_ones_and_the_same_again(make_pairs, tiny_model):
    rows = [exchange(f"{ASK} {number}", f"{GOOD} {number}") for number in range(12)]
    first, _ = make_pairs(rows, "first", model=tiny_model)
    again, _ = make_pairs(rows, "again", model=tiny_model)
    other, _ = make_pairs(rows, "other", model=tiny_model, seed=1)
    assert all_texts(first) == all_texts(again) != all_texts(other)
    good, bad = all_texts(first)[::2], all_texts(first)[1::2]
    assert all(GOOD in text for text in good) and not any(GOOD in text for text in bad)


def test_other_answers_are_of_other_prompts(make_pairs):
    rows = [exchange(f"{ASK} {number}", f"Answer {number}") for number in range(120)]
    for good, bad in zip(*(all_texts(make_pairs(rows, rejected="other")[0])[k::2] for k in (0, 1)), strict=True):
        assert good != bad and good.split("<|assistant|>")[0] == bad.split("<|assistant|>")[0]


def test_rows_without_a_worse_answer_want_a_model(make_pairs):
    with pytest.raises(ConfigError, match=r"--model is missing: .*preferences.rejected=other"):
        make_pairs([exchange(f"{ASK} {number}", GOOD) for number in range(12)])


def test_no_more_pairs_than_asked_for(make_pairs):
    _, made = make_pairs(others(64), max_pairs=16)
    assert made.metrics["train_conversations"] == 32 and made.metrics["validation_conversations"] <= 4


def test_shards_of_another_purpose_are_refused_by_name(pair_shards, conversation_shards):
    with pytest.raises(AvaError, match=r"was made for preference: give the output of `ava preprocess --for sft`"):
        ConversationShards.open(pair_shards)
    with pytest.raises(AvaError, match=r"was made for sft: give .*--for preference"):
        ConversationShards.open(conversation_shards, "preference")


def test_a_single_conversation_has_no_other_answer(chat_shards):
    opponent = Opponent(PreferencesConfig(rejected="other"), None, 0, Progress(quiet=True))
    from ava_core.alignment.conversation import Message, checked

    alone = checked("a", [Message("user", ASK), Message("assistant", GOOD)])
    assert opponent.rejected("train", [alone], chat_shards / "tokenizer") == [""]


def test_log_probs_in_packed_rows_are_those_of_each_answer_alone(pair_shards, tiny_model):
    """Against Transformers' way: one answer after the other, labels on its tokens."""
    model, _ = load_pretrained(EnhancedMoEForCausalLM, tiny_model)
    special = special_ids(pair_shards / "tokenizer")
    grow_vocabulary(model, special.vocab_size, boundary_token_id=special.boundary, pad_token_id=special.padding)
    items = ConversationShards.open(pair_shards, "preference").read("train")[:20]
    rows = PairRows.of(PackedRows.of(items, 96, 1, 0, together=2))
    assert len(rows) < 10 and rows.pairs.sum() == 10
    batch = rows.batch(np.arange(len(rows)))
    with torch.no_grad():
        logits = model.eval()(batch.input_ids, document_ids=batch.document_ids, use_cache=False).logits
        found, counts = batch.answer_log_probs(logits)
        for row, members in enumerate(rows.packed.members):
            for place, member in enumerate(members):
                tokens, learnt = torch.from_numpy(items[member].tokens), torch.from_numpy(items[member].learnt)
                alone = model(tokens[None]).logits[0, :-1].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]
                torch.testing.assert_close(found[row, place], alone[learnt[1:]].sum(), rtol=1e-4, atol=1e-3)
                assert counts[row, place] == learnt.sum()
                end = rows.ends[row, place]
                assert batch.input_ids[row, end] == tokens[-1] and batch.document_ids[row, end] == place
