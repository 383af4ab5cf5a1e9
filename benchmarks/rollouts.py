"""Samples per second of rollouts: TRL's `generate` path, the model's own, and Ava's decoder (`grpo.rollout: onnx`).

Usage: python -m benchmarks.rollouts --model DIR --prompts DIR [--answers N] [--max-new-tokens N] [--rounds N]

The model is a fine-tuned one, the prompts the output of `ava preprocess --for prompts`. All answer the same prompts,
eight times each, at temperature 1, and end at the same tokens; TRL's is its GRPO trainer's method, told them. The
seconds are all of a rollout's: for onnx the rounding and the session of the present weights too. After one round that
isn't counted they take turns; the median of the rounds counts. Kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ava_core.config.grpo import GrpoConfig
from benchmarks import hardware, report

GROUP = 8
Rollout = Callable[[int], int]
"""A rollout of a seed; gives the number of tokens of its answers."""


def of_trl(model: Any, tokenizer: Any, prompts: list[list[int]], stops: list[int], limit: int, folder: Path) -> Rollout:
    """The generation of TRL's GRPO trainer without vLLM."""
    import torch
    import trl
    from datasets import Dataset

    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(prompts),
        num_generations=GROUP,
        max_completion_length=limit,
        generation_kwargs={"eos_token_id": stops},
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * len(prompts)),
        processing_class=tokenizer,
    )

    def play(seed: int) -> int:
        torch.manual_seed(seed)
        answers = trainer._generate_single_turn(prompts, None, {}, GROUP)[0]
        return sum(map(len, answers))

    return play


def of_ours(model: Any, kind: str, prompts: list[list[int]], stops: list[int], limit: int) -> Rollout:
    """A rollout as `ava align --method grpo` has it."""
    from ava_core.alignment.onnx_player import OnnxPlayer
    from ava_core.alignment.player import Player

    config = GrpoConfig(rollout=kind, max_new_tokens=limit, group_size=GROUP)
    player = (OnnxPlayer if kind == "onnx" else Player)(model, stops, config)
    width = max(map(len, prompts))
    return lambda seed: player.play(prompts, width, seed).num_labels


def measure(subjects: dict[str, Rollout], answers: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of samples and tokens per second and of the processors' seconds of a sample, and its mean length."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, play in subjects.items():
            started, worked = time.perf_counter(), time.process_time()
            tokens = play(number)
            if number:
                found[name].append((time.perf_counter() - started, time.process_time() - worked, tokens))
    return {
        name: {
            "samples_per_second": statistics.median(answers / seconds for seconds, _, _ in each),
            "tokens_per_second": statistics.median(tokens / seconds for seconds, _, tokens in each),
            "cpu_seconds_per_sample": statistics.median(worked / answers for _, worked, _ in each),
            "answer_tokens": statistics.mean(tokens / answers for _, _, tokens in each),
        }
        for name, each in found.items()
    }


def compare(folder: Path, shards: Path, answers: int, limit: int, rounds: int) -> dict[str, dict[str, float]]:
    """What `measure` gives of all three.

    Args:
        folder: of a fine-tuned model.
        shards: output of `ava preprocess --for prompts`.
        answers: of a rollout, a multiple of `GROUP`.
        limit: new tokens of an answer.
        rounds: that count.
    """
    from ava_core.alignment.sampling import stops_of
    from ava_core.alignment.shards import ConversationShards
    from ava_core.alignment.tokens import end_of_answer
    from ava_core.data.tokenizer import load_tokenizer
    from ava_core.models import EnhancedMoEForCausalLM
    from ava_core.models.pretrained import load_pretrained

    model: Any = load_pretrained(EnhancedMoEForCausalLM, folder)[0].eval()
    tokenizer: Any = load_tokenizer(shards / "tokenizer")
    stops = stops_of(model, end_of_answer(tokenizer))
    held_out = ConversationShards.open(shards, "prompts").read("validation")[: answers // GROUP]
    prompts = [item.tokens.tolist() for item in held_out for _ in range(GROUP)]
    with tempfile.TemporaryDirectory() as name:
        subjects = {
            "TRL generate": of_trl(model, tokenizer, prompts, stops, limit, Path(name)),
            "generate": of_ours(model, "generate", prompts, stops, limit),
            "onnx": of_ours(model, "onnx", prompts, stops, limit),
        }
        return measure(subjects, len(prompts), rounds)


def show(found: dict[str, dict[str, float]]) -> str:
    """The table that is printed."""
    base = found["TRL generate"]["samples_per_second"]
    rows = [
        [
            name,
            f"{each['samples_per_second']:.1f}",
            f"{each['samples_per_second'] / base:.2f}",
            f"{each['tokens_per_second']:.0f}",
            f"{1000 * each['cpu_seconds_per_sample']:.1f}",
            f"{each['answer_tokens']:.1f}",
        ]
        for name, each in found.items()
    ]
    header = ("rollout", "samples/s", "times TRL's", "tokens/s", "CPU ms of a sample", "its tokens")
    return report.table(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.rollouts", description=__doc__.split("\n")[0])
    flags.add_argument("--model", type=Path, required=True, help="folder of a fine-tuned model")
    flags.add_argument("--prompts", type=Path, required=True, help="output of ava preprocess --for prompts")
    flags.add_argument("--answers", type=int, default=64, help="of a rollout (default: %(default)s)")
    flags.add_argument("--max-new-tokens", type=int, default=64, help="of an answer (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=3, help="that count (default: %(default)s)")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    given = flags.parse_args(arguments)
    import torch

    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    described = hardware.describe("cpu", threads)
    print(hardware.line(described))
    found = compare(given.model, given.prompts, given.answers, given.max_new_tokens, given.rounds)
    print(show(found))
    settings = {"answers": given.answers, "max_new_tokens": given.max_new_tokens, "rounds": given.rounds}
    path = report.keep(hardware.slug(described), "rollouts", described, {**settings, **found}, given.results)
    print(report.kept_in(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
