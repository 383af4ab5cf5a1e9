"""The section `train.adapter`: what it refuses, and what an estimate knows of it."""

import pytest

from ava_core.config import resolve
from ava_core.config.adapter import AdapterConfig, divide_adapted
from ava_core.config.estimate import estimate
from ava_core.config.parameters import count, parameters_of
from ava_core.errors import ConfigError

LORA = {"train.init": "parent", "train.optimizer": "adamw", "train.adapter.kind": "lora"}


def resolved(**changes):
    settings = LORA | changes
    return resolve(overrides=[f"{key}={value}" for key, value in settings.items() if value is not None]).config


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train.init": None}, r"adapter.kind = lora: is an update of a finished model: name it with init, or --init"),
        ({"train.optimizer": "muon"}, r"optimizer = muon orthogonalises .*: use adamw, and a learning_rate"),
        ({"train.freeze": "[embed*]"}, r"freeze = \['embed\*'\]: all weights of the model are frozen anyway"),
        ({"train.init_schedule": "continue"}, r"init_schedule = continue: .*: use anew"),
        ({"train.zero_stage": 3}, r"zero_stage = 3 cuts up the weights .*: use 2, or less"),
        ({"train.loss.multi_token_weight": 0.3}, r"loss.multi_token_weight = 0.3: prediction heads .*: use 0"),
        ({"train.adapter.kind": "dora"}, r"targets = .*: dora can't be had for experts: use lora"),
        ({"train.adapter.dropout": 0.1}, r"dropout = 0.1: experts can't have it: use 0, or other targets"),
        ({"train.adapter.targets": "[attention, attention]"}, r"names one twice"),
        ({"train.adapter.targets": "[]"}, r"targets"),
        ({"train.adapter.rank": 0}, r"rank"),
        (
            {
                "train.adapter.targets": "[attention]",
                "train.adapter.dropout": 0.1,
                "train.regularization.adaptive": "true",
            },
            r"adapter.dropout = 0.1: regularization.adaptive drives all dropout: leave out one",
        ),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused_in_one_line(changes, line):
    with pytest.raises(ConfigError, match=line) as refusal:
        resolved(**changes)
    assert len(refusal.value.faults) == 1


def test_without_a_kind_the_section_changes_nothing():
    assert resolve().config.train.adapter.kind is None
    assert resolve(overrides=["train.adapter.rank=3"]).config.train.optimizer == "muon"


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("lora", ["attention", "experts", "router", "shared"]), ("dora", ["attention", "shared"])],
)
def test_estimate_counts_the_parameters_that_peft_makes(kind, targets):
    from ava_core.adapters.layers import add_adapter, is_update, peft_config
    from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM

    model = resolve(overrides=["model.num_shared_experts=1", "model.hidden_size=64"]).config.model
    built = EnhancedMoEForCausalLM(EnhancedMoEConfig(**model.model_dump(), vocab_size=256))
    adapter = AdapterConfig(kind=kind, rank=3, targets=targets)
    add_adapter(built, peft_config(adapter))
    trained, whole, _ = divide_adapted(parameters_of(model, 256), adapter)
    assert count(trained) == sum(p.numel() for name, p in built.named_parameters() if is_update(name))
    assert count(whole) == sum(p.numel() for name, p in built.named_parameters() if not is_update(name))


def test_adapter_of_the_experts_takes_less_memory_than_all_weights_and_keeps_sums_of_them():
    small = resolve(overrides=["preset=cpu/small", "train.micro_batch_size=4", "train.precision=bf16"]).config
    parts = {}
    for target in ("attention", "experts"):
        adapter = AdapterConfig(kind="lora", rank=2, targets=[target])
        train = small.train.model_copy(update={"adapter": adapter, "optimizer": "adamw"})
        parts[target] = estimate(small.model, train, 8192, "native").parts
    whole = estimate(small.model, small.train, 8192, "native")
    assert sum(parts["experts"].values()) < 0.6 * whole.total_bytes
    experts = sum(p.entries for p in parameters_of(small.model, 8192) if ".moe.experts." in p.name)
    assert parts["experts"]["activations"] - parts["attention"]["activations"] >= 2 * experts
