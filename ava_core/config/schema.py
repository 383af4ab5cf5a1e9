"""The whole typed configuration: a pydantic model per section of params.yaml, each in the file of its name.

Every field has its meaning and unit right under it; `ava config show` prints the resolved values.
Unknown keys are refused. Defaults are a small model for a CPU; presets change them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ava_core.config.align import AlignConfig
from ava_core.config.compiling import compile_fault
from ava_core.config.conversations import ConversationsConfig
from ava_core.config.data import DataConfig
from ava_core.config.evaluate import EvaluateConfig
from ava_core.config.finetuning import FineTuning
from ava_core.config.grpo import GrpoConfig
from ava_core.config.kubernetes import KubernetesConfig
from ava_core.config.limits import MAX_THREADS
from ava_core.config.model import ModelConfig
from ava_core.config.preference_training import DpoConfig, RewardConfig
from ava_core.config.preferences import PreferencesConfig
from ava_core.config.prompts import PromptsConfig
from ava_core.config.quantize import QuantizeConfig
from ava_core.config.register import RegisterConfig
from ava_core.config.retrieval import RetrievalConfig
from ava_core.config.run import RunConfig
from ava_core.config.section import Section
from ava_core.config.sft import SftConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.config.train import TrainConfig


class AvaConfig(Section):
    """The whole configuration, as `ava config show` prints it."""

    preset: str | None = None
    """Name of a file under configs/ without its ending, or `auto`."""
    hardware: str | None = None
    """Name of a file under configs/hardware/ without its ending: what the machine decides, over the preset."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1337
    """Seeds everything that is random."""
    threads: Annotated[int, Field(ge=0, le=MAX_THREADS)] = 0
    """CPU threads of every step; 0: as many as this process may use. Only the same number gives the same bits."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    align: AlignConfig = AlignConfig()
    conversations: ConversationsConfig = ConversationsConfig()
    sft: SftConfig = SftConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    prompts: PromptsConfig = PromptsConfig()
    reward: RewardConfig = RewardConfig()
    dpo: DpoConfig = DpoConfig()
    grpo: GrpoConfig = GrpoConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: Annotated[RegisterConfig, Field(alias="register")] = RegisterConfig()
    run: RunConfig = RunConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()

    @property
    def stages(self) -> list[str]:
        """The steps between train and quantize that were asked for; alignment's shards come with their trainings."""
        return [*self.align.stages, *(["index"] if self.retrieval.pipeline else [])]

    @model_validator(mode="after")
    def _context_fits(self) -> AvaConfig:
        if self.train.init is not None and "max_position_embeddings" not in self.model.model_fields_set:
            return self  # the parent says it, who isn't known here
        if self.train.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"train.sequence_length = {self.train.sequence_length}: must be <= model.max_position_embeddings"
                f" = {self.model.max_position_embeddings}"
            )
        context, scaling = self.model.max_position_embeddings, self.model.rope_scaling
        if self.model.sliding_window is not None and self.model.sliding_window >= context:
            raise ValueError(
                f"model.sliding_window = {self.model.sliding_window}: must be < model.max_position_embeddings ="
                f" {context}: a window that holds the whole context has no effect"
            )
        original = scaling.original_max_position_embeddings
        if original is not None and original >= context:
            raise ValueError(
                f"model.rope_scaling.original_max_position_embeddings = {original}: must be <"
                f" model.max_position_embeddings = {context}: raise that to the context that is wanted"
            )
        return self

    @model_validator(mode="after")
    def _layers_can_be_compiled(self) -> AvaConfig:
        if self.train.compile and (fault := compile_fault(self.train, self.model)):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _regularization_can_grow(self) -> AvaConfig:
        for name in ("dropout", "router_jitter") if self.train.regularization.adaptive else ():
            maximum, base = getattr(self.train.regularization, f"max_{name}"), getattr(self.model, name)
            if maximum < base:
                raise ValueError(
                    f"train.regularization.max_{name} = {maximum}: must be >= model.{name} = {base}, which it starts"
                    " from"
                )
        return self


FINE_TUNINGS: dict[str, type[FineTuning]] = {
    name: field.annotation
    for name, field in AvaConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, FineTuning)
}
"""The sections that take over what they don't set from `train`."""
