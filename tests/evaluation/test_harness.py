"""`lm_eval --model hf` on a saved model, offline, with a task of our own."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ava_core.losses import token_nll
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
TASK = """
task: parity
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{number}}}} is"
doc_to_choice: ["even", "odd"]
doc_to_target: "{{{{number % 2}}}}"
metric_list:
  - metric: acc
"""
PERPLEXITY_TASK = """
task: bytes_per_document
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


def byte_tokenizer():
    """Every byte is a token; 256 begins and ends a document, 257 pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<|boundary|>", "<|pad|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|boundary|>",
        eos_token="<|boundary|>",
        pad_token="<|pad|>",
    )


@pytest.fixture
def folder(tmp_path):
    """A model with its tokenizer, and two tasks beside it."""
    torch.manual_seed(0)
    config = EnhancedMoEConfig(
        vocab_size=258, hidden_size=32, num_layers=2, expert_intermediate_size=16,
        bos_token_id=256, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    EnhancedMoEForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"number": n, "text": f"{n} and {n + 1} make {2 * n + 1}."} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for name, task in {"parity": TASK, "bytes": PERPLEXITY_TASK}.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(task.format(data=tmp_path / "rows.jsonl"))
    return tmp_path


@torch.no_grad()
def nats(model, text, scored, boundary=False):
    """Negative log-likelihood of the ending `scored` of `text`; each byte is a token."""
    ids = torch.tensor([[256] * boundary + byte_tokenizer()(text)["input_ids"]])
    return token_nll(model(ids).logits[:, :-1], ids[:, 1:])[0, -len(scored.encode()) :].sum().item()


@pytest.mark.slow
def test_harness_scores_a_saved_model_offline(folder):
    pytest.importorskip("lm_eval")
    command = [
        str(Path(sys.executable).with_name("lm_eval")), "--model", "hf", "--device", "cpu", "--batch_size", "2",
        "--model_args", f"pretrained={folder / 'model'},dtype=float32", "--include_path", str(folder / "tasks"),
        "--tasks", "parity,bytes_per_document", "--output_path", str(folder / "results"),
    ]  # fmt: skip
    # An engine that trained in this process has left its rank there, by which lm_eval would look for others.
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    (report,) = (folder / "results").rglob("results_*.json")
    results = json.loads(report.read_text())["results"]
    model = EnhancedMoEForCausalLM.from_pretrained(folder / "model")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    right = [
        (nats(model, f"{n} is odd", " odd") < nats(model, f"{n} is even", " even")) == n % 2
        for n in (row["number"] for row in rows)
    ]
    assert results["parity"]["acc,none"] == pytest.approx(sum(right) / len(rows))
    # Bits per byte: of every token after the boundary, over the bytes of the text.
    total = sum(nats(model, row["text"], row["text"], boundary=True) for row in rows)
    expected = total / math.log(2) / sum(len(row["text"].encode()) for row in rows)
    assert results["bytes_per_document"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-4)
