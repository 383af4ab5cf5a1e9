"""The counts against the real model, and the memory against what autograd really keeps."""

import itertools
import math

import pytest

from ava_core.config import resolve
from ava_core.config.activations import layer_memory
from ava_core.config.estimate import estimate
from ava_core.config.hardware import GIB
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import parameters_of
from ava_core.config.presets import FOLDER, names
from ava_core.config.train import TrainConfig

VOCABULARY = 311
BASE = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_ffn_experts": 4,
    "expert_intermediate_size": 64,
}
VARIANTS = [
    {},
    {"num_layers": 1, "tie_word_embeddings": False},
    {"num_layers": 3, "gating_residuals": False, "qk_norm": "none"},
    {"head_dim": 32, "num_key_value_heads": 4, "num_shared_experts": 2},
    {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0, "num_experts_per_token": 4},
    {"num_zero_experts": 3, "num_copy_experts": 0, "num_constant_experts": 5, "num_experts_per_token": 9},
    {"router": "confidence", "max_experts_per_token": 3},
    {"router": "hierarchical", "num_expert_groups": 4, "num_groups_per_token": 2, "num_layers": 3},
    {"router": "hierarchical", "num_expert_groups": 2, "gating_residuals": False},
    {"router": "hierarchical"},
    {"router": "expert_bias"},
    {"router": "expert_choice", "qk_norm": "projection"},
]


def build(**changes):
    from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM

    return EnhancedMoEForCausalLM(EnhancedMoEConfig(vocab_size=VOCABULARY, **{**BASE, **changes}))


@pytest.mark.parametrize("changes", VARIANTS)
def test_parameters_are_counted_as_the_model_has_them(changes):
    sizes = estimate(ModelConfig(**{**BASE, **changes}), TrainConfig(precision="bf16"), VOCABULARY)
    assert sizes.parameters == sum(parameter.numel() for parameter in build(**changes).parameters())
    assert sizes.parts["weights"] == sizes.parts["gradients"] == 2 * sizes.parameters
    exact = estimate(ModelConfig(**{**BASE, **changes}), TrainConfig(precision="fp32"), VOCABULARY)
    assert exact.parts["weights"] == exact.parts["gradients"] == 4 * sizes.parameters


@pytest.mark.parametrize("changes", VARIANTS)
def test_parameters_have_the_names_and_shapes_that_the_model_gives_them(changes):
    listed = {}
    for parameter in parameters_of(ModelConfig(**{**BASE, **changes}), VOCABULARY):
        layers = build(**changes).config.num_layers
        for i in range(layers - parameter.copies, layers) if "*" in parameter.name else (0,):
            listed[parameter.name.replace("*", str(i))] = parameter.shape
    assert listed == {name: tuple(parameter.shape) for name, parameter in build(**changes).named_parameters()}


@pytest.mark.parametrize("changes", VARIANTS)
def test_active_parameters_leave_out_the_experts_that_a_token_cannot_have(changes):
    model = ModelConfig(**{**BASE, **changes})
    slots = model.max_experts_per_token if model.router == "confidence" else model.num_experts_per_token
    idle = 0
    for name, parameter in build(**changes).named_parameters():
        if ".experts." in name:  # (experts, rows, columns)
            idle += parameter[0].numel() * max(0, model.num_ffn_experts - slots)
    sizes = estimate(model, TrainConfig(), VOCABULARY)
    assert sizes.active_parameters == sizes.parameters - idle


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor"])
def test_optimizer_state_has_the_size_that_the_optimizer_allocates(optimizer, precision):
    from ava_core.training.optimizers import build_optimizer

    model, config = build(), TrainConfig(optimizer=optimizer, precision=precision)
    cast(model, precision)
    built = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    built.step()
    state = [value for values in built.state.values() for value in values.values() if hasattr(value, "numel")]
    allocated = sum(value.numel() * value.element_size() for value in state if value.numel() > 1)
    assert estimate(ModelConfig(**BASE), config, VOCABULARY).parts["optimizer"] == allocated


@pytest.mark.parametrize("changes", VARIANTS)
def test_adafactor_keeps_a_value_per_row_and_column_of_each_matrix(changes):
    expected = 0
    for parameter in build(**changes).parameters():
        *stack, rows, columns = (1, *parameter.shape) if parameter.ndim < 2 else parameter.shape
        expected += parameter.numel() if parameter.ndim < 2 else math.prod(stack) * (rows + columns)
    train = TrainConfig(optimizer="adafactor", precision="fp32")
    assert estimate(ModelConfig(**{**BASE, **changes}), train, VOCABULARY).parts["optimizer"] == 4 * expected


def test_average_of_the_weights_is_counted():
    model = ModelConfig(**BASE)
    plain, averaged = (
        estimate(model, TrainConfig(ema={"decay": decay}), VOCABULARY).parts.get("average", 0) for decay in (None, 0.9)
    )
    assert averaged - plain == 4 * sum(parameter.numel() for parameter in build().parameters())


def cast(model, precision):
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to({"bf16": torch.bfloat16, "fp32": torch.float32}[precision])


def _fused_attention(q, k, v, mask):
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def kept_for_backward(layers, precision, sequence, checkpointing, changes):
    """Bytes that autograd keeps in one forward pass, apart from the parameters themselves."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)  # which experts are chosen decides how many rows are padded
    model = build(**changes, num_layers=layers).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    cast(model, precision)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps the address from being reused
        return tensor

    tokens = torch.zeros(4, sequence, dtype=torch.long).random_(VOCABULARY, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens, labels=tokens, return_logits=False)
    return sum(size for size, _ in kept.values())


EVERY_SHAPE = pytest.mark.parametrize(
    ("precision", "sequence", "changes"),
    [
        ("bf16", 64, {}),
        ("bf16", 256, {}),
        ("bf16", 512, {}),
        ("bf16", 64, {"expert_intermediate_size": 256}),
        ("bf16", 64, {"hidden_size": 192, "num_attention_heads": 6, "num_shared_experts": 1}),
        ("fp32", 64, {}),
        ("fp32", 256, {}),
    ],
)


def memory_of_a_layer(precision, sequence, changes, kernels):
    """What autograd keeps of one layer, and the estimate of it.

    The router may give a token zero-computation experts, which keep less; so every expert is an FFN expert here.
    """
    changes = {**changes, "num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0}
    two, three = (kept_for_backward(layers, precision, sequence, False, changes) for layers in (2, 3))
    train = TrainConfig(
        sequence_length=sequence, micro_batch_size=4, global_batch_size=4, precision=precision, steps=100
    )
    layer = layer_memory(ModelConfig(**{**BASE, **changes, "num_layers": 1}), train, VOCABULARY, kernels)
    return three - two, layer.saved[0]


@EVERY_SHAPE
def test_memory_of_a_layer_is_within_a_quarter_of_what_autograd_keeps(precision, sequence, changes, monkeypatch):
    """With PyTorch's own operations and fused attention, as on a GPU."""
    monkeypatch.setenv("AVA_KERNELS", "off")
    monkeypatch.setattr("ava_core.models.attention.attend_by_products", _fused_attention)
    measured, estimated = memory_of_a_layer(precision, sequence, changes, "gpu")
    assert estimated == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("path", ["native", "onednn", "off"])
@EVERY_SHAPE
def test_memory_of_a_layer_on_a_cpu_is_within_a_quarter_of_what_autograd_keeps(
    path, precision, sequence, changes, monkeypatch
):
    from ava_core import kernels

    if path != "off" and kernels.library.loaded() is None:
        pytest.skip("the native kernels aren't built, or this CPU lacks AVX-512 BF16")
    monkeypatch.setenv("AVA_KERNELS", path)
    measured, estimated = memory_of_a_layer(precision, sequence, changes, path)
    assert estimated == pytest.approx(measured, rel=0.25)


def test_checkpointing_keeps_about_the_residual_stream_of_each_layer():
    measured = kept_for_backward(9, "bf16", 64, True, {}) - kept_for_backward(3, "bf16", 64, True, {})
    sizes = {"sequence_length": 64, "micro_batch_size": 4, "global_batch_size": 4}
    train = TrainConfig(**sizes, precision="bf16", gradient_checkpointing=True)
    few, many = (
        sum(layer_memory(ModelConfig(**{**BASE, "num_layers": count}), train, VOCABULARY, "gpu").kept)
        for count in (3, 9)
    )
    assert many - few == pytest.approx(measured, rel=0.25)


def preset(name):
    return resolve(overrides=[f"preset={name}"]).config


SIZES = {"cpu/small": 50e6, "cpu/medium": 200e6, "gpu/base": 500e6, "gpu/large": 1.5e9}


@pytest.mark.parametrize("name", SIZES)
def test_preset_has_the_promised_size(name):
    config = preset(name)
    sizes = estimate(config.model, config.train, config.tokenizer.vocab_size)
    assert sizes.parameters == pytest.approx(SIZES[name], rel=0.1)
    assert sizes.active_parameters < sizes.parameters / 2
    assert config.train.sequence_length == config.model.max_position_embeddings


def test_there_are_the_five_presets_and_each_is_bigger_than_the_one_before():
    assert set(names()) == {"cpu/tiny", *SIZES}
    counts = [estimate(c.model, c.train, c.tokenizer.vocab_size).parameters for c in map(preset, ["cpu/tiny", *SIZES])]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(counts))


@pytest.mark.parametrize("name", names())
def test_preset_fits_the_memory_from_which_auto_chooses_it(name):
    import yaml

    rules = yaml.safe_load((FOLDER / "auto" / "rules.yaml").read_text())["rules"]
    needs = next(rule for rule in rules if rule["preset"] == name).get("needs", {})
    memory = needs.get("gpu_memory_gib") or needs.get("memory_gib") or 4
    config = preset(name)
    kernels = "gpu" if name.startswith("gpu/") else "off"
    total = estimate(config.model, config.train, config.tokenizer.vocab_size, kernels).total_bytes / GIB
    assert total <= memory


@pytest.mark.parametrize("name", names())
def test_no_preset_sets_a_key_that_may_be_null(name):
    """Null in a file means "as the layers below say", so the printed values couldn't undo such a preset."""
    import yaml

    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    nullable = {"head_dim", "capacity_factor", "document_separator"}
    assert not nullable & {key for section in written.values() for key in section}
