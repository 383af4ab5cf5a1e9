"""Alignment: every method on one model, what it reaches, and fine-tuning beside TRL's trainer for the same minutes.

Usage: make bench-alignment, or python -m benchmarks.alignment [--minutes M] [--model DIR] [--only-sft]

Begins from the model of `make pipeline-local`, with the dialogues of its plays. First fine-tuning: ours is `ava sft`;
TRL's is `SFTTrainer` as its documentation uses it, on the same tokens with the loss on the assistant's, at its default
rate and at ones that suit a small model better. Each trains in a process of its own, one after the other. Of the start
and of each end: loss of held-out answers in nats per token, the share of sampled answers that end by themselves, and
bits per byte of the pretraining's test split, where what was forgotten shows. Then, from our fine-tuned model, a reward
model, DPO and GRPO with rollouts by the decoder, for 1, 5/3 and 10/3 times the minutes, a short GRPO with and without
replay of routes, the speed of rollouts (`benchmarks.rollouts`): a line for each target. Kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.config import resolve
from benchmarks import hardware, report
from benchmarks.alignment_methods import Bench, Target, run, targets, train_all
from benchmarks.alignment_methods import show as show_targets
from benchmarks.rollouts import compare

RATES = (2e-5, 1e-3)
"""Of TRL's AdamW: its default, and one for models of some million parameters."""
SAMPLES = 128


def ours(bench: Bench, model: Path, conversations: Path, minutes: float) -> Path:
    """`ava sft` for so many minutes of steps. Returns the model's folder."""
    return bench.train(["sft"], "sft", model, conversations, {"steps": 100_000, "max_minutes": minutes}, "sft")


def theirs(model: Path, conversations: Path, minutes: float, folder: Path, rate: float) -> Path:
    """TRL's trainer for as many. Returns the model's folder."""
    output = folder / f"trl-{rate:g}"
    request = {
        "model": str(model),
        "conversations": str(conversations),
        "minutes": minutes,
        "rate": rate,
        "output": str(output),
    }
    run(output.name, [sys.executable, "-m", "benchmarks.alignment", "--train-with-trl", json.dumps(request)])
    return output


def train_with_trl(model: str, conversations: str, minutes: float, rate: float, output: str) -> None:
    """The process of `theirs`."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    import ava_core.models  # noqa: F401  registers the architecture
    from ava_core.alignment.shards import ConversationShards
    from ava_core.losses import IGNORE_INDEX

    class Clock(TrainerCallback):
        """Ends the training, and its linear decay, after the minutes."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started = getattr(self, "started", None) or time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            left = 1 - (time.monotonic() - self.started) / (60 * minutes)
            for group in optimizer.param_groups:
                group["lr"] = rate * max(left, 0.0)
            control.should_training_stop = left <= 0

    shards = ConversationShards.open(Path(conversations))
    rows = [
        {"input_ids": item.tokens.tolist(), "labels": np.where(item.learnt, item.tokens, IGNORE_INDEX).tolist()}
        for item in shards.read("train")
    ]
    tokenizer = AutoTokenizer.from_pretrained(Path(conversations) / "tokenizer")
    arguments = trl.SFTConfig(
        output_dir=f"{output}.trainer",
        max_steps=1_000_000,
        per_device_train_batch_size=16,
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_length=shards.max_tokens,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    trainer.model.save_pretrained(output)
    print(f"{trainer.state.global_step} steps", file=sys.stderr)


def ended_share(model: Any, prompts: list[list[int]], ends: list[int], max_new_tokens: int, seed: int) -> float:
    """Share of sampled answers (temperature 1) in which the token that ends an answer comes within the limit.

    Args:
        model: of ours, which answers.
        prompts: token ids of each, up to where the answer begins.
        ends: the token that ends each one's answer.
        max_new_tokens: the limit; less where the model's positions end before.
        seed: of the samples.
    """
    from ava_core.alignment.sampling import sample_answers

    answers = sample_answers(model, prompts, ends, max_new_tokens, seed)
    return sum(end in answer for end, answer in zip(ends, answers, strict=True)) / len(prompts)


def figures(model: Path, conversations: Path, text: Path) -> dict[str, float]:
    """What the benchmark says of a model."""
    from ava_core.alignment.material import AnswerValidation, answer_of
    from ava_core.alignment.packing import PackedRows
    from ava_core.alignment.shards import ConversationShards
    from ava_core.alignment.tokens import end_of_answer
    from ava_core.data.tokenizer import load_tokenizer
    from ava_core.models import EnhancedMoEForCausalLM
    from ava_core.models.pretrained import load_pretrained

    config = resolve(params=Path("params.yaml")).config.sft
    loaded, _ = load_pretrained(EnhancedMoEForCausalLM, model)
    shards = ConversationShards.open(conversations)
    held_out = shards.read("test")
    rows = PackedRows.of(held_out, config.sequence_length, shards.special.padding, 0)
    measured = AnswerValidation(rows, config).measure(loaded, whole=True)
    ends = end_of_answer(load_tokenizer(conversations / "tokenizer"))
    asked = [answer_of(item.tokens, item.learnt, ends) for item in held_out[:SAMPLES]]
    ended = ended_share(loaded, [a.tolist() for a, _ in asked], [end for _, end in asked], shards.max_tokens, 0)
    return {
        "loss": measured["validation_loss"],
        "ended": ended,
        "test_bits_per_byte": bits_per_byte_of(model, text),
    }


def bits_per_byte_of(model: Path, text: Path) -> float:
    """Of the test split of the pretraining's text, in windows of the fine-tuning's context."""
    from ava_core.data.batches import bits_per_byte
    from ava_core.data.shards import ShardedSplit
    from ava_core.models import EnhancedMoEForCausalLM
    from ava_core.models.pretrained import load_pretrained
    from ava_core.training.validation import mean_loss

    config = resolve(params=Path("params.yaml")).config.sft
    loaded, _ = load_pretrained(EnhancedMoEForCausalLM, model)
    split = ShardedSplit.open(text, "test")
    loss, count = mean_loss(loaded, split, config.sequence_length, batch_size=config.micro_batch_size)
    return bits_per_byte(loss * count, split.num_bytes)


def show(found: dict[str, dict[str, float]]) -> str:
    """The table that is printed."""
    start = found["start"]
    rows = [
        [
            name,
            f"{values['loss']:.4f}",
            f"{values['loss'] - start['loss']:+.4f}",
            f"{values['ended']:.0%}",
            f"{values['test_bits_per_byte']:.4f}",
            f"{values['test_bits_per_byte'] - start['test_bits_per_byte']:+.4f}",
        ]
        for name, values in found.items()
    ]
    return report.table(("model", "answers, nats/token", "change", "ended", "test bits/byte", "change"), rows)


def others(
    bench: Bench, models: Mapping[str, Path], found: Mapping[str, Mapping[str, float]], minutes: float
) -> list[Target]:
    """Train by all other methods; print and give what they reach."""
    tuned, start = models["ava sft"], found["start"]["test_bits_per_byte"]
    folders = train_all(bench, tuned, minutes)
    tax = {"sft": found["ava sft"]["test_bits_per_byte"] - start}
    for name in ("dpo", "grpo"):
        tax[name] = bits_per_byte_of(folders[name], bench.shards) - found["ava sft"]["test_bits_per_byte"]
    speeds = compare(tuned, bench.shards_for("prompts"), 64, 64, 3)
    rates = {name: each["samples_per_second"] for name, each in speeds.items()}
    reached = targets({"sft": tuned, **folders}, tax, rates)
    print(show_targets(reached))
    return reached


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, print and keep."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__.split("\n")[0])
    flags.add_argument("--minutes", type=float, default=3.0, help="of training steps (default: %(default)s)")
    flags.add_argument("--model", type=Path, default=Path("outputs/model"), help="to begin from (default: %(default)s)")
    flags.add_argument("--shards", type=Path, default=Path("outputs/shards"), help="its text (default: %(default)s)")
    flags.add_argument("--conversations", type=Path, help="output of ava preprocess --for sft; default: it is made")
    flags.add_argument("--trl-rate", type=float, action="append", help=f"of TRL's AdamW; default: {RATES}")
    flags.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="for ours")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    flags.add_argument("--only-sft", action="store_true", help="leave out reward model, DPO, GRPO and rollouts")
    flags.add_argument("--train-with-trl", metavar="JSON", help=argparse.SUPPRESS)
    given = flags.parse_args(arguments)
    if given.train_with_trl:
        train_with_trl(**json.loads(given.train_with_trl))
        return 0
    described = hardware.describe("cpu", len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), given.shards, given.overrides)
        conversations = given.conversations or bench.prepare("sft")
        models = {"start": given.model, "ava sft": ours(bench, given.model, conversations, given.minutes)}
        for rate in given.trl_rate or RATES:
            models[f"TRL, rate {rate:g}"] = theirs(given.model, conversations, given.minutes, bench.folder, rate)
        found = {label: figures(model, conversations, given.shards) for label, model in models.items()}
        print(show(found))
        kept: dict[str, Any] = {"minutes": given.minutes, **found}
        if not given.only_sft:
            kept["methods"] = [asdict(target) for target in others(bench, models, found, given.minutes)]
    path = report.keep(hardware.slug(described), "alignment", described, kept, given.results)
    print(report.kept_in(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
