"""A small quantised model with a tokenizer, and engines of it."""

from __future__ import annotations

import json
import shutil
import threading
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from ava_core.config.generation import GenerationConfig
from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer import load_tokenizer
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.export import export_onnx
from ava_core.onnx.session import DecoderSession
from ava_core.runtime import manifest
from ava_core.serving.engine import Engine
from ava_core.serving.requests import Request
from tests.onnx.conftest import round_all
from tests.registry.conftest import finished

SEED = 11


@pytest.fixture(scope="session")
def served_model(tiny_model, tmp_path_factory):
    """`tiny_model` with 8-bit weights, as `ava quantize` leaves it."""
    folder = tmp_path_factory.mktemp("served") / "tiny-int8"
    folder.mkdir()
    model = EnhancedMoEForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    export_onnx(model, folder, rounded=round_all(model, 8, 16), accuracy_level=4)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    (folder / "metrics.json").write_text("{}")
    written = manifest.Manifest(
        step="quantize", key="0" * 32, version="0", code="0", config="0", choices={}, inputs={}, threads=1, ranks=1
    )
    manifest.write(folder, replace(written, files=manifest.describe_files(folder)))
    return folder


@pytest.fixture
def int8_model(tiny_model, served_model, tmp_path):
    """The folder of `served_model` with the manifest that makes it a quantised form of `tiny_model`."""
    folder = shutil.copytree(served_model, tmp_path / "int8", ignore=shutil.ignore_patterns("manifest.json"))
    (folder / "quantization.json").write_text(json.dumps({"scheme": "int8", "block_size": 16}))
    return finished(folder, "quantize", {"model": manifest.read(tiny_model).digest}, {"scheme": "int8"})


class Collector:
    """What an engine delivers, by sequence."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.given = defaultdict(list)

    def deliver(self, given) -> None:
        with self.changed:
            for sequence, delta in given:
                self.given[sequence].append(delta)
            self.changed.notify_all()

    def wait(self, sequences, seconds: float = 250) -> list:
        """All deltas of each sequence, once all are done."""

        def done() -> bool:
            return all(
                self.given[each] and getattr(self.given[each][-1], "finish_reason", "failed") for each in sequences
            )

        with self.changed:
            assert self.changed.wait_for(done, seconds), "not done in time"
            return [self.given[each] for each in sequences]


@pytest.fixture
def collector():
    return Collector()


@pytest.fixture
def make_engine(served_model, collector):
    """Engines that are closed at the end; `decoder` replaces the model."""
    engines = []

    def make(decoder=None, **settings) -> Engine:
        decoder = decoder or DecoderSession.load(served_model, threads=1)
        engines.append(Engine(decoder, load_tokenizer(served_model), collector.deliver, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def ask(served_model, tiny_shards):
    """Requests whose prompts are the corpus's own words."""
    tokens = ShardedSplit.open(tiny_shards, "validation").tokens

    def make(index: int = 0, length: int = 9, strategy: str = "nucleus", logprobs=None, **settings) -> Request:
        start = 37 * index
        settings = {"max_new_tokens": 20, "temperature": 1.2, "top_p": 0.95, **settings}
        return Request(
            prompt_ids=tuple(int(token) for token in tokens[start : start + length]),
            strategy=strategy,
            settings=GenerationConfig(**settings),
            seed=SEED + index,
            logprobs=logprobs,
        )

    return make
