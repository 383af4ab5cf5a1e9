import shutil
from pathlib import Path

import pytest
import torch

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM


@pytest.fixture
def write_model(tmp_path, tiny_model):
    """A folder as `ava train` leaves it, of a random model with these fields."""

    def write(fields: dict) -> Path:
        folder = tmp_path / "trained"
        torch.manual_seed(0)
        EnhancedMoEForCausalLM(EnhancedMoEConfig(**fields)).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tiny_model / name, folder / name)
        return folder

    return write
