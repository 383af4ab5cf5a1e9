"""A model with fewer FFN experts: which go, and what follows in the weights. Shapes: see `ava_core.models.shapes`.

An expert is its two matrices, a row of the gate, a row of the gate's residual and a column of the next one's, and an
entry of the router's bias. All layers keep the same number, for the architecture has one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ava_core.data.reencoding import open_tokens
from ava_core.errors import AvaError, ConfigError
from ava_core.files import write_json
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.conversion.recipes import HEAD
from ava_core.progress import Progress
from ava_core.remaking.calibration import CalibrationText, effects, loads
from ava_core.remaking.material import Material, write_model
from ava_core.remaking.repair import repair
from ava_core.training.initial import Parent, load_parent

log = logging.getLogger(__name__)
CRITERIA, REPAIRS = ("load", "effect"), ("refit", "none")
RECORD = "pruning.json"


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """What can be asked for.

    Attributes:
        experts: FFN experts that each layer keeps.
        by: `load`: those stay that most tokens choose; `effect`: those without which the loss grows most.
        repair: `refit`: see `ava_core.remaking.repair`; `none`.
        sequences: windows of the training split to calibrate on.
    """

    experts: int
    by: str = "load"
    repair: str = "refit"
    sequences: int = 64


class Pruning:
    """What is to be pruned, looked at when it is made.

    Args:
        model: folder of a finished model, verified.
        shards: output of `ava preprocess` with the text to calibrate on; in the model's tokens or others.
        options: what is asked for.

    Raises:
        ConfigError: experts can't be removed so.
        AvaError: a folder is no model, or no shards.
    """

    def __init__(self, model: Path, shards: Path, options: PruningOptions) -> None:
        for name, value, allowed in (("by", options.by, CRITERIA), ("repair", options.repair, REPAIRS)):
            if value not in allowed:
                raise ConfigError(f"--{name} {value}: must be one of {', '.join(allowed)}")
        self.material, self.options = Material.read(model), options
        self.config = pruned_config(self.material.config, options.experts)
        length = self.material.training.get("sequence_length")
        self.sequence_length = int(length) if isinstance(length, int) else self.config.max_position_embeddings
        self.shards = shards

    @property
    def choices(self) -> dict[str, str]:
        """What of the request determines the output."""
        return {name: str(getattr(self.options, name)) for name in ("experts", "by", "repair", "sequences")}

    def write(self, output: Path, progress: Progress) -> dict[str, float]:
        """Fill the empty folder `output`; figures of the model, and bits per byte of a part of the validation split."""
        options = self.options
        text, held_out = (
            CalibrationText(
                open_tokens(self.material.folder, self.shards, name), self.sequence_length, options.sequences
            )
            for name in ("train", "validation")
        )
        for part in (text, held_out):
            if len(part.split.tokens) < self.sequence_length:
                raise AvaError(
                    f"{self.shards}: a split has {len(part.split.tokens)} tokens: must be at least the"
                    f" {self.sequence_length} of a window: give shards of more text"
                )
        original = self._load()
        figures = {"validation_bits_per_byte_whole": held_out.bits_per_byte(original)}
        scores = self._scores(original, text, progress)
        removed = choose(scores, original.config, options.experts)
        kept = [kept_columns(original.config, layer) for layer in removed]
        pruned = prune(original, self.config, removed)
        figures["validation_bits_per_byte_pruned"] = held_out.bits_per_byte(pruned)
        if options.repair == "refit":
            with progress.task("repair", len(removed)) as advance:
                repair(original, pruned, kept, text, advance)
        figures["validation_bits_per_byte"] = held_out.bits_per_byte(pruned)
        state = pruned.state_dict()
        if self.config.tie_word_embeddings:
            state.pop(HEAD)
        dtypes = self.material.checkpoint.dtypes
        change = (
            f"{original.config.num_ffn_experts - options.experts} FFN experts of each layer removed by {options.by}"
        )
        change += ", the others refitted" if options.repair == "refit" else ""
        written = write_model(
            self.material,
            output,
            self.config,
            {name: tuple(value.shape) for name, value in state.items()},
            "bfloat16" if dtypes == ["bfloat16"] else "float32",
            lambda name: [state[name]],
            [change],
        )
        write_json(output / RECORD, {**self.choices, "removed": removed, "scores": scores.tolist()})
        return {**written, **figures}

    def _load(self) -> EnhancedMoEForCausalLM:
        model = EnhancedMoEForCausalLM(self.material.config)
        load_parent(model, Parent.read(self.material.folder))
        return model.eval()

    def _scores(self, model: EnhancedMoEForCausalLM, text: CalibrationText, progress: Progress) -> Tensor:
        if self.options.by == "load":
            return loads(model, text)
        with progress.task("effects", model.config.num_layers * model.config.num_ffn_experts) as advance:
            return effects(model, text, advance)


def pruned_config(config: EnhancedMoEConfig, experts: int) -> EnhancedMoEConfig:
    """The configuration with so many FFN experts per layer; a bound on a token's experts is lowered to what is left.

    Raises:
        ConfigError: there aren't so many, or the router can't do with them.
    """
    have, group_count = config.num_ffn_experts, _groups(config)
    if not 1 <= experts < have:
        few = "is dense" if config.num_experts == 1 else f"has {have} FFN experts per layer"
        raise ConfigError(f"--experts {experts}: the model {few}: must be at least 1 and fewer")
    if (have - experts) % group_count:
        raise ConfigError(
            f"--experts {experts}: the router has num_expert_groups = {group_count} of equal size: the {have - experts}"
            " experts to remove can't be as many from each: remove a multiple"
        )
    changes: dict[str, Any] = {"num_ffn_experts": experts}
    left = experts + config.num_zero_computation_experts
    if config.router == "confidence" and config.max_experts_per_token is not None:
        changes["max_experts_per_token"] = min(config.max_experts_per_token, left)
    try:
        return EnhancedMoEConfig.from_dict({**config.to_dict(), **changes})
    except ValueError as error:
        raise ConfigError(f"--experts {experts}: {error}") from error


def choose(scores: Tensor, config: EnhancedMoEConfig, experts: int) -> list[list[int]]:
    """The experts that each layer loses: those of the lowest scores, as many of each group of a hierarchical router.

    Args:
        scores: (layers, N), the higher the more an expert is needed.
        config: of the model.
        experts: that are left.

    Raises:
        ConfigError: a group hasn't so many FFN experts.
    """
    groups = _groups(config)
    size, count = config.num_experts // groups, (config.num_ffn_experts - experts) // groups
    removed: list[list[int]] = [[] for _ in scores]
    for first in range(0, config.num_experts, size):
        members = range(first, min(first + size, config.num_ffn_experts))
        if len(members) < count or count >= size:
            raise ConfigError(
                f"--experts {experts}: group {first // size} of the router has {len(members)} FFN experts of {size}:"
                f" {count} can't be removed from it: groups of unequal size are none of the hierarchical router's"
            )
        for layer, row in zip(removed, scores.tolist(), strict=True):
            layer += [expert for _, expert in sorted((row[expert], expert) for expert in members)[:count]]
    return [sorted(layer) for layer in removed]


def kept_columns(config: EnhancedMoEConfig, removed: Sequence[int]) -> list[int]:
    """The gate's logits that stay: those of groups, and of the experts that do."""
    groups = config.num_logits - config.num_experts
    gone = {groups + expert for expert in removed}
    return [column for column in range(config.num_logits) if column not in gone]


@torch.no_grad()
def prune(
    model: EnhancedMoEForCausalLM, config: EnhancedMoEConfig, removed: Sequence[Sequence[int]]
) -> EnhancedMoEForCausalLM:
    """The model without these experts: it computes what the model would if its routers couldn't choose them and the
    gates of the next layers saw zeros of them.

    Args:
        model: stays as it is.
        config: of the result.
        removed: FFN experts by layer.

    Raises:
        AvaError: the result's weights aren't those of its configuration.
    """
    state = dict(_pruned_state(model, removed))
    result = EnhancedMoEForCausalLM(config)
    try:
        result.load_state_dict(state)
    except RuntimeError as error:
        raise AvaError(f"pruning: {error}") from error
    return result.eval()


def _pruned_state(model: EnhancedMoEForCausalLM, removed: Sequence[Sequence[int]]) -> Iterator[tuple[str, Tensor]]:
    state = dict(model.state_dict())
    before: list[int] | None = None
    for index, gone in enumerate(removed):
        prefix = f"model.layers.{index}.moe."
        columns = kept_columns(model.config, gone)
        experts = [expert for expert in range(model.config.num_experts) if expert not in set(gone)]
        ffn = [expert for expert in experts if expert < model.config.num_ffn_experts]
        for name, rows in (
            ("gate.weight", columns),
            ("gate.residual_weight", columns),
            ("router.expert_bias", experts),
            ("experts.gate_up_proj", ffn),
            ("experts.down_proj", ffn),
        ):
            if prefix + name in state:
                state[prefix + name] = state[prefix + name][rows]
        if before is not None and f"{prefix}gate.residual_weight" in state:
            state[f"{prefix}gate.residual_weight"] = state[f"{prefix}gate.residual_weight"][:, before]
        before = columns
    yield from state.items()


def _groups(config: EnhancedMoEConfig) -> int:
    return config.num_expert_groups if config.router == "hierarchical" else 1
