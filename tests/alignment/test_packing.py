"""Packed rows: nothing lost, nothing cut, labels only of answers, batches a function of the step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ava_core.alignment.packing import PackedBatches, PackedRows, pack
from ava_core.alignment.tokens import EncodedConversation
from ava_core.losses import IGNORE_INDEX

PAD = 99_999


def conversations(count: int, seed: int = 0) -> list[EncodedConversation]:
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        length = int(random.integers(4, 13))
        learnt = np.arange(length) >= length - int(random.integers(1, 3))
        found.append(EncodedConversation(f"{number}", 100 * number + np.arange(length), learnt, length))
    return found


@given(st.lists(st.integers(1, 16), min_size=1, max_size=60), st.integers(0, 3))
def test_every_item_is_in_one_row_and_no_row_overflows(lengths, seed):
    rows = pack(lengths, 16, seed)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 16 for row in rows)
    # Best fit never has two rows of which both are at most half full.
    assert sum(2 * sum(lengths[item] for item in row) <= 16 for row in rows) <= 1


def test_item_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="the longest is 17: must be <= row_length = 16"):
        pack([3, 17], 16, 0)


def test_labels_are_the_answers_tokens_and_stay_within_their_conversation():
    given = conversations(9)
    rows = PackedRows.of(given, 16, PAD, 0)
    by_token = {int(token): item for item in given for token in item.tokens}
    labelled = rows.labels[rows.labels != IGNORE_INDEX]
    assert sorted(labelled) == sorted(int(t) for item in given for t in item.tokens[item.learnt])
    for row in range(len(rows)):
        for place in np.flatnonzero(rows.labels[row] != IGNORE_INDEX):
            label, token = int(rows.labels[row, place]), int(rows.input_ids[row, place])
            assert label == token + 1 and by_token[label] is by_token[token]
    assert rows.num_bytes.sum() == sum(item.num_bytes for item in given)


def test_conversations_of_a_row_and_its_padding_are_documents_of_their_own():
    rows = PackedRows.of(conversations(5), 16, PAD, 0)
    for tokens, ids in zip(rows.input_ids, rows.document_ids, strict=True):
        owners = [100 if token == PAD else int(token) // 100 for token in tokens]
        assert len(set(zip(owners, ids.tolist(), strict=True))) == len(set(owners)) == len(set(ids.tolist()))


def test_batches_are_a_function_of_the_step_and_each_pass_has_every_row_once():
    rows = PackedRows.of(conversations(40), 16, PAD, 0)
    batches = PackedBatches(rows, 4, 7)
    steps = len(rows)  # 4 passes
    seen = torch.cat([batches.batch(step).input_ids for step in range(steps)])
    for number in range(4):
        part = seen[number * len(rows) : (number + 1) * len(rows)]
        assert sorted(part.tolist()) == sorted(rows.input_ids.tolist())
    assert not torch.equal(seen[: len(rows)], seen[len(rows) : 2 * len(rows)])
    assert torch.equal(batches.batch(3).labels, PackedBatches(rows, 4, 7).batch(3).labels)
    assert torch.equal(batches.batch(3, passed_over=2).input_ids, batches.batch(5).input_ids)


def test_ranks_share_a_batch():
    batches = PackedBatches(PackedRows.of(conversations(40), 16, PAD, 0), 4, 7)
    parts = torch.cat([batches.batch(2, rank, 2).input_ids for rank in range(2)])
    assert torch.equal(parts, batches.batch(2).input_ids)
