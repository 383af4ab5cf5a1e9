"""What the engine makes of an objective: a mean over the terms of the global batch, whatever they are."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ava_core.distributed.ranks import Ranks
from ava_core.losses import IGNORE_INDEX
from ava_core.training.engine.engine import TrainingEngine
from tests.training.engine.pairs import PairObjective, pairs, reward_model
from tests.training.engine.rank_runs import build_engine, masked_windows, on_ranks, settings, tiny, train, windows

ADDITIVE = {"balance_loss_weight": 0.0, "router_z_loss_weight": 0.0, "router": "top_k"}
"""No router losses: those of a batch aren't the mean of those of its parts."""


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-7)


# Masked labels


@pytest.mark.parametrize("micro_batch_size", [2, 4, 8])
def test_loss_and_gradient_are_those_of_the_labelled_tokens_of_all_micro_batches(micro_batch_size):
    batch, model = masked_windows(0), tiny(**ADDITIVE)
    labelled = batch.labels != IGNORE_INDEX
    assert labelled.sum(dim=1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    log_p = model(input_ids=batch.input_ids, document_ids=batch.document_ids).logits.log_softmax(dim=-1)
    nll = -log_p.gather(-1, batch.labels.clamp_min(0)[..., None]).squeeze(-1)
    loss = nll[labelled].sum() / 36
    loss.backward()
    expected = loss.item()

    engine = build_engine(tiny(**ADDITIVE), settings(micro_batch_size=micro_batch_size), Ranks())
    figures = engine.accumulate(batch)
    assert figures["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert_close(gradients(engine.model), gradients(model))
    of_rows = [nll[row][labelled[row]].mean().item() for row in range(8)]
    assert abs(sum(of_rows) / 8 - expected) > 1e-3  # a mean of the rows' means is another figure


def test_no_gradient_at_all_comes_from_a_position_without_a_label():
    engine, seen = build_engine(tiny(), settings(micro_batch_size=8), Ranks()), []
    hook = lambda _, __, output: output.last_hidden_state.register_hook(seen.append) and None  # noqa: E731
    engine.model.model.register_forward_hook(hook)
    batch = masked_windows(0)
    engine.accumulate(batch)
    labelled = batch.labels != IGNORE_INDEX
    (gradient,) = seen
    assert (gradient[~labelled] == 0).all()
    assert (gradient[labelled] != 0).any(dim=-1).all()


def test_micro_batch_without_a_label_counts_nothing_and_a_batch_without_any_is_refused():
    engine = build_engine(tiny(), settings(), Ranks())
    batch = windows(0)
    first = replace(batch, labels=batch.labels.clone().index_fill_(0, torch.arange(2, 8), IGNORE_INDEX))
    alone = build_engine(tiny(), settings(global_batch_size=2), Ranks())
    for one, given in ((engine, first), (alone, first.split(2)[0])):
        figures = one.accumulate(given)
        assert math.isfinite(figures["train_loss"])
    assert_close(gradients(engine.model), gradients(alone.model))
    with pytest.raises(ValueError, match=r"^batch in which nothing is to be learnt: no position has a label$"):
        engine.accumulate(replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX)))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_two_ranks_with_other_numbers_of_labels_give_the_curve_of_one_process(tmp_path, zero_stage):
    options = {"masked": True, **ADDITIVE}
    reference = train(settings(), Ranks(), **options)
    for result in on_ranks(2, tmp_path, {"case": {"zero_stage": zero_stage, "options": options}}):
        assert result["case"]["losses"] == pytest.approx(reference["losses"], abs=1e-5)
        assert result["case"]["norms"] == pytest.approx(reference["norms"], rel=1e-4)
        assert result["case"]["validation"] == pytest.approx(reference["validation"], abs=1e-5)


# Pairs


def build_for_pairs(model: dict | None = None, **overrides) -> TrainingEngine:
    return TrainingEngine(reward_model(**(model or {})), settings(**overrides), Ranks(), PairObjective())


def reference_gradients(weights: dict[str, torch.Tensor], batch, **fields) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss without the routers' part, and gradient of the whole, in a mode in which the model adds nothing itself."""
    model = reward_model(**fields)
    model.load_state_dict(weights)
    output = model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    loss = F.softplus(output.logits[1::2] - output.logits[::2]).mean()
    (loss + output.aux_loss).backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("micro_batch_size", [2, 8])
def test_pairs_of_a_reward_model_are_trained_by_the_same_engine(micro_batch_size):
    engine, batch = build_for_pairs(ADDITIVE, micro_batch_size=micro_batch_size), pairs(0)
    loss, expected = reference_gradients(engine.model.state_dict(), batch, **ADDITIVE)
    figures = engine.accumulate(batch)
    assert figures["train_loss"] == pytest.approx(loss, rel=1e-6)
    assert 0 <= figures["accuracy"] <= 1
    assert_close(gradients(engine.model), expected)


def test_what_the_routers_add_is_counted_once():
    fields = {"router": "top_k", "balance_loss_weight": 1.0, "router_z_loss_weight": 0.1}
    engine, batch = build_for_pairs(fields, micro_batch_size=8), pairs(0)
    _, expected = reference_gradients(engine.model.state_dict(), batch, **fields)
    engine.accumulate(batch)
    assert_close(gradients(engine.model), expected)


def test_routers_and_pairs_that_pull_apart_are_found_by_surgery():
    engine = build_for_pairs({"balance_loss_weight": 20.0, "router": "top_k"}, gradient_surgery=True)
    conflicts = []
    for step in range(4):
        conflicts.append(engine.accumulate(pairs(step))["gradient_conflict"])
        engine.update(1.0)
    assert all(-1 <= conflict <= 1 and conflict for conflict in conflicts)
