"""Small models of Transformers in folders as their makers publish them, with the tokenizer of the tests' shards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ava_core.importing.importer import Import, ImportOptions, describe_options
from ava_core.models.conversion import SOURCES
from ava_core.models.quiet import quiet
from ava_core.progress import Progress

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "intermediate_size": 48,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
OWN = {
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 12},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "llama": {},
    "qwen3": {"head_dim": 16},
}


def write_source(folder: Path, kind: str, tokenizer: Path, dtype=torch.float32, shard="5GB", **changes) -> Path:
    peer = SOURCES[kind]
    torch.manual_seed(0)
    model = peer.model_class(peer.config_class(**{**SHAPE, **OWN[kind], **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    with quiet():
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


@pytest.fixture
def make_source(tmp_path, tiny_shards) -> Callable[..., Path]:
    """Write a model of a kind into a folder of its name."""
    return lambda kind, **changes: write_source(tmp_path / kind, kind, tiny_shards / "tokenizer", **changes)


@pytest.fixture(scope="session")
def sources(tmp_path_factory, tiny_shards) -> Callable[[str], Path]:
    """The unchanged model of a kind, made once; not to be written to."""
    made: dict[str, Path] = {}

    def source(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("published") / kind
            made[kind] = write_source(folder, kind, tiny_shards / "tokenizer")
        return made[kind]

    return source


def imported(source: Path | str, output: Path, **options) -> Path:
    """What an import leaves in a folder, without its manifest."""
    output.mkdir()
    importing = Import(str(source), ImportOptions(**options))
    figures = importing.write(output, Progress(quiet=True))
    (output / "metrics.json").write_text(json.dumps(figures))
    return output


def finish(source: Path | str, output: Path, **options) -> Path:
    """The same with the manifest that the command gives it."""
    from ava_core.config import AvaConfig
    from ava_core.runtime.request import Request
    from ava_core.runtime.tool import run_tool
    from ava_core.steps.tools import TOOLS

    importing = Import(str(source), ImportOptions(**options))
    request = Request(
        spec=TOOLS["import"],
        config=AvaConfig(threads=1),
        inputs={},
        choices=describe_options(importing),
        output=output,
        work=output.parent,
        progress=Progress(quiet=True),
    )
    run_tool(request, importing.inputs, lambda folder: importing.write(folder, request.progress))
    return output


def change(path: Path, **values) -> None:
    """Set keys of a JSON file; None takes one away."""
    fields = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


@torch.no_grad()
def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()(tokens).logits


@pytest.fixture
def tokens():
    return torch.randint(3, 384, (2, 24), generator=torch.Generator().manual_seed(1))
