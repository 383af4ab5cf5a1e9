"""The balance loss reaches the routers whoever computes the loss, once, and in proportion to what a trainer does."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import GradientState
from torch.nn import functional as F

from ava_core.losses import UnifiedLoss
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.routing import ROUTERS, update_expert_bias
from ava_core.training.optimizers import curvature_generator, sampled_label_gradients

WEIGHTS = {"balance_loss_weight": 3.0, "router_z_loss_weight": 0.2, "router_diversity_weight": 0.5}
NONE = dict.fromkeys(WEIGHTS, 0.0)


def outside(output, tokens, divisor=1.0):
    """A loss that somebody else computes, from the logits."""
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) / divisor


def gradients(model, tokens, loss, *, labels=True, reentrant=None, **inputs):
    """Of `loss(output)` after one pass in training, by parameter."""
    model.train()
    model.zero_grad()
    model.gradient_checkpointing_disable()
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    loss(model(tokens, labels=tokens if labels else None, **inputs)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def differs(one, other):
    return any((one[name] - other[name]).abs().max() > 1e-3 for name in one)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_loss_on_logits_trains_the_routers_as_the_models_own_loss_does(make_model, tokens, router, reentrant, labels):
    model = make_model(router=router, num_layers=2, **WEIGHTS)
    own = gradients(model, tokens, lambda output: output.loss)
    pure = gradients(make_model(router=router, num_layers=2, **NONE), tokens, lambda output: output.loss)
    found = gradients(
        model, tokens, lambda output: outside(output, tokens), labels=labels, reentrant=reentrant, use_cache=False
    )
    assert differs(own, pure)
    assert_same(found, own, rtol=1e-4, atol=1e-5)


@pytest.fixture
def group():
    """A process group of one, as every rank of several has one."""
    from torch import distributed

    already = distributed.is_initialized()
    if not already:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    if not already:
        distributed.destroy_process_group()


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", ["outside", "own"])
def test_a_wrapper_through_which_all_outputs_pass_changes_nothing(make_model, tokens, group, kind, labels):
    """DistributedDataParallel where it looks for unused parameters, as HF's Trainer asks it to."""
    model = make_model(num_layers=2, **WEIGHTS)
    own = gradients(model, tokens, lambda output: output.loss)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    model.zero_grad()
    output = wrapped.train()(tokens, labels=tokens if labels or kind == "own" else None)
    (outside(output, tokens) if kind == "outside" else output.loss).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_same(found, own, rtol=1e-4, atol=1e-5)


def test_padding_counts_nothing_in_a_loss_on_logits_either(make_model, tokens):
    model, mask = make_model(**WEIGHTS), torch.ones_like(tokens)
    mask[0, -5:] = 0
    labels = tokens.masked_fill(mask == 0, -100)

    def own(output):
        return output.loss

    def other(output):
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    found = []
    for loss, given in ((own, labels), (other, None)):
        model.train().zero_grad()
        loss(model(tokens, labels=given, attention_mask=mask)).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert_same(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [True, False])
def test_who_adds_the_auxiliary_loss_himself_does_not_count_it_twice(make_model, tokens, labels):
    model = make_model(**WEIGHTS)
    own = gradients(model, tokens, lambda output: output.loss)
    added = gradients(model, tokens, lambda output: outside(output, tokens) + output.aux_loss, labels=labels)
    assert_same(added, own, rtol=1e-4, atol=1e-5)
    tripled = gradients(model, tokens, lambda output: outside(output, tokens) + 3 * output.aux_loss, labels=labels)
    model.config.balance_loss_weight, model.config.router_z_loss_weight = 9.0, 0.6
    model.config.router_diversity_weight = 1.5
    assert_same(tripled, gradients(model, tokens, lambda output: output.loss), rtol=1e-4, atol=1e-5)


def test_parts_of_the_models_loss_can_be_taken_apart(make_model, tokens):
    model = make_model(**WEIGHTS)
    own = gradients(model, tokens, lambda output: output.loss)
    main = gradients(model, tokens, lambda output: output.main_loss)
    assert_same(main, gradients(make_model(**NONE), tokens, lambda output: output.loss), rtol=1e-4, atol=1e-5)
    aux = gradients(model, tokens, lambda output: output.aux_loss)
    assert_same({name: main[name] + aux.get(name, 0) for name in main}, own, rtol=1e-4, atol=1e-5)


def test_evaluation_and_passes_without_gradients_add_nothing(make_model, tokens):
    model, plain = make_model(**WEIGHTS), make_model(**NONE)
    found = []
    for each in (model, plain):
        each.eval()
        outside(each(tokens), tokens).backward()
        found.append({name: p.grad for name, p in each.named_parameters()})
    assert_same(*found)
    with torch.no_grad():
        logits = model.train()(tokens).logits
        assert not logits.requires_grad
        assert torch.equal(logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("value", [0.0, 1000.0])
def test_weight_changed_in_the_configuration_is_in_force_at_once(make_model, tokens, value):
    model = make_model(**NONE)
    for loss in (lambda output: output.loss, lambda output: outside(output, tokens)):
        model.config.balance_loss_weight = value
        found = gradients(model, tokens, loss)
        assert_same(found, gradients(make_model(**{**NONE, "balance_loss_weight": value}), tokens, loss))
        model.config.balance_loss_weight = 0.0
        assert differs(found, gradients(model, tokens, loss)) == (value > 0)


def test_a_loss_function_of_ones_own_weighs_for_itself(make_model, tokens):
    model = make_model(**WEIGHTS)
    model.loss_function = UnifiedLoss.standard()
    found = gradients(model, tokens, lambda output: output.loss)
    assert_same(found, gradients(make_model(**NONE), tokens, lambda output: output.loss), rtol=1e-4, atol=1e-5)


def test_curvature_knows_no_auxiliary_loss(make_model, tokens):
    found = []
    for weights in (WEIGHTS, NONE):
        model = make_model(**weights).train()
        sums, _ = sampled_label_gradients(model, [{"input_ids": tokens}], curvature_generator(0, 0))
        found.append({name: sums[p] for name, p in model.named_parameters() if p in sums})
    assert_same(*found)


class Loop:
    """What HF's Trainer is to a model: a step up the stack that calls train() and divides."""

    def __init__(self, micro_batches, loss_scale=None, coefficient=None):
        self.current_gradient_accumulation_steps = micro_batches
        scaler = None if loss_scale is None else SimpleNamespace(get_scale=lambda: loss_scale)
        self.accelerator = SimpleNamespace(scaler=scaler)
        self.args = SimpleNamespace(router_aux_loss_coef=coefficient)
        self.state = SimpleNamespace(global_step=0)
        self.scale = (loss_scale or 1.0) / micro_batches

    def training_step(self, model, tokens, loss):
        model.train()
        (loss(model(tokens)) * self.scale).backward()


def test_gradient_follows_what_a_trainer_does_to_its_loss(make_model, tokens):
    model = make_model(**WEIGHTS)
    once = gradients(model, tokens, lambda output: outside(output, tokens))
    for micro_batches, loss_scale in ((1, None), (4, None), (8, 1024.0), (1, 65536.0)):
        model.zero_grad()
        trainer = Loop(micro_batches, loss_scale)
        for _ in range(micro_batches):
            trainer.training_step(model, tokens, lambda output: outside(output, tokens))
        found = {name: p.grad / (loss_scale or 1.0) for name, p in model.named_parameters()}
        assert_same(found, once, rtol=1e-4, atol=1e-5)
    assert model.train().model.auxiliary_scale == 1.0  # no trainer any more


def test_coefficient_among_a_trainers_arguments_becomes_the_models(make_model, tokens):
    model = make_model(**WEIGHTS)
    Loop(1, coefficient=0.25).training_step(model, tokens, lambda output: outside(output, tokens))
    assert model.config.balance_loss_weight == 0.25 * model.config.num_experts
    Loop(1).training_step(model, tokens, lambda output: outside(output, tokens))
    assert model.config.router_aux_loss_coef == 0.25


def test_loop_with_accelerate_divides_by_its_number_of_steps(make_model, monkeypatch):
    model = make_model()
    monkeypatch.setattr(GradientState, "num_steps", 5)
    assert model.train().model.auxiliary_scale == 0.2
    model.model.auxiliary_scale = 7.0  # a loop of one's own, after train()
    model.eval()
    assert model.model.auxiliary_scale == 7.0


def test_expert_bias_moves_once_per_step_of_a_trainer_by_the_loads_of_all_its_micro_batches(make_model, tokens):
    model = make_model(router="expert_bias", num_layers=2, expert_bias_update_rate=0.25)
    trainer, routers = Loop(2), [layer.moe.router for layer in model.model.layers]
    batches, loads = [tokens, tokens.flip(0) + 1, tokens - 1], []
    for batch in batches[:2]:
        statistics = model.train()(batch).router_statistics
        loads.append(torch.stack([layer.load_E for layer in statistics]))
        trainer.training_step(model, batch, lambda output: output.logits.sum())
        model.eval()(batch)  # an evaluation between them counts nothing
    assert not any(router.expert_bias.any() for router in routers)
    trainer.state.global_step = 1
    trainer.training_step(model, batches[2], lambda output: output.logits.sum())
    expected = make_model(router="expert_bias", num_layers=2, expert_bias_update_rate=0.25)
    update_expert_bias(expected, torch.stack(loads).mean(dim=0).unbind())
    for router, layer in zip(routers, expected.model.layers, strict=True):
        assert torch.equal(router.expert_bias, layer.moe.router.expert_bias) and router.expert_bias.any()
    before = routers[0].expert_bias.clone()
    model.train()  # a loop of one's own: nothing moves but by its own call
    for _ in range(2):
        outside(model.train()(tokens), tokens).backward()
    assert torch.equal(routers[0].expert_bias, before)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulated_parts_of_a_batch_add_up_to_its_auxiliary_gradient(make_model, parts):
    """A z-loss is a mean over tokens, so the parts' means, weighted by their shares, give exactly that of the whole."""
    tokens = torch.randint(3, 61, (8, 12), generator=torch.Generator().manual_seed(3))
    found = []
    for weight in (0.0, 5.0):
        model = make_model(num_layers=2, balance_loss_weight=0.0, router_z_loss_weight=weight).train()
        total = 0.0
        for rows in tokens.chunk(parts):
            output = model(rows, labels=rows, num_items_in_batch=torch.tensor(8 * 11))
            output.loss.backward()
            torch.testing.assert_close(output.loss, output.main_loss + output.aux_loss)
            total += weight * output.loss_parts["router_z_loss"]
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    whole = make_model(num_layers=2, balance_loss_weight=0.0, router_z_loss_weight=5.0).train()
    output = whole(tokens, labels=tokens)
    torch.testing.assert_close(total, 5.0 * output.loss_parts["router_z_loss"])
    aux = torch.autograd.grad(output.aux_loss, list(whole.parameters()), allow_unused=True)
    for (name, _), gradient in zip(whole.named_parameters(), aux, strict=True):
        if gradient is not None:
            torch.testing.assert_close(found[1][name] - found[0][name], gradient, rtol=1e-3, atol=1e-4)


def test_parts_of_unequal_size_have_their_share(make_model, tokens):
    """Where half of a part's labels are ignored, its auxiliary losses count half."""
    model = make_model(**WEIGHTS).train()
    labels = tokens.clone()
    labels[1] = -100
    half = model(tokens, labels=labels, num_items_in_batch=22).aux_loss
    torch.testing.assert_close(2 * half, model(tokens, labels=tokens).aux_loss)
    nothing = model(tokens, labels=torch.full_like(tokens, -100), num_items_in_batch=22)
    assert nothing.loss == nothing.aux_loss == 0


def test_router_logits_leave_the_balance_to_the_model_unless_it_has_none(make_model, tokens):
    for weight, carried in ((0.5, False), (0.0, True)):
        model = make_model(balance_loss_weight=weight)
        logits = model.train()(tokens, output_router_logits=True).router_logits
        assert all(layer.requires_grad is carried for layer in logits)
        assert model.eval()(tokens, output_router_logits=True).router_logits[0].requires_grad


def test_other_tools_find_and_write_the_names_that_they_know(make_model, tmp_path):
    model = make_model(balance_loss_weight=0.01)
    config = model.config
    assert (config.num_experts_per_tok, config.num_local_experts) == (config.num_experts_per_token, config.num_experts)
    assert (config.output_router_logits, config.auto_map) == (False, {})
    config.router_aux_loss_coef = config.router_aux_loss_coef
    assert config.balance_loss_weight == 0.01
    config.router_aux_loss_coef = 0.5
    assert config.balance_loss_weight == 0.5 * config.num_experts
    config.num_experts_per_tok = 3
    with pytest.raises(ValueError, match=r"router_aux_loss_coef = -1: must be >= 0"):
        config.router_aux_loss_coef = -1
    model.save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text()
    assert not any(name in written for name in ("auto_map", "router_aux_loss_coef", 'num_experts_per_tok"'))
    loaded = EnhancedMoEForCausalLM.from_pretrained(tmp_path, router_aux_loss_coef=0.25, output_router_logits=True)
    assert (loaded.config.num_experts_per_token, loaded.config.balance_loss_weight) == (3, 2.0)
    assert loaded.config.output_router_logits
