"""All methods of alignment one after the other on one model, their figures beside what they are to reach.

Used by `python -m benchmarks.alignment`; each step is the command that a user runs, in a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report

SHARE = {"reward": 1.0, "dpo": 5 / 3, "grpo": 10 / 3}
"""Minutes of a method as multiples of fine-tuning's, as the targets have them: 3, 3, 5 and 10."""
REWARDS = "[{name: metre}, {name: lines}, {name: speech}]"
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "reward": {},
    "dpo": {"rewards": REWARDS},
    "grpo": {
        "rewards": REWARDS, "rollout": "onnx", "global_batch_size": 64, "learning_rate": 0.002,
        "adam_learning_rate": 0.0008,
    },
}  # fmt: skip
"""Of each section, beside the default model's."""
REPLAY_STEPS = 12


@dataclass(frozen=True)
class Target:
    """A line of the table: what was reached, in words, and what was to be.

    Attributes:
        method, figure: what of which.
        value: measured.
        wanted: the target; None: there is none.
        at_least: whether the value must reach it or stay below.
    """

    method: str
    figure: str
    value: float
    wanted: float | None = None
    at_least: bool = True

    def row(self) -> list[str]:
        """Of the table."""
        cells = [self.method, self.figure, f"{self.value:.3f}"]
        if self.wanted is None:
            return [*cells, "", ""]
        reached = self.value >= self.wanted if self.at_least else self.value <= self.wanted
        return [*cells, f"{'>=' if self.at_least else '<='} {self.wanted:g}", "yes" if reached else "no"]


@dataclass(frozen=True)
class Bench:
    """Where the steps work.

    Attributes:
        folder: of all outputs, and of the work folder.
        shards: of the model's text.
        overrides: `KEY=VALUE` for every step.
    """

    folder: Path
    shards: Path
    overrides: Sequence[str]

    def shards_for(self, purpose: str) -> Path:
        """Where `prepare` puts them."""
        return self.folder / f"{purpose}-shards"

    def prepare(self, purpose: str, *flags: str, model: Path | None = None) -> Path:
        """Shards for a purpose of `ava preprocess --for`; made once."""
        output = self.shards_for(purpose)
        given = ["--model", str(model)] if model else []
        if not output.exists():
            given += ["--shards", str(self.shards), "--data", "data/raw", *flags]
            self.step(["preprocess", "--for", purpose], output, given)
        return output

    def train(
        self, command: Sequence[str], section: str, model: Path, shards: Path, settings: Mapping[str, object], name: str
    ) -> Path:
        """The model's folder."""
        given = ["--model", str(model), f"--{shards_flag(section)}", str(shards)]
        given += [word for key, value in settings.items() for word in ("--set", f"{section}.{key}={value}")]
        self.step(command, self.folder / name, given)
        return self.folder / name

    def step(self, command: Sequence[str], output: Path, flags: Sequence[str]) -> None:
        """Run a step."""
        given = [*flags, *(word for item in self.overrides for word in ("--set", item))]
        words = [*command, "--params", "params.yaml", "--quiet", "--output", str(output)]
        run(
            output.name,
            [sys.executable, "-m", "ava_core.cli.main", *words, "--work", str(self.folder / "work"), *given],
        )


def shards_flag(section: str) -> str:
    """The input that a method is trained on."""
    return {"sft": "conversations", "grpo": "prompts"}.get(section, "preferences")


def run(name: str, command: Sequence[str]) -> None:
    """A command that must succeed, without a tracking server and without a network.

    Raises:
        SystemExit: it doesn't.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"CI": "true", "HF_HUB_OFFLINE": "1"}  # TRL reports its use elsewhere
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: ended with {done.returncode}\n{done.stderr[-2000:]}")


def train_all(bench: Bench, tuned: Path, minutes: float) -> dict[str, Path]:
    """Model folders of the methods that begin from the fine-tuned model."""
    preferences = bench.prepare("preference", model=tuned)
    prompts = bench.prepare("prompts", "--set", "prompts.min_reference_lines=3")
    found = {}
    for section, share in SHARE.items():
        command = ["reward"] if section == "reward" else ["align", "--method", section]
        timed = {**SETTINGS[section], "steps": 100_000, "max_minutes": minutes * share}
        shards = prompts if section == "grpo" else preferences
        found[section] = bench.train(command, section, tuned, shards, timed, section)
    for name, replay in (("replayed", "true"), ("not-replayed", "false")):
        short = {**SETTINGS["grpo"], "rollout": "generate", "steps": REPLAY_STEPS, "samples": 0, "replay": replay}
        found[name] = bench.train(["align", "--method", "grpo"], "grpo", tuned, prompts, short, name)
    return found


def targets(
    folders: Mapping[str, Path], tax: Mapping[str, float], samples_per_second: Mapping[str, float]
) -> list[Target]:
    """All lines of the table.

    Args:
        folders: of `train_all`, and `sft`.
        tax: by method, how many bits per byte of the first text it cost.
        samples_per_second: of rollouts, by who answers.
    """
    figures = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in folders.items()}
    sft, grpo = figures["sft"], figures["grpo"]
    closed = (grpo["sample_reward"] - grpo["start_sample_reward"]) / (
        grpo["author_reward"] - grpo["start_sample_reward"]
    )
    kl = {name: _median_kl(folders[name]) for name in ("replayed", "not-replayed")}
    return [
        Target("sft", "nats per token of held-out answers less", sft["validation_loss_gain"], 0.15),
        Target("sft", "share of answers that end by themselves", sft["ended_answers"], 0.95),
        Target("sft", "bits per byte of the first text more", tax["sft"]),
        Target("reward", "held-out pairs ranked rightly", figures["reward"]["validation_accuracy"], 0.85),
        Target("dpo", "held-out pairs ranked rightly", figures["dpo"]["validation_accuracy"], 0.75),
        Target("dpo", "bits per byte of the first text more", tax["dpo"], 0.05, at_least=False),
        Target("grpo", "share of the distance to the data's answers", closed, 0.40),
        Target("grpo", "nats per answer from the start", grpo["kl_to_start"]),
        Target("grpo", "bits per byte of the first text more", tax["grpo"]),
        Target("grpo", "rollout_kl without replay over that with it", kl["not-replayed"] / kl["replayed"], 5.0),
        Target("grpo", "samples per second over TRL's generate", _times(samples_per_second), 4.0),
    ]


def _median_kl(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return statistics.median(row["rollout_kl"] for row in rows)


def _times(samples_per_second: Mapping[str, float]) -> float:
    return samples_per_second["onnx"] / samples_per_second["TRL generate"]


def show(found: Sequence[Target]) -> str:
    """The table that is printed."""
    return report.table(("method", "figure", "measured", "target", "reached"), [each.row() for each in found])
