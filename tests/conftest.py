"""What many tests share: real text, and small outputs of `ava preprocess` and `ava train` made once per session.

The shards and the model are built from the library's own parts and not by running the steps, so that a fault in one
step doesn't fail the tests of all others.
"""

import gc
import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything imports torch: as many threads as there are workers would fight for the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from ava_core.config.threads import let_threads_sleep
from ava_core.interruption import WORDS
from tests.mlflow_server_fixture import mlflow_folder, mlflow_server  # noqa: F401  fixtures for all tests

let_threads_sleep()
# No test fails for the machine's being slow.
settings.register_profile("ava", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ava")

# A script's background job has SIGINT ignored, one under nohup SIGHUP, and so would all that the tests start. A handler
# of Python's isn't inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

ASSETS = Path(__file__).parent / "assets"
VOCAB_SIZE = 384
SEQUENCE_LENGTH = 64
TINY_MODEL = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "num_ffn_experts": 4,
    "expert_intermediate_size": 32,
    "num_zero_experts": 1,
    "num_copy_experts": 1,
    "num_constant_experts": 1,
}
TINY_PARAMS = {
    "threads": 1,
    "tokenizer": {"vocab_size": VOCAB_SIZE},
    "model": {**TINY_MODEL, "max_experts_per_token": 2},
    "train": {
        "steps": 6,
        "sequence_length": SEQUENCE_LENGTH,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "warmup_steps": 1,
        "evaluate_every": 3,
        "evaluate_sequences": 4,
        "checkpoint_every": 2,
    },
    "quantize": {
        "parity_sequences": 2,
        "int8": {"min_expert_agreement": 0.9},
        "int4": {"min_expert_agreement": 0.6, "min_top1_agreement": 0.6, "max_increase_percent": 9.0},
    },
    "evaluate": {"prompts": ["To be, or"], "generation": {"max_new_tokens": 8, "num_beams": 2}},
}


@pytest.fixture(autouse=True, scope="module")
def imports_are_never_garbage():
    """Collections pass over what is alive between two files: mostly libraries, half a second's work each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_signal_handlers():
    """A program's main that a test calls in this process sets handlers, which no other test may meet."""
    before = {number: signal.getsignal(number) for number in WORDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch):
    """Only what a test names itself: MLflow's `set_tracking_uri` leaves the address in this process's environment."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "AVA_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def merged(base: dict, changes: dict) -> dict:
    """`base` with `changes` over it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


@pytest.fixture(scope="session")
def corpus_text() -> str:
    """The first acts of a comedy, about 60 KB of verse."""
    return (ASSETS / "verse.txt").read_text()


@pytest.fixture
def make_params(tmp_path):
    """Write a params.yaml for models of the size of `tiny_model`; keywords are sections that change it."""

    def make(**changes) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(merged(TINY_PARAMS, changes)))
        return path

    return make


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory, corpus_text) -> Path:
    """A folder as `ava preprocess` leaves it: every fifth scene-sized part of the text is held out."""
    from ava_core.data.shard_writing import TokenizedDocument, write_split, write_splits_info
    from ava_core.data.shards import SplitsInfo

    folder = tmp_path_factory.mktemp("outputs") / "shards"
    folder.mkdir()
    tokenizer = _train_tokenizer(folder / "tokenizer", corpus_text)
    size = 4_000
    parts = [corpus_text[start : start + size] for start in range(0, len(corpus_text), size)]
    chosen = {"validation": parts[4::10], "test": parts[9::10]}
    chosen["train"] = [part for index, part in enumerate(parts) if index % 5 != 4]
    splits = {}
    for name, texts in chosen.items():
        documents = [
            TokenizedDocument(f"{name}-{index}", _tokens(tokenizer, text), len(text.encode()))
            for index, text in enumerate(texts)
        ]
        splits[name] = write_split(
            folder / name, documents, vocab_size=VOCAB_SIZE, boundary_token_id=0, shard_tokens=8_192
        )
    write_splits_info(folder, SplitsInfo(vocab_size=VOCAB_SIZE, boundary_token_id=0, dtype="uint16", splits=splits))
    (folder / "cleaning.json").write_text("{}\n")
    (folder / "metrics.json").write_text(json.dumps({f"{k}_tokens": v.num_tokens for k, v in splits.items()}))
    return _finished(folder, "preprocess", {"data": "0" * 64})


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_shards) -> Path:
    """A folder as `ava train` leaves it, with a model that has really learnt something of the text."""
    import torch

    from ava_core.data.shards import ShardedSplit
    from ava_core.data.tokenizer import copy_tokenizer
    from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
    from ava_core.runtime import manifest

    folder = tmp_path_factory.mktemp("outputs") / "model"
    torch.manual_seed(0)
    config = EnhancedMoEConfig(vocab_size=VOCAB_SIZE, bos_token_id=0, eos_token_id=0, pad_token_id=1, **TINY_MODEL)
    model = EnhancedMoEForCausalLM(config)
    losses = _fit(model, torch.from_numpy(ShardedSplit.open(tiny_shards, "train").tokens.astype("int64")))
    model.eval().save_pretrained(folder)
    copy_tokenizer(tiny_shards / "tokenizer", folder, config.max_position_embeddings)
    _write_training_record(folder, tiny_shards, model, losses)
    return _finished(folder, "train", {"shards": manifest.read(tiny_shards).digest})


@pytest.fixture(scope="session")
def tiny_int8(tiny_model, tiny_shards, tmp_path_factory) -> Path:
    """The tiny model as `ava quantize` really makes it, with its manifest."""
    from ava_core.config.schema import AvaConfig
    from ava_core.progress import Progress
    from ava_core.quantization.quantize import quantize
    from ava_core.runtime.request import Request
    from ava_core.runtime.step import run_step
    from ava_core.steps.table import STEPS

    def compute(run):
        result = quantize(
            config=run.config.quantize,
            scheme="int8",
            model=tiny_model,
            shards=tiny_shards,
            output=run.output,
            state=run.state,
            threads=1,
            progress=Progress(quiet=True),
        )
        run.metrics.update(result.metrics)
        run.timings.update(result.timings)

    folder = tmp_path_factory.mktemp("quantized")
    request = Request(
        spec=STEPS["quantize"],
        config=AvaConfig(threads=1, quantize={"parity_sequences": 2, "int8": {"min_expert_agreement": 0.9}}),
        inputs={"model": [tiny_model], "shards": [tiny_shards]},
        choices={"scheme": "int8"},
        output=folder / "int8",
        work=folder / "work",
        progress=Progress(quiet=True),
    )
    run_step(request, compute)
    return folder / "int8"


def _train_tokenizer(folder: Path, text: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    wrapped.save_pretrained(folder)
    return wrapped


def _tokens(tokenizer, text: str):
    import numpy as np

    return np.asarray(tokenizer(text)["input_ids"], dtype=np.uint16)


def _fit(model, stream, steps: int = 120) -> list[float]:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    model.train()
    for step in range(steps):
        starts = torch.randint(0, len(stream) - SEQUENCE_LENGTH, (8, 1), generator=generator)
        tokens = stream[starts + torch.arange(SEQUENCE_LENGTH)]
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _write_training_record(folder: Path, shards: Path, model, losses: list[float]) -> None:
    splits = json.loads((shards / "splits.json").read_text())["splits"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    corpus = {
        f"{split}_{kind}": counts[f"num_{kind}"]
        for split, counts in splits.items()
        for kind in ("documents", "tokens", "bytes")
    }
    record = {
        "sequence_length": SEQUENCE_LENGTH,
        "parameters": parameters,
        "active_parameters": parameters,
        "precision": "fp32",
        "corpus": {**corpus, "vocab_size": VOCAB_SIZE},
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    rows = [
        {"step": step + 1, "train_loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens_seen": step * 512}
        for step, loss in enumerate(losses)
    ]
    rows[-1].update(validation_loss=losses[-1], validation_bits_per_byte=losses[-1] / 2)
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"train_loss": losses[-1], "validation_loss": losses[-1], "parameters": parameters, "steps": len(rows)}
    (folder / "metrics.json").write_text(json.dumps(metrics, sort_keys=True))


def _finished(folder: Path, step: str, inputs: dict[str, str]) -> Path:
    from ava_core.runtime import manifest

    manifest.write(
        folder,
        manifest.Manifest(
            step=step,
            key=f"test-{step}",
            version="0",
            code="0",
            config="0",
            choices={},
            inputs=inputs,
            threads=1,
            ranks=1,
            files=manifest.describe_files(folder),
        ),
    )
    return folder


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A token per byte; 256 is the end of a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {char: byte for byte, char in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE({**vocabulary, "<|end|>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
