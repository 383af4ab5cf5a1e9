"""Scores against a computation that takes the protocol literally, token by token."""

import math

import numpy as np
import pytest
import torch

from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError
from ava_core.evaluation.scoring import Score, score
from ava_core.generation.loading import load_model
from tests.conftest import VOCAB_SIZE

LENGTH = 64
UNIT = 50


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model)[0]


@pytest.fixture(scope="module")
def tokens(tiny_shards):
    """A stream that has two document boundaries in it, and whose last window is not full."""
    stream = ShardedSplit.open(tiny_shards, "test").tokens
    end = int(np.flatnonzero(stream == 0)[0])
    return np.concatenate([stream[end - 90 : end + 1], stream[: 2 * LENGTH + 7], [0], stream[300:330]])


def run(model, tokens, tmp_path, name="kept.json", batch_size=2, **options):
    return score(
        model,
        tokens,
        sequence_length=LENGTH,
        boundary_token_id=0,
        token_classes=np.zeros(VOCAB_SIZE, np.int64),
        units=np.arange(len(tokens)) // UNIT,
        batch_size=batch_size,
        kept=tmp_path / name,
        **options,
    )


def literal_nats(model, tokens) -> list[float]:
    """Each token's loss, given what precedes it in its window and its document, the boundary in between included."""
    nats = []
    for index, token in enumerate(tokens.tolist()):
        first = index - index % LENGTH
        context = [0 if position < 0 else int(tokens[position]) for position in range(first - 1, index)]
        begins = max((position for position, value in enumerate(context) if value == 0), default=0)
        with torch.no_grad():
            logits = model(torch.tensor([context[begins:]])).logits[0, -1]
        nats.append(float(-logits.log_softmax(-1)[token]))
    return nats


def test_score_is_the_literal_protocol(model, tokens, tmp_path):
    result = run(model, tokens, tmp_path)
    expected = literal_nats(model, tokens)
    assert result.tokens == len(tokens)
    assert result.nats == pytest.approx(sum(expected), rel=1e-5)
    by_position = [math.fsum(expected[position::LENGTH]) for position in range(LENGTH)]
    assert result.position_nats == pytest.approx(by_position, rel=1e-4)
    by_unit = [math.fsum(expected[first : first + UNIT]) for first in range(0, len(expected), UNIT)]
    assert result.unit_nats == pytest.approx(by_unit, rel=1e-5)


def test_sums_by_unit_and_by_frequency_are_those_of_all_tokens(model, tokens, tmp_path):
    result = run(model, tokens, tmp_path)
    assert math.fsum(result.unit_nats) == pytest.approx(result.nats, rel=1e-12)
    assert (sum(result.unit_correct), sum(result.unit_top5)) == (result.correct, result.top5)
    assert math.fsum(result.frequency_nats) == pytest.approx(result.nats, rel=1e-12)
    counts = np.bincount(tokens)
    assert result.frequency_tokens[0] == (counts == 1).sum()
    assert result.frequency_tokens[2] == counts[(counts >= 4) & (counts < 8)].sum()


def test_batch_size_does_not_matter(model, tokens, tmp_path):
    one, four = run(model, tokens, tmp_path, "1", batch_size=1), run(model, tokens, tmp_path, "4", batch_size=4)
    assert one.nats == pytest.approx(four.nats, rel=1e-6)
    assert (one.tokens, one.correct, one.top5) == (four.tokens, four.correct, four.top5)
    assert [layer.chosen for layer in one.layers] == [layer.chosen for layer in four.layers]


def test_every_scored_token_is_counted_with_its_experts(model, tokens, tmp_path):
    result = run(model, tokens, tmp_path)
    assert sum(result.position_tokens) == len(tokens)
    for layer in result.layers:
        assert sum(layer.chosen) == model.config.num_experts_per_token * len(tokens)
        assert 0 < layer.router_entropy / len(tokens) < math.log(model.config.num_experts)


def test_accuracy_counts_argmax_and_the_first_five(model, tokens, tmp_path):
    windows = tokens[: LENGTH + 1]
    inputs = torch.from_numpy(np.concatenate([[0], windows[: LENGTH - 1]]).astype(np.int64))[None]
    document = torch.cumsum(inputs == 0, dim=-1)
    with torch.no_grad():
        top = model(inputs, document_ids=document).logits[0].topk(5).indices
    targets = torch.from_numpy(windows[:LENGTH].astype(np.int64))
    result = run(model, windows[:LENGTH], tmp_path)
    assert result.correct == int((top[:, 0] == targets).sum())
    assert result.top5 == int((top == targets[:, None]).any(dim=1).sum())


class Constant(torch.nn.Module):
    """Gives every token the same logit."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.device = model.device

    def forward(self, **arguments):
        outputs = self.model(**arguments)
        outputs.logits = torch.zeros_like(outputs.logits)
        return outputs


def test_undecided_model_scores_ln_v_and_is_never_right(model, tokens, tmp_path):
    result = run(Constant(model), tokens, tmp_path)
    assert result.nats / result.tokens == pytest.approx(math.log(model.config.vocab_size), rel=1e-6)
    assert result.correct == result.top5 == 0


class Killed(Exception):
    pass


def test_killed_scoring_goes_on_with_the_same_bits(model, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("ava_core.evaluation.scoring.SAVE_EVERY_SECONDS", 0.0)
    whole = run(model, tokens, tmp_path, "whole.json", batch_size=1)
    done = []

    def die_at_the_third(tokens_done, **figures):
        done.append(tokens_done)
        if len(done) == 3:
            raise Killed

    with pytest.raises(Killed):
        run(model, tokens, tmp_path, batch_size=1, advance=die_at_the_third)
    assert Score.load(tmp_path / "kept.json").batches == 2
    again = []
    resumed = run(model, tokens, tmp_path, batch_size=1, advance=lambda done, **figures: again.append(done))
    assert again[0] == done[2]
    assert resumed == whole
    assert (tmp_path / "kept.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_damaged_weights_end_in_one_line(tiny_model, tokens, tmp_path):
    broken = load_model(tiny_model)[0]
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(AvaError, match="the loss is nan at test token 128: the model is damaged"):
        run(broken, tokens, tmp_path)
