"""Prompts: rows of every shape, what is taken once, and that what answers are judged by stands beside its tokens."""

import json
import re
import shutil

import pytest
from pydantic import ValidationError

from ava_core.alignment.held_out import file_of, read_prompts
from ava_core.alignment.making import LEFT_OUT
from ava_core.alignment.prepare_pairs import prepare_pairs
from ava_core.alignment.prepare_prompts import prepare_prompts
from ava_core.alignment.shards import ConversationShards
from ava_core.alignment.template import TEMPLATE
from ava_core.alignment.tokens import encode_prompt
from ava_core.config.preferences import PreferencesConfig, PreferenceSource
from ava_core.config.prompts import PromptsConfig, PromptSource
from ava_core.data.shards import SPLITS
from ava_core.data.tokenizer import CONFIG_FILE, load_tokenizer
from ava_core.errors import AvaError, IntegrityError
from ava_core.files import write_json
from ava_core.runtime.digests import digest_tree
from tests.alignment.conftest import exchange, shards_in, write_rows

ASK, GOOD = "Who's there?", "Nay, answer me."
USER, SAID = {"role": "user", "content": ASK}, {"role": "assistant", "content": GOOD}
SYSTEM = {"role": "system", "content": "BERNARDO"}
ROWS = [exchange(f"question {number}", f"answer {number}") for number in range(30)]
ANSWERED = {
    "messages": {"messages": [USER, SAID]},
    "sharegpt": {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}]},
    "alpaca": {"instruction": ASK, "input": "", "output": GOOD},
    "completion": {"prompt": ASK, "completion": GOOD},
}
OPEN = {"text": {"prompt": ASK}, "list": {"prompt": [USER]}, "messages": {"messages": [USER]}}


@pytest.fixture
def make_prompts(chat_shards, tmp_path):
    """`prepare_prompts` of rows or of a configuration; the output is `tmp_path / name`."""

    def make(rows=None, *, name="prompts", shards=chat_shards, shape="auto", **settings):
        if rows is not None:
            source = PromptSource(path=str(write_rows(tmp_path / f"{name}.jsonl", rows)), shape=shape)
            settings = {"sources": [source], **settings}
        config = PromptsConfig(**{"max_tokens": 48, **settings})
        return tmp_path / name, shards_in(tmp_path / name, prepare_prompts, config, shards)

    return make


def all_of(folder) -> list:
    """Pairs of row and what it is judged by, of all splits."""
    shards = ConversationShards.open(folder, "prompts")
    return [pair for split in SPLITS for pair in zip(shards.read(split), read_prompts(shards, split), strict=True)]


def alike(row: dict, count: int = 6) -> list[dict]:
    """Rows with other questions: a split needs one each."""
    return [json.loads(json.dumps(row).replace(ASK, f"{ASK} {number}")) for number in range(count)]


@pytest.mark.parametrize("row", ANSWERED.values(), ids=ANSWERED)
def test_answer_of_every_shape_becomes_the_reference(make_prompts, row):
    found = all_of(make_prompts(alike(row))[0])
    assert {answer.prompt[-1].content for _, answer in found} == {f"{ASK} {number}" for number in range(6)}
    assert {(answer.reference, answer.text, len(answer.prompt)) for _, answer in found} == {(GOOD, "", 1)}


@pytest.mark.parametrize("row", OPEN.values(), ids=OPEN)
def test_row_without_an_answer_has_no_reference(make_prompts, row):
    folder, _ = make_prompts(alike(row))
    assert {answer.reference for _, answer in all_of(folder)} == {None}
    assert {json.loads(line)["reference"] for line in (folder / file_of("train")).read_text().splitlines()} == {None}


def test_prompt_is_what_stands_before_the_last_answer(make_prompts):
    later = {"role": "user", "content": "And now?"}
    folder, _ = make_prompts(alike({"messages": [SYSTEM, USER, SAID, later, {**SAID, "content": "The king."}]}))
    tokenizer = load_tokenizer(folder / "tokenizer")
    for row, answer in all_of(folder):
        assert [message.role for message in answer.prompt] == ["system", "user", "assistant", "user"]
        assert answer.reference == "The king."
        text = tokenizer.decode(row.tokens)
        assert text.endswith(f"{GOOD}<|end|><|user|>And now?<|end|><|assistant|>") and not row.learnt.any()


def test_rows_tokens_are_those_of_the_prompt_beside_them_in_every_split(make_prompts):
    folder, made = make_prompts(ROWS, system="BERNARDO")
    tokenizer, found = load_tokenizer(folder / "tokenizer"), all_of(folder)
    assert len(found) == 30 == sum(made.metrics[f"{split}_prompts"] for split in SPLITS)
    assert sum(len(row) for row, _ in found) == sum(made.metrics[f"{split}_tokens"] for split in SPLITS)
    for row, answer in found:
        assert row.tokens.tolist() == encode_prompt(tokenizer, answer.prompt)
        number = int(row.name.partition(":")[2]) - 1
        assert (answer.prompt[-1].content, answer.reference) == (f"question {number}", f"answer {number}")
        assert answer.prompt[0].content == "BERNARDO" and answer.facts == {} and row.num_bytes == 0


def test_equal_prompts_are_taken_once_with_the_first_reference(make_prompts):
    again = [exchange(f"question {number}", "something else") for number in range(10)]
    folder, made = make_prompts([*ROWS, *again, ROWS[0], {"messages": ROWS[1]["messages"][:1]}])
    asked = [answer.prompt for _, answer in all_of(folder)]
    assert len(asked) == len(set(asked)) == 30 and made.metrics["duplicates_removed"] == 12
    assert "something else" not in {answer.reference for _, answer in all_of(folder)}


def test_prompt_is_in_the_split_of_its_hash_whatever_its_answer(make_prompts):
    others = [exchange(f"question {number}", f"another {number}") for number in range(30)]
    first, second = (ConversationShards.open(make_prompts(rows)[0], "prompts") for rows in (ROWS, ROWS[::-1]))
    third = ConversationShards.open(make_prompts(others, name="others")[0], "prompts")
    for split in SPLITS:
        asked = [{answer.prompt for answer in read_prompts(shards, split)} for shards in (first, second, third)]
        assert asked[0] == asked[1] == asked[2]


def test_row_is_in_the_same_split_whatever_is_made_of_it(make_prompts, make_conversations, chat_shards, tmp_path):
    """What fine-tuning learnt from is never asked as a held-out prompt, whatever else the sections say."""
    again = [exchange(f"question {number}", f"another {number}") for number in range(60)]
    rows = [*(exchange(f"question {number}", f"answer {number}") for number in range(120)), *again]
    conversations, _ = make_conversations([*rows, exchange("long " * 60, "left out")], system="BERNARDO")
    prompts = [
        make_prompts(rows, name="prompts")[0],
        make_prompts(rows[60:], name="fewer")[0],
        make_prompts([*rows, *alike(OPEN["messages"], 90)], name="more", system="GHOST")[0],
    ]
    pairs = tmp_path / "pairs"
    rejected = [{"prompt": f"question {number}", "chosen": "yes", "rejected": "no"} for number in range(60)]
    source = PreferenceSource(path=str(write_rows(tmp_path / "pairs.jsonl", rejected)))
    shards_in(pairs, prepare_pairs, PreferencesConfig(sources=[source], max_tokens=96), chat_shards, model=None, seed=0)
    learnt = {split: questions(conversations, "sft", split) for split in SPLITS}
    assert all(learnt.values()) and not learnt["train"] & (learnt["validation"] | learnt["test"])
    for folder, purpose in [*((folder, "prompts") for folder in prompts), (pairs, "preference")]:
        for split in SPLITS:
            others = set().union(*(learnt[other] for other in SPLITS if other != split))
            asked = questions(folder, purpose, split)
            assert asked and not asked & others


def questions(folder, purpose: str, split: str) -> set[str]:
    """Numbers of the questions of a split, from its tokens."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    rows = [tokenizer.decode(row.tokens) for row in ConversationShards.open(folder, purpose).read(split)]
    return {match[1] for row in rows for match in re.finditer(r"question (\d+)<", row)}


def test_fewer_prompts_than_splits_are_refused(make_prompts):
    with pytest.raises(AvaError, match=r"^sources: hold 2 different prompts: train, validation and test need one each"):
        make_prompts(ROWS[:2])


def test_play_stays_in_the_split_of_its_text(make_prompts, monkeypatch):
    """A document of the pretraining's test split gives no prompt to train on; long dialogues are divided."""
    from ava_core.alignment import gathering as module
    from ava_core.data.sources.source import Document

    class Plays:
        name = "shakespeare"

        def documents(self):
            for split in SPLITS:
                speeches = [
                    f"**A**\n{split} asks {number}\n\n**B**\nsaid {number}{' and again' * 9}\n" for number in range(4)
                ]
                yield Document(f"{split}-0", "\n".join(speeches), True)

    monkeypatch.setattr(module, "open_each", lambda *_: [Plays()])
    folder, made = make_prompts(sources=[PromptSource(corpus="shakespeare")], max_tokens=40)
    shards = ConversationShards.open(folder, "prompts")
    assert made.metrics["left_out"] == 0
    for split in SPLITS:
        found = read_prompts(shards, split)
        assert len(found) > 1
        for answer in found:
            number = int(answer.reference.split()[1])
            assert answer.prompt[0].content == "B" and answer.prompt[-1].content == f"{split} asks {number}"


def test_items_of_gym_bring_their_facts_and_need_no_answer(make_prompts):
    sources = [PromptSource(gym="chain_sum", count=12), PromptSource(gym="graph_color", count=12)]
    found = all_of(make_prompts(sources=sources, max_tokens=2000)[0])
    assert len(found) == 24
    for row, answer in found:
        made = answer.facts["gym"]
        assert (
            row.name == f"gym:{made['task']}:0:{made['index']}"
            and made["entry"]["question"] in answer.prompt[0].content
        )
        assert answer.reference == (made["entry"]["answer"] if made["task"] == "chain_sum" else None)


def test_too_short_references_are_not_chosen_and_no_faults(make_prompts):
    rows = [
        *({"prompt": f"long {number}", "completion": f"One\n\nand {number}"} for number in range(8)),
        *({"prompt": f"short {number}", "completion": "One\n \n"} for number in range(5)),
        {"prompt": "short 0", "completion": "Later\nbut long enough"},
    ]
    folder, made = make_prompts(rows, min_reference_lines=2)
    asked = {answer.prompt[0].content for _, answer in all_of(folder)}
    assert asked == {f"long {number}" for number in range(8)} | {"short 0"}
    assert made.metrics["left_out"] == made.metrics["duplicates_removed"] == 0
    card = (folder / "README.md").read_text()
    assert "5 not chosen: their reference has fewer lines than min_reference_lines = 2." in card
    assert "not chosen" not in (make_prompts(rows)[0] / "README.md").read_text()


def test_no_reference_of_so_many_lines_is_refused(make_prompts):
    with pytest.raises(AvaError, match=r"^prompts.min_reference_lines = 1: no reference has so many lines: lower it$"):
        make_prompts(alike(OPEN["text"]), min_reference_lines=1)


def test_at_most_so_many_are_drawn_and_an_eighth_for_the_other_splits(make_prompts):
    rows = [exchange(f"question {number}", f"answer {number}") for number in range(400)]
    folder, made = make_prompts(rows, max_prompts=16)
    assert [made.metrics[f"{split}_prompts"] for split in SPLITS] == [16, 2, 2]
    numbers = [int(row.name.partition(":")[2]) for row, _ in all_of(folder)][:16]
    assert numbers == sorted(numbers) and numbers[-1] > 100
    _, whole = make_prompts(rows, max_prompts=None)
    assert sum(whole.metrics[f"{split}_prompts"] for split in SPLITS) == 400


def test_shards_have_the_same_bytes_again(make_prompts):
    before = digest_tree(make_prompts(ROWS, max_prompts=10)[0])
    assert digest_tree(make_prompts(ROWS, max_prompts=10)[0]) == before
    assert digest_tree(make_prompts(ROWS, max_prompts=9)[0]) != before


def test_card_says_what_a_row_is(make_prompts):
    folder, made = make_prompts(ROWS)
    card = (folder / "README.md").read_text()
    assert card.startswith("# Prompts\n") and "A row is a prompt: what a model is asked" in card
    assert f"| train | {made.metrics['train_prompts']} | {made.metrics['train_tokens']} |" in card
    assert "<|end|><|assistant|>\n" in card


def test_too_long_prompt_is_left_out_and_named_and_a_long_reference_is_not(make_prompts):
    long = "because " * 60
    folder, made = make_prompts([*ROWS, exchange(long, "why"), exchange("why", long)])
    [left] = [json.loads(line) for line in (folder / LEFT_OUT).read_text().splitlines()]
    assert left["name"] == "prompts.jsonl:31" and "more than prompts.max_tokens = 48" in left["reason"]
    assert made.metrics["left_out"] == 1
    assert long in {answer.reference for _, answer in all_of(folder)}
    assert {row.name for row, _ in all_of(folder)} == {f"prompts.jsonl:{number}" for number in {*range(1, 33)} - {31}}


@pytest.mark.parametrize(
    ("row", "shape", "said"),
    [
        ({"prompt": " "}, "prompt", "message 1: content: the user's message is empty"),
        ({"prompt": 3}, "prompt", "prompt: is int, not a list of messages"),
        ({"prompt": []}, "prompt", "prompt: the last message must be the user's"),
        ({"prompt": [USER, SAID]}, "prompt", "prompt: the last message must be the user's"),
        ({"prompt": [SYSTEM]}, "prompt", "prompt: the last message must be the user's"),
        ({"completion": ASK}, "prompt", "prompt: is missing; the row has completion"),
        ({"messages": [SYSTEM]}, "messages", "messages: there is no turn of user and assistant"),
        ({"messages": [SAID]}, "messages", "message 1: role = assistant: must be user"),
        ({"messages": [USER, USER]}, "messages", "message 2: role = user: must be assistant: turns alternate"),
        ({"messages": [USER, {**SAID, "content": ""}]}, "messages", "message 2: content: the assistant's message"),
        ({"conversations": [{"from": "human", "value": ASK}]}, "sharegpt", "the last message must be the assistant's"),
    ],
)
def test_row_that_holds_no_prompt_is_refused_by_name_or_left_out(make_prompts, row, shape, said):
    good = {"prompt": OPEN["text"], "messages": OPEN["messages"], "sharegpt": ANSWERED["sharegpt"]}[shape]
    with pytest.raises(AvaError) as caught:
        make_prompts([*alike(good), row], shape=shape)
    assert str(caught.value).startswith("prompts.jsonl:7: ") and said in str(caught.value)
    folder, made = make_prompts([*alike(good), row], shape=shape, faulty="leave_out")
    assert made.metrics["left_out"] == 1 and said in (folder / LEFT_OUT).read_text()


def test_prompt_that_the_template_refuses_is_left_out_and_named(make_prompts, chat_shards, tmp_path):
    shards = tmp_path / "strict"
    shutil.copytree(chat_shards, shards)
    path = shards / "tokenizer" / CONFIG_FILE
    refusing = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system here') }}{%- endif -%}"
    write_json(path, {**json.loads(path.read_text()), "chat_template": refusing + TEMPLATE})
    folder, made = make_prompts([*ROWS, {"messages": [SYSTEM, USER]}], shards=shards)
    [left] = [json.loads(line) for line in (folder / LEFT_OUT).read_text().splitlines()]
    assert left["name"] == "prompts.jsonl:31" and "the chat template refuses it: no system here" in left["reason"]
    assert made.metrics["left_out"] == 1 and len(all_of(folder)) == 30


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: lines[:-1], "run `ava preprocess` again"),
        (lambda lines: [*lines[:-1], "{broken\n"], "can't be read"),
        (lambda lines: [*lines[:-1], "[]\n"], "can't be read"),
        (lambda lines: [*lines[:-1], '{"messages": [], "facts": null}\n'], "can't be read"),
    ],
    ids=["fewer", "broken", "list", "no reference"],
)
def test_damaged_file_of_prompts_is_refused(make_prompts, damage, said):
    folder, _ = make_prompts(ROWS)
    path = folder / file_of("train")
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    with pytest.raises(IntegrityError, match=rf"train\.jsonl: .*{said}"):
        read_prompts(ConversationShards.open(folder, "prompts"), "train")


def test_shards_for_something_else_are_refused(make_prompts, conversation_shards):
    with pytest.raises(AvaError, match="was made for sft: give the output of `ava preprocess --for prompts`"):
        ConversationShards.open(conversation_shards, "prompts")
    assert not (conversation_shards / file_of("train")).exists()
    with pytest.raises(AvaError, match="was made for prompts: give the output of `ava preprocess --for sft`"):
        ConversationShards.open(make_prompts(ROWS)[0])


@pytest.mark.parametrize(
    "fields", [{"max_prompts": 0}, {"min_reference_lines": -1}, {"max_tokens": 7}, {"sources": []}], ids=str
)
def test_setting_out_of_range_is_refused(fields):
    with pytest.raises(ValidationError):
        PromptsConfig(**fields)
    assert PromptsConfig(**{name: abs(value) + 8 for name, value in fields.items() if value != []})
