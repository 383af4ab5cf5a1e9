"""Small models whose experts are all in use, and their exports."""

import re
from pathlib import Path

import pytest
import torch

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.onnx.block_weights import BlockWeights
from ava_core.onnx.export import export_onnx
from ava_core.onnx.runtime import OnnxCausalLM, load_onnx
from ava_core.quantization.blockwise import quantize_blocks

MATRICES = re.compile(r"(embed_tokens|lm_head|_proj)(\.weight)?$")
SMALL = {
    "head_dim": 16,
    "vocab_size": 101,
    "hidden_size": 32,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_ffn_experts": 4,
    "expert_intermediate_size": 32,
}


@pytest.fixture
def make_model():
    """Build a model with weights so large that experts, positions and padding all matter to its logits."""

    def make(**changes) -> EnhancedMoEForCausalLM:
        torch.manual_seed(0)
        model = EnhancedMoEForCausalLM(EnhancedMoEConfig(**{**SMALL, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.normal_(1, 0.1)
            for name, buffer in model.named_buffers():
                if name.endswith("expert_bias"):
                    buffer.normal_(0, 0.1)
        return model

    return make


@pytest.fixture
def export(tmp_path):
    """Export a model and load it again; the folder is `export.folder`."""

    def run(
        model: EnhancedMoEForCausalLM, bits: int = 32, block_size: int = 32, portable: bool = False, level: int = 0
    ) -> OnnxCausalLM:
        folder: Path = tmp_path / f"export-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        rounded = round_all(model, bits, block_size) if bits < 32 else {}
        export_onnx(model, folder, rounded=rounded, portable=portable, accuracy_level=level)
        model.config.save_pretrained(folder)
        run.folder = folder
        return load_onnx(folder, threads=1)

    return run


def round_all(
    model: EnhancedMoEForCausalLM, bits: int, block_size: int, symmetric: bool = True
) -> dict[str, BlockWeights]:
    """Every matrix that may be rounded, to the nearest."""
    return {
        name: quantize_blocks(weight.detach().numpy(), bits, block_size, symmetric=symmetric)
        for name, weight in model.named_parameters()
        if MATRICES.search(name)
    }
