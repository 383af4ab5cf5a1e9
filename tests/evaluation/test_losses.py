"""losses.jsonl: sums by part of a document, the same parts for every tokenizer, and damaged files."""

import hashlib
import json
import math

import numpy as np
import pytest

from ava_core.data.shards import ShardedSplit
from ava_core.errors import IntegrityError
from ava_core.evaluation import losses
from ava_core.evaluation.units import PART_BYTES, divide

TEXTS = ["An æsthetic play. " * 700, "short", "of a play the second act " * 300]
NAMES = ["first", "second", "third"]


def split_of(tokenizer, texts):
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    lengths = [len(tokens) for tokens in documents]
    return ShardedSplit(
        "test",
        np.concatenate(documents).astype(np.uint16),
        np.cumsum([0, *lengths[:-1]]),
        sum(len(text.encode()) for text in texts),
        tokenizer.vocab_size,
        tokenizer.eos_token_id,
        "0",
    )


@pytest.fixture(scope="module")
def bpe_tokenizer(tiny_shards):
    from ava_core.data.tokenizer import load_tokenizer

    return load_tokenizer(tiny_shards / "tokenizer")


def test_parts_are_of_equal_size_and_cover_their_document(byte_tokenizer):
    units = divide(split_of(byte_tokenizer, TEXTS), TEXTS, NAMES, byte_tokenizer)
    for document, text in zip(units.documents, TEXTS, strict=True):
        assert sum(document.bytes) == len(text.encode())
        assert max(document.bytes) - min(document.bytes) <= 1
        assert max(document.bytes) < 1.5 * PART_BYTES
        assert document.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert [len(document.bytes) for document in units.documents] == [3, 1, 2]
    # a token is a byte here, and each document's last part has the boundary token too
    assert [document.tokens for document in units.documents] == [
        [*document.bytes[:-1], document.bytes[-1] + 1] for document in units.documents
    ]


def test_two_tokenizers_have_the_same_parts(byte_tokenizer, bpe_tokenizer):
    by_byte = divide(split_of(byte_tokenizer, TEXTS), TEXTS, NAMES, byte_tokenizer)
    by_pair = divide(split_of(bpe_tokenizer, TEXTS), TEXTS, NAMES, bpe_tokenizer)
    assert [d.bytes for d in by_byte.documents] == [d.bytes for d in by_pair.documents]
    assert [sum(d.tokens) for d in by_byte.documents] != [sum(d.tokens) for d in by_pair.documents]
    # what a part's tokens spell is its text, but for the token across its end
    split, cut = split_of(bpe_tokenizer, TEXTS), by_pair.documents[0].bytes[0]
    spelt = bpe_tokenizer.decode(split.tokens[by_pair.of_token == 0].astype(int).tolist()).encode()
    assert TEXTS[0].encode().startswith(spelt)
    assert 0 <= len(spelt) - cut < 20


def test_document_whose_tokens_do_not_spell_it_stays_whole(byte_tokenizer):
    split = split_of(byte_tokenizer, TEXTS)
    units = divide(split, [TEXTS[0], TEXTS[1], f" {TEXTS[2]}"], NAMES, byte_tokenizer)
    assert [len(document.bytes) for document in units.documents] == [3, 1, 1]


def test_sums_over_the_file_are_the_figures(evaluated, tiny_shards):
    found, metrics = losses.read(evaluated.output), evaluated.metrics
    split = ShardedSplit.open(tiny_shards, "test")
    nats, correct, top5 = found.sums["float"].sum(axis=0)
    assert nats / math.log(2) / found.bytes.sum() == pytest.approx(metrics["test_bits_per_byte"], rel=1e-12)
    assert nats / found.tokens.sum() == pytest.approx(metrics["test_loss"], rel=1e-12)
    assert (correct / split.num_tokens, top5 / split.num_tokens) == (
        metrics["test_accuracy"],
        metrics["test_top5_accuracy"],
    )
    assert [document.name for document in found.documents] == ["test-0"]


def test_settings_and_losses_by_frequency_are_kept(evaluated):
    found = json.loads((evaluated.output / "evaluation.json").read_text())
    assert found["settings"]["model"]["num_layers"] == 2
    assert found["settings"]["train"]["peak_learning_rate"] == 1e-3
    assert found["settings"]["evaluate"]["prompts"][0] == "To be, or"
    rows = found["loss_by_frequency"]["float"]
    assert sum(row["tokens"] for row in rows) == found["protocol"]["tokens"]
    assert rows[0]["occurrences"] == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda line: line[:-10], ":1: can't be read"),
        (lambda line: line.replace('"nats": [', '"nats": [1.0, '), "different lengths"),
        (lambda line: line.replace('"correct": [', '"correct": [NaN], "was": ['), "isn't finite"),
        (lambda line: line.replace('"sha256"', '"sha"'), "can't be read"),
        (lambda line: "", "no line"),
    ],
)
def test_damaged_file_is_refused_by_name(evaluated, tmp_path, change, fault):
    text = (evaluated.output / losses.NAME).read_text()
    (tmp_path / losses.NAME).write_text(change(text))
    with pytest.raises(IntegrityError, match=f"{losses.NAME}.*{fault}"):
        losses.read(tmp_path)


def test_evaluation_of_an_older_ava_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(IntegrityError, match=r"keeps no losses by document.*run `ava evaluate` again"):
        losses.read(tmp_path)
