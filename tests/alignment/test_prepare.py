"""From rows to shards of conversations: splits, what is left out and why, and what is refused."""

import json

import pytest

from ava_core.alignment.making import LEFT_OUT
from ava_core.alignment.shards import INFO_NAME, ConversationShards
from ava_core.config.conversations import ConversationSource
from ava_core.config.data import SplitConfig
from ava_core.data.shards import SPLITS
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.runtime.digests import digest_tree
from tests.alignment.conftest import exchange, write_rows

ROWS = [exchange(f"question {number}", f"answer {number}") for number in range(30)]


def names(shards: ConversationShards) -> dict[str, list[str]]:
    return {split: [item.name for item in shards.read(split)] for split in SPLITS}


def test_every_conversation_is_in_one_split_and_comes_back(make_conversations):
    folder, made = make_conversations(ROWS)
    shards = ConversationShards.open(folder)
    found = names(shards)
    assert sorted(name for split in found.values() for name in split) == sorted(
        f"conversations.jsonl:{number}" for number in range(1, 31)
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    [first, *_] = shards.read("train")
    number = int(first.name.partition(":")[2]) - 1
    assert tokenizer.decode(first.tokens[first.learnt]) == f"answer {number}<|end|>"
    assert made.metrics["train_conversations"] == len(found["train"])
    assert sum(made.metrics[f"{split}_answers"] for split in SPLITS) == 30


def test_shards_have_the_same_bytes_again_and_others_by_another_salt(make_conversations):
    first, _ = make_conversations(ROWS)
    before = digest_tree(first)
    assert digest_tree(make_conversations(ROWS)[0]) == before
    assert digest_tree(make_conversations(ROWS, split=SplitConfig(salt="other"))[0]) != before


def test_datasets_reads_them(make_conversations):
    from datasets import load_from_disk

    folder, made = make_conversations(ROWS)
    loaded = load_from_disk(str(folder))
    assert {name: len(part) for name, part in loaded.items()} == {
        name: made.metrics[f"{name}_conversations"] for name in SPLITS
    }
    assert set(loaded["train"].column_names) == {"name", "tokens", "learnt", "num_bytes"}


def test_play_stays_in_the_split_of_its_text(chat_shards, make_conversations, tmp_path, monkeypatch):
    """A document of the pretraining's test split gives no conversation to train on."""
    from ava_core.alignment import gathering as module
    from ava_core.data.sources.source import Document

    class Plays:
        name = "shakespeare"

        def documents(self):
            for split in SPLITS:
                for number in range(1):
                    text = f"**A**\n{split} says {number}\n\n**B**\nand answers {number}\n"
                    yield Document(f"{split}-{number}", text, True)

    monkeypatch.setattr(module, "open_each", lambda *_: [Plays()])
    folder, _ = make_conversations(sources=[ConversationSource(corpus="shakespeare")])
    found = names(ConversationShards.open(folder))
    assert found == {split: [f"{split}-{number}#1" for number in range(1)] for split in SPLITS}


def test_too_long_conversation_is_left_out_and_named(make_conversations):
    folder, made = make_conversations([*ROWS, exchange("why", "because " * 60)])
    [left] = [json.loads(line) for line in (folder / LEFT_OUT).read_text().splitlines()]
    assert left["name"] == "conversations.jsonl:31" and "conversations.max_tokens = 48" in left["reason"]
    assert made.metrics["left_out"] == 1
    assert "conversations.jsonl:31" in (folder / "README.md").read_text()


def test_repeated_conversation_is_counted_once(make_conversations):
    _, made = make_conversations([*ROWS, ROWS[0], ROWS[3]])
    assert made.metrics["duplicates_removed"] == 2
    assert sum(made.metrics[f"{split}_conversations"] for split in SPLITS) == 30


def test_faulty_rows_are_refused_by_name_all_at_once(make_conversations):
    with pytest.raises(AvaError) as caught:
        make_conversations([*ROWS, exchange("why", " "), {"messages": "none"}])
    text = str(caught.value)
    assert "conversations.jsonl:31: message 2: content: the assistant's message is empty" in text
    assert "conversations.jsonl:32: messages: is str, not a list of messages" in text


def test_faulty_rows_may_be_left_out(make_conversations):
    folder, made = make_conversations([*ROWS, exchange("why", " ")], faulty="leave_out")
    assert made.metrics["left_out"] == 1
    assert "message is empty" in (folder / LEFT_OUT).read_text()


def test_fields_of_no_shape_are_named(make_conversations):
    with pytest.raises(AvaError, match=r"rows.jsonl:1: has the fields answer, question, of no shape that is known"):
        make_conversations([{"question": "a", "answer": "b"}], name="rows")


def test_system_message_is_put_before_conversations_without_one(make_conversations):
    folder, _ = make_conversations(ROWS, system="HAMLET")
    tokenizer = load_tokenizer(folder / "tokenizer")
    [first, *_] = ConversationShards.open(folder).read("train")
    assert tokenizer.decode(first.tokens).startswith("<|system|>HAMLET<|end|><|user|>")


def test_tokenizer_without_chat_tokens_is_refused(make_conversations, tiny_shards):
    with pytest.raises(ConfigError, match=r"lacks <\|system\|>, <\|user\|>, <\|assistant\|>, <\|end\|>"):
        make_conversations(ROWS, shards=tiny_shards)


def test_shards_of_text_are_no_conversations(tiny_shards):
    with pytest.raises(AvaError, match="give the output folder of `ava preprocess --for sft`"):
        ConversationShards.open(tiny_shards)


def test_other_counts_than_rows_are_refused(make_conversations):
    folder, _ = make_conversations(ROWS)
    info = json.loads((folder / INFO_NAME).read_text())
    info["splits"]["train"]["tokens"] += 1
    (folder / INFO_NAME).write_text(json.dumps(info))
    with pytest.raises(IntegrityError, match=r"holds other conversations than conversations\.json counts"):
        ConversationShards.open(folder).read("train")


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_other_formats_give_the_same_conversations(make_conversations, tmp_path, format):
    from datasets import Dataset

    expected, _ = make_conversations(ROWS)
    path = tmp_path / f"rows.{format}"
    data = Dataset.from_list(ROWS)
    if format == "parquet":
        data.to_parquet(path)
    else:
        data.save_to_disk(str(tmp_path / "saved"))
        path = next((tmp_path / "saved").glob("*.arrow"))
    found, _ = make_conversations(sources=[ConversationSource(path=str(path), format=format)], name="other")
    for split in SPLITS:
        ours, theirs = (ConversationShards.open(folder).read(split) for folder in (expected, found))
        assert [item.tokens.tolist() for item in ours] == [item.tokens.tolist() for item in theirs]


def test_row_that_is_no_json_names_its_line(make_conversations, tmp_path):
    path = write_rows(tmp_path / "bad.jsonl", ROWS)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(AvaError, match=r"bad.jsonl: line 31: can't be read as JSON"):
        make_conversations(sources=[ConversationSource(path=str(path))])
