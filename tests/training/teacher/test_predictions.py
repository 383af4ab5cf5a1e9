"""A teacher's predictions on the disk, held against the teacher itself."""

import numpy as np
import pytest
import torch

from ava_core.data.shards import ShardedSplit
from ava_core.errors import IntegrityError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.training.pretraining import packed_document_ids
from ava_core.training.teacher.computing import Reading
from ava_core.training.teacher.predictions import Predictions

CONTEXT = 32


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_model, tiny_shards):
    model = EnhancedMoEForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    split = ShardedSplit.open(tiny_shards, "train")
    predictions = Predictions(tmp_path_factory.mktemp("predictions"), 1_000, 8, size=300)
    reading = Reading(model, split, CONTEXT, 1.5)
    told = []
    for part in range(predictions.parts):
        reading.write(predictions, part, told.append)
    assert told[-1] == 100 and [predictions.span(part)[1] for part in range(4)] == [300, 600, 900, 1_000]
    return model, split, predictions


def reference(model, split, position, begin):
    """The teacher's log-probabilities at a position of a part that begins at `begin`, from its own window."""
    first = begin + (position - begin) // (CONTEXT // 2) * (CONTEXT // 2)
    start = max(first - CONTEXT // 2, 0)
    inputs = split.tokens[start : position + 1].astype(np.int64)[None]
    with torch.no_grad():
        logits = model(
            torch.from_numpy(inputs), document_ids=packed_document_ids(inputs, split.boundary_token_id)
        ).logits
    return (logits[0, -1] / 1.5).log_softmax(-1)


@pytest.mark.parametrize("position", [0, 15, 16, 40, 299, 300, 317, 899, 999])
def test_each_position_has_what_the_teacher_gives_it(written, position):
    model, split, predictions = written
    found = predictions.read(np.array([position]), 1)
    expected = reference(model, split, position, position // 300 * 300)
    ids = found.ids_TK[0, 0].long()
    assert set(ids.tolist()) == set(expected.topk(8).indices.tolist())
    torch.testing.assert_close(found.log_probs_TK1[0, 0, :-1], expected[ids], atol=5e-3, rtol=5e-3)
    assert float(found.log_probs_TK1.exp().sum()) == pytest.approx(1, abs=1e-6)
    rest = 1 - float(expected[ids].exp().sum())
    assert float(found.log_probs_TK1[0, 0, -1].exp()) == pytest.approx(rest, abs=2e-3)


def test_windows_reach_over_parts_and_match_their_positions(written):
    _, _, predictions = written
    windows = predictions.read(np.array([290, 280]), 20)
    assert windows.ids_TK.shape == (2, 20, 8) and windows.log_probs_TK1.shape == (2, 20, 9)
    assert windows.ids_TK[0, :10].equal(windows.ids_TK[1, 10:])
    single = predictions.read(np.array([305]), 1)
    assert windows.ids_TK[0, 15].equal(single.ids_TK[0, 0])


def test_a_part_that_was_changed_is_not_whole_and_one_that_is_none_is_named(written, tmp_path):
    _, _, predictions = written
    assert all(predictions.is_whole(part) for part in range(4)) and not predictions.is_whole(4)
    other = Predictions(tmp_path, 1_000, 8, size=300)
    other.path(0).write_bytes(b"nothing")
    assert not other.is_whole(0)
    with pytest.raises(IntegrityError, match=r"part-00000.safetensors: can't be read .*: delete it"):
        other.read(np.array([0]), 4)
