"""Batches: a pure function of seed and step; windows that score every token once."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.data.batches import (
    TrainingBatches,
    bits_per_byte,
    count_scoring_windows,
    document_ids,
    scoring_windows,
)
from ava_core.errors import AvaError

stream = st.integers(20, 400).map(lambda size: np.arange(1, size + 1, dtype=np.uint16))


@settings(deadline=None)
@given(stream, st.integers(1, 15), st.integers(0, 30))
def test_every_target_follows_its_input(tokens, length, step):
    batch = TrainingBatches(tokens, length, 4, seed=7).batch(step)
    assert batch.shape == (4, length + 1)
    assert batch.dtype == np.int64
    assert (np.diff(batch, axis=1) == 1).all()


@settings(deadline=None)
@given(stream, st.integers(1, 15), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_windows_of_an_epoch_don_t_overlap(tokens, length, epoch, seed):
    batches = TrainingBatches(tokens, length, 1, seed)
    steps = range(epoch * batches.windows_per_epoch, (epoch + 1) * batches.windows_per_epoch)
    inputs = np.concatenate([batches.batch(step)[0, :-1] for step in steps])
    assert len(set(inputs.tolist())) == len(inputs)


@settings(deadline=None)
@given(stream, st.integers(0, 30), st.sampled_from([1, 2, 3, 6]))
def test_ranks_share_the_batch_of_a_single_rank(tokens, step, ranks):
    batches = TrainingBatches(tokens, 8, 6, seed=1)
    parts = [batches.batch(step, rank, ranks) for rank in range(ranks)]
    assert np.array_equal(np.concatenate(parts), batches.batch(step))


def test_batch_depends_on_seed_and_step_alone():
    tokens = np.arange(1, 5000, dtype=np.uint16)
    one, two = TrainingBatches(tokens, 16, 8, seed=1), TrainingBatches(tokens, 16, 8, seed=1)
    assert np.array_equal(one.batch(50), two.batch(50))
    assert np.array_equal(one.batch(3), two.batch(3))
    assert not np.array_equal(one.batch(3), one.batch(4))
    assert not np.array_equal(one.batch(3), TrainingBatches(tokens, 16, 8, seed=2).batch(3))


def test_order_of_windows_is_the_one_that_it_has_always_been():
    """Else a run that was stopped under an older version would go on with other batches."""
    batches = TrainingBatches(np.arange(1000, dtype=np.uint16), 16, 8, seed=1337)
    assert batches.batch(0)[:, 0].tolist() == [754, 146, 322, 194, 338, 386, 18, 2]
    assert batches.batch(8)[:, 0].tolist() == [210, 690, 914, 674, 866, 722, 962, 178]  # two epochs meet in batch 7
    assert [zlib.crc32(batches.batch(step).tobytes()) for step in (1, 7)] == [527800259, 1730066377]


def test_ranks_that_don_t_divide_the_batch_are_refused():
    with pytest.raises(AvaError, match=r"train\.global_batch_size = 8: must be a multiple of the 3 ranks"):
        TrainingBatches(np.arange(100), 16, 8, seed=1).batch(0, 0, 3)


def test_stream_shorter_than_one_window_is_refused():
    with pytest.raises(AvaError, match=r"has 16 tokens: train\.sequence_length = 16 needs at least 17"):
        TrainingBatches(np.arange(16), 16, 8, seed=1)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
def test_every_token_is_scored_exactly_once_after_the_token_before_it(size, length, batch_size):
    tokens = np.arange(1, size + 1)
    scored: list[int] = []
    windows = 0
    for batch in scoring_windows(tokens, length, 0, batch_size=batch_size):
        assert batch.inputs.shape == batch.targets.shape == batch.mask.shape
        assert (batch.inputs[batch.mask] == batch.targets[batch.mask] - 1).all()
        scored += batch.targets[batch.mask].tolist()
        windows += len(batch.inputs)
    assert scored == tokens.tolist()
    assert windows == count_scoring_windows(tokens, length)


def test_limit_takes_windows_spread_over_the_stream():
    tokens = np.arange(1, 1001)
    first = [
        int(batch.targets[row, 0])
        for batch in scoring_windows(tokens, 10, 0, limit=4)
        for row in range(len(batch.inputs))
    ]
    assert first == [1, 251, 501, 751]


def test_boundary_token_begins_the_next_document():
    inputs = np.array([[5, 6, 0, 7, 0, 8], [0, 5, 6, 0, 0, 7]])
    assert document_ids(inputs, 0).tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2]]


def test_one_bit_for_each_byte_is_ln_2_nats_for_each_byte():
    assert bits_per_byte(10 * np.log(2), 10) == pytest.approx(1.0)
