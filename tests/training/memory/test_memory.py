"""What layers keep is measured rightly, the fewest layers recompute, and recomputing changes no bit."""

import contextlib

import pytest
import torch

from ava_core.config.activations import LayerMemory
from ava_core.config.estimate import memory_parts
from ava_core.config.hardware import GIB
from ava_core.config.optimizers import OPTIMIZERS
from ava_core.config.parameters import Parameter
from ava_core.config.precision import WIDTHS
from ava_core.config.train import TrainConfig
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.memory.measure import measure, recompute
from ava_core.training.memory.plan import MemoryPlan, plan_memory
from ava_core.training.precision import weight_dtype

VOCABULARY = 64


def make_model(layers=3, **changes):
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "num_attention_heads": 2, "num_ffn_experts": 4, "expert_intermediate_size": 32}
    return EnhancedMoEForCausalLM(
        EnhancedMoEConfig(vocab_size=VOCABULARY, num_layers=layers, **{**fields, **changes})
    ).train()


def settings(micro=2, length=64, **fields):
    return TrainConfig(
        sequence_length=length, micro_batch_size=micro, global_batch_size=micro, **{"precision": "bf16", **fields}
    )


def kept_by_autograd(model, config):
    """Bytes that the trunk's graph of one micro-batch really holds apart from parameters; each storage once."""
    model = model.to(weight_dtype(config))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    torch.manual_seed(0)  # the tokens that `measure` draws, which go to the same experts
    tokens = torch.randint(VOCABULARY, (config.micro_batch_size, config.sequence_length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=tokens)
    return sum(size for size, _ in held.values())


@pytest.mark.parametrize(
    ("precision", "micro", "length", "tolerance"),
    [
        ("bf16", 2, 64, 0.01),  # the whole micro-batch is measured
        ("fp32", 2, 64, 0.01),
        ("bf16", 24, 256, 0.05),  # a third of it is
        ("fp32", 24, 256, 0.05),
    ],
)
def test_measured_bytes_are_those_that_autograd_keeps(precision, micro, length, tolerance):
    config = settings(micro, length, precision=precision)
    measured = measure(make_model(), config)
    loss = micro * length * 32 * WIDTHS[precision] + VOCABULARY * 32 * 4  # gradients of hidden and head
    assert sum(measured.saved) + measured.outside - loss == pytest.approx(
        kept_by_autograd(make_model(), config), rel=tolerance
    )
    assert max(measured.saved) < 1.2 * min(measured.saved)
    assert all(0 < kept < saved / 4 for kept, saved in zip(measured.kept, measured.saved, strict=True))


def test_measuring_leaves_the_model_and_the_random_state_as_they_were():
    model = make_model(dropout=0.1, router_jitter=0.1).eval()
    model.model.layers[1].train()
    recompute(model, (2,))
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure(model, settings())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])
    assert [layer.training for layer in model.model.layers] == [False, True, False]
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [False, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_prediction_head_adds_its_loss():
    from ava_core.models.prediction_heads import attach_prediction_heads

    model, config = make_model(), settings(2, 64)
    plain = measure(model, config)
    attach_prediction_heads(model, 2)
    hidden, weight = 2 * 64 * 32 * 2, VOCABULARY * 32 * 4
    assert measure(model, config).outside - plain.outside == 2 * (3 * hidden + weight)


def gradients(model, layers, dtype):
    recompute(model.to(dtype), layers)
    model.zero_grad()
    torch.manual_seed(1)
    tokens = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(2))
    output = model(tokens, labels=tokens, return_logits=False)
    output.loss.backward()
    return output.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_subset_of_recomputed_layers_changes_a_bit(dtype):
    model = make_model(dropout=0.1, router_jitter=0.1)
    loss, plain = gradients(model, (), dtype)
    for subset in [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)]:
        again, recomputed = gradients(model, subset, dtype)
        assert torch.equal(again, loss)
        assert recomputed.keys() == plain.keys()
        assert all(torch.equal(recomputed[name], plain[name]) for name in plain), subset


def test_only_the_layers_that_were_asked_for_run_twice():
    model = make_model()
    runs = [0, 0, 0]
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    gradients(model, (0, 2), torch.float32)
    assert runs == [2, 1, 2]
    gradients(model, (), torch.float32)
    assert runs == [3, 2, 3]


def test_peak_by_hand():
    layers = LayerMemory(saved=(100, 100, 100), kept=(10, 10, 10), outside=5)
    # All saved: at the head 300 + head; in the last layer's backward 300 + 100 of gradients.
    assert layers.peak(0, head=50) == 5 + 400
    assert layers.peak(0, head=150) == 5 + 450
    # The first recomputes: 10 + 200 at the end; 10 + 200 + 100 in the last layer; 10 + 200 in the first.
    assert layers.peak(1, head=0) == 5 + 310
    # All do: 30, then the last one's 100 and its gradients.
    assert layers.peak(3, head=0) == 5 + 230
    # Of attention's probabilities, which are the largest tensor, there are two gradients at once.
    layers = LayerMemory(saved=(100, 100, 100), kept=(10, 10, 10), outside=5, largest=(60, 60, 60))
    assert (layers.peak(0, head=50), layers.peak(3, head=0)) == (5 + 460, 5 + 290)


def test_largest_tensor_is_attentions_probabilities_where_it_has_explicit_products(monkeypatch):
    monkeypatch.setattr("ava_core.models.attention._native_can", lambda *_: False)
    measured = measure(make_model(), settings(micro=2, length=256, precision="bf16"))
    assert measured.largest == (2 * 2 * 256 * 256 * 2,) * 3  # batch, heads, queries, keys, bytes


@pytest.fixture
def quiet_process(monkeypatch):
    """A process whose size doesn't change between two plans."""
    monkeypatch.setattr("ava_core.training.memory.plan._present_bytes", lambda: 300 << 20)


def planned(budget=None, **fields):
    return plan_memory(make_model(6), settings(16, 128, memory_budget=budget, **fields))


@pytest.mark.slow
def test_the_fewest_layers_recompute(quiet_process):
    none, every = planned(), planned(gradient_checkpointing=True)
    assert (none.layers_recomputed, every.layers_recomputed) == ((), tuple(range(6)))
    assert planned(none.total_bytes / GIB).layers_recomputed == ()
    chosen = planned((none.total_bytes - 1) / GIB)
    assert chosen.layers_recomputed == (0,)
    totals = []
    for share in (0.2, 0.4, 0.6, 0.8):
        budget = none.total_bytes - share * (none.total_bytes - every.total_bytes)
        plan = planned(budget / GIB)
        assert plan.total_bytes <= budget
        totals.append(len(plan.layers_recomputed))
    assert totals == sorted(totals) and len(set(totals)) > 2


def test_budget_that_cannot_hold_is_refused_in_one_line(quiet_process):
    with pytest.raises(
        ConfigError, match=r"memory_budget = 0\.1 GiB: .* all 6 layers recompute.*micro_batch_size \(now 16\)"
    ) as caught:
        planned(0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_optimizer_state_is_what_the_optimizer_allocates(optimizer, precision, quiet_process):
    from ava_core.training.optimizers import build_optimizer

    config = settings(optimizer=optimizer, precision=precision, schedule="constant")
    model = make_model()
    plan = plan_memory(model, config)
    model.to(weight_dtype(config))
    built = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with contextlib.suppress(AttributeError):
        built.wants_curvature = False
    built.step()
    state = [value for values in built.state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    allocated = sum(value.nbytes for value in state if value.numel() > 1)
    if optimizer == "sophia":  # its curvature comes later
        allocated += sum(4 * parameter.numel() for parameter in model.parameters())
    assert plan.parts["optimizer"] == pytest.approx(allocated, rel=0.001)


def test_zero_divides_what_it_partitions(quiet_process):
    trained = [Parameter(name, tuple(p.shape)) for name, p in make_model().named_parameters()]
    parts = [
        memory_parts(trained, settings(zero_stage=stage, optimizer="adamw"), 0, 0, ranks=4, gpu=False)
        for stage in range(4)
    ]
    for name, first in (("optimizer", 1), ("gradients", 2), ("weights", 3)):
        sizes = [part[name] for part in parts]
        assert all(size == (sizes[0] if stage < first else sizes[0] // 4) for stage, size in enumerate(sizes)), name


def test_plan_is_applied_and_told(caplog):
    caplog.set_level("INFO")
    model = make_model()
    plan = MemoryPlan(layers_recomputed=(0, 1), parts={"process": GIB, "activations": GIB // 2})
    plan.apply(model)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, True, False]
    assert model.model.gradient_checkpointing
    plan.compare(GIB)
    assert caplog.messages == [
        "memory: about 1.50 GiB (process 1.00, activations 0.50); 2 of 3 layers recompute",
        "memory: 1.00 GiB at the peak, 1.50 estimated",
    ]
