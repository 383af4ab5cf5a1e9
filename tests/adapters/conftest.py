"""The shared tiny model with an adapter whose updates aren't zero, as a training would leave it."""

from __future__ import annotations

import pytest
import torch

from ava_core.adapters.folder import write_adapter
from ava_core.adapters.layers import add_adapter, is_update, peft_config
from ava_core.config.adapter import AdapterConfig
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.runtime import manifest

TOKENS = torch.arange(3, 43).view(2, 20)


def adapted(folder, **settings):
    """The model in `folder` with an adapter of random updates in it, and the adapter's settings."""
    model = EnhancedMoEForCausalLM.from_pretrained(folder).eval()
    adapter = AdapterConfig(**{"kind": "lora", "rank": 2, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        add_adapter(model, peft_config(adapter))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_update(name):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, adapter


@pytest.fixture
def make_adapter(tiny_model, tmp_path):
    """Write an adapter of `tiny_model`; returns its folder and the logits of the model with it."""

    def make(name="adapter", **settings):
        model, adapter = adapted(tiny_model, **settings)
        write_adapter(tmp_path / name, model, adapter, manifest.read(tiny_model).digest)
        with torch.no_grad():
            return tmp_path / name, model(input_ids=TOKENS).logits

    return make
