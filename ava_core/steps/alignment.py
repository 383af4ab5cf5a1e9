"""The steps of alignment: shards to train on, and trainings; the other steps are in `ava_core.steps.table`."""

from __future__ import annotations

from collections.abc import Sequence

from ava_core.steps.kinds import (
    CONVERSATIONS,
    CONVERSATIONS_IN,
    DATA_IN,
    MODEL,
    PREFERENCES,
    PREFERENCES_IN,
    PROMPTS,
    PROMPTS_IN,
    REWARD_MODEL,
    SHARDS_IN,
)
from ava_core.steps.spec import Input, StepSpec

SPLITS = ("train", "validation", "test")
COUNTS = tuple(
    f"{split}_{count}" for split in SPLITS for count in ("conversations", "answers", "tokens", "learnt", "answer_bytes")
)
TRAINED = ("steps", "tokens_seen", "parameters", "active_parameters")
SAMPLED = (
    *(
        f"{prefix}{figure}"
        for prefix in ("", "start_")
        for figure in ("ended_answers", "answer_tokens", "repetition_4gram", "sample_reward")
    ),
    "sample_wins",
    "kl_to_start",
)
TIMINGS = ("tokens_per_second", "wall_seconds", "training_seconds", "startup_seconds", "peak_memory_bytes")
START_IN = Input(
    name="model",
    kind=MODEL,
    help="Model to begin from: its folder, or models:/NAME@ALIAS.",
    registered=True,
)

ALIGNMENT_DATA = (
    StepSpec(
        name="conversations",
        summary="Make shards for fine-tuning of conversations: tokens, and which of them are the assistant's.",
        output="conversations",
        kind=CONVERSATIONS,
        sections=("conversations",),
        function="ava_core.alignment.prepare:prepare",
        invoked=("preprocess", "--for", "sft"),
        inputs=(
            SHARDS_IN,
            DATA_IN,
        ),
        metrics=(
            *COUNTS,
            "left_out",
            "duplicates_removed",
        ),
        timings=("wall_seconds",),
        headlines=("train_conversations", "train_answers", "left_out"),
    ),
    StepSpec(
        name="preferences",
        summary="Make shards of pairs: two answers to the same prompt, of which the first is preferred.",
        output="preferences",
        kind=PREFERENCES,
        sections=("seed", "preferences"),
        function="ava_core.alignment.prepare_pairs:prepare_pairs",
        invoked=("preprocess", "--for", "preference"),
        inputs=(
            SHARDS_IN,
            DATA_IN,
            Input(
                name="model",
                kind=MODEL,
                help="Model whose own answers are the worse ones, where there are no others.",
                description="Model whose own answers are the worse ones.",
                required=False,
            ),
        ),
        metrics=(
            *COUNTS,
            "left_out",
            "duplicates_removed",
        ),
        timings=("wall_seconds",),
        headlines=("train_conversations", "validation_conversations", "left_out"),
    ),
    StepSpec(
        name="prompts",
        summary="Make shards of prompts, which a model answers and is rewarded for.",
        output="prompts",
        kind=PROMPTS,
        sections=("prompts",),
        function="ava_core.alignment.prepare_prompts:prepare_prompts",
        invoked=("preprocess", "--for", "prompts"),
        inputs=(
            SHARDS_IN,
            DATA_IN,
        ),
        metrics=(
            *(f"{split}_{count}" for split in SPLITS for count in ("prompts", "tokens")),
            "left_out",
            "duplicates_removed",
        ),
        timings=("wall_seconds",),
        headlines=("train_prompts", "validation_prompts", "left_out"),
    ),
)
"""Shards to be trained on, made from those of the text."""
ALIGNMENT = (
    StepSpec(
        name="sft",
        summary="Fine-tune a model on conversations: it learns the assistant's answers, and where they end.",
        output="sft",
        kind=MODEL,
        sections=("seed", "sft"),
        function="ava_core.alignment.sft:train",
        training="sft",
        inputs=(
            START_IN,
            CONVERSATIONS_IN,
        ),
        metrics=(
            "train_loss",
            "validation_loss",
            "start_validation_loss",
            "validation_loss_gain",
            "validation_bits_per_byte",
            *SAMPLED,
            *TRAINED,
        ),
        timings=TIMINGS,
        headlines=("validation_loss", "validation_loss_gain", "ended_answers"),
    ),
    StepSpec(
        name="reward",
        summary="Train a reward model on pairs of answers: it scores an answer, the higher the better.",
        output="reward",
        kind=REWARD_MODEL,
        sections=("seed", "reward"),
        function="ava_core.alignment.reward:train",
        training="reward",
        inputs=(START_IN, PREFERENCES_IN),
        metrics=("train_loss", "validation_loss", "validation_accuracy", "validation_margin", *TRAINED),
        timings=TIMINGS,
        headlines=("validation_loss", "validation_accuracy"),
    ),
    StepSpec(
        name="dpo",
        summary="Train a model to prefer the better of two answers, without a reward model (DPO).",
        output="dpo",
        kind=MODEL,
        sections=("seed", "dpo"),
        function="ava_core.alignment.dpo:train",
        invoked=("align", "--method", "dpo"),
        training="dpo",
        inputs=(START_IN, PREFERENCES_IN),
        metrics=(
            "train_loss",
            "validation_loss",
            "validation_accuracy",
            "validation_margin",
            *SAMPLED,
            *TRAINED,
        ),
        timings=TIMINGS,
        headlines=("validation_accuracy", "sample_wins", "kl_to_start"),
    ),
    StepSpec(
        name="grpo",
        summary="Train a model on rewards of its own answers, each beside others to the same prompt (GRPO).",
        output="grpo",
        kind=MODEL,
        sections=("seed", "grpo"),
        function="ava_core.alignment.grpo:train",
        invoked=("align", "--method", "grpo"),
        training="grpo",
        inputs=(START_IN, PROMPTS_IN),
        metrics=("train_loss", "validation_loss", "validation_reward", *SAMPLED, *TRAINED),
        timings=TIMINGS,
        headlines=("validation_reward", "sample_wins", "kl_to_start"),
    ),
)
"""Trainings, in the order in which they usually follow each other."""


def aligning(stages: Sequence[str]) -> list[StepSpec]:
    """The steps that stages of alignment ask for, in their order: each input is the latest output of its kind.

    Args:
        stages: names of trainings, as `align.stages`; shards are made before the first that is trained on them.
    """
    trainings = {spec.name: spec for spec in ALIGNMENT}
    steps: dict[str, StepSpec] = {}
    for stage in stages:
        wanted = {port.kind for port in trainings[stage].inputs}
        steps |= {spec.name: spec for spec in ALIGNMENT_DATA if spec.kind in wanted and spec.name not in steps}
        steps[stage] = trainings[stage]
    return list(steps.values())
