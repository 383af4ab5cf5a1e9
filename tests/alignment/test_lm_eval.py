"""`lm_eval --model hf --apply_chat_template` on a fine-tuned model, offline: it is asked as it was trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ava_core.alignment.conversation import Message
from ava_core.alignment.tokens import encode_prompt
from ava_core.data.tokenizer import load_tokenizer
from tests.alignment.trainings import request_in, run

TASK = """
task: echo
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{word}}}} {{{{number}}}}"
doc_to_target: "{{{{word}}}} {{{{word}}}}"
generation_kwargs:
  until: ["<|end|>"]
  max_gen_toks: 16
metric_list:
  - metric: exact_match
"""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
SETTINGS = {"steps": 80, "learning_rate": 0.01, "adam_learning_rate": 0.01, "evaluate_every": 80, "samples": 0}


@pytest.fixture
def harness(tmp_path):
    """The results and logged samples of a model on questions that it may have learnt to answer."""
    rows = [{"word": word, "number": number} for word in ("king", "queen", "night", "ghost") for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "echo.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))

    def evaluate(model: Path, *flags: str) -> tuple[dict, list[dict]]:
        results = tmp_path / f"results{len(flags)}"
        command = [
            str(Path(sys.executable).with_name("lm_eval")), "--model", "hf", "--device", "cpu", "--batch_size", "4",
            "--model_args", f"pretrained={model},dtype=float32", "--include_path", str(tmp_path / "tasks"),
            "--tasks", "echo", "--output_path", str(results), "--log_samples", *flags,
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        (report,), (samples,) = results.rglob("results_*.json"), results.rglob("samples_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        return json.loads(report.read_text())["results"]["echo"], lines

    return evaluate


@pytest.mark.slow
def test_fine_tuned_model_is_asked_by_its_template_and_answers_as_it_learnt(
    harness, tmp_path, tiny_model, conversation_shards
):
    pytest.importorskip("lm_eval")
    request = request_in(tmp_path / "sft", "sft", tiny_model, conversation_shards, SETTINGS)
    run(request)
    found, samples = harness(request.output, "--apply_chat_template")
    tokenizer = load_tokenizer(request.output)
    for sample in samples:
        asked = sample["arguments"]["gen_args_0"]["arg_0"]
        word, number = sample["doc"]["word"], sample["doc"]["number"]
        assert tokenizer(asked)["input_ids"] == encode_prompt(tokenizer, (Message("user", f"{word} {number}"),))
    plain, _ = harness(request.output)
    assert found["exact_match,none"] >= 0.5 > plain["exact_match,none"]
