"""The section `train` of the configuration, and what must hold between its values."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ava_core.config.adapter import AdapterConfig, require_adaptable
from ava_core.config.hardware import natural_precision
from ava_core.config.loss import LossConfig
from ava_core.config.optimizers import OPTIMIZERS, OptimizerName
from ava_core.config.precision import Precision
from ava_core.config.section import (
    LARGEST,
    Fraction,
    LearningRate,
    NonNegative,
    Positive,
    PositiveNumber,
    Section,
    Text,
    Weight,
)
from ava_core.config.tasks import BUILT_IN, TaskConfig, TaskList
from ava_core.config.train_sections import (
    CurriculumConfig,
    EmaConfig,
    GuardConfig,
    RateGroup,
    RegularizationConfig,
    TeacherConfig,
)

ScheduleName = Literal[
    "cosine", "linear", "constant", "one_cycle", "wsd", "plateau", "cosine_restarts", "polynomial", "inverse_sqrt"
]
WarmupName = Literal["linear", "cosine", "exponential", "sqrt", "none"]
"""Shapes of both are in `ava_core.training.schedules`."""


class TrainConfig(Section):
    """Training with DeepSpeed."""

    begins_from_model: ClassVar[bool] = False
    """Whether there always is a finished model to begin from, which another flag names."""

    watching = frozenset({"profile"})

    init: Text | None = None
    """Model to begin from, whose weights, architecture and tokenizer are kept: a model folder, or a registered one as
    models:/NAME@ALIAS or models:/NAME/VERSION; null: fresh weights. The same as --init."""
    init_schedule: Literal["anew", "continue"] | None = None
    """`anew`: steps count from 0 and the rate warms up; `continue`: both go on where the parent ended (steps counts
    from its beginning). null: anew after --init, continue after --resume."""
    reset_optimizer: bool = False
    """Take only the weights from a checkpoint given with --resume: optimiser, its state, precision may be others."""
    keep_optimizer: bool = False
    """Take the optimiser's state too from the training that made `init`: it has it if it had `keep_last_checkpoint`."""
    freeze: list[Text] = []
    """Parameters that stay as they are: patterns of names as a shell has them (`layers.0.*`, `*.moe.gate.*`)."""
    steps: Positive = 300
    """Optimiser steps, at most."""
    max_minutes: PositiveNumber | None = None
    """Ends the training, and its schedule, after this time spent in steps. Results then depend on the clock."""
    max_tokens: Annotated[int, Field(gt=0, le=10**18)] | None = None
    """Ends the training when so many tokens have been seen."""
    sequence_length: Annotated[int, Field(ge=8, le=LARGEST)] = 256
    """Tokens per training sequence: the training context, and the window in which losses are scored."""
    global_batch_size: Positive = 32
    """Sequences per optimiser step."""
    micro_batch_size: Positive = 32
    """Sequences per forward pass of one process; the passes that a step needs are accumulated."""
    launcher: Literal["local", "trainjob"] = "local"
    """Where the processes run. `local`: on this machine, or on those of `hostfile`; `trainjob`: on machines of a
    Kubernetes cluster, which kubernetes.train_job describes."""
    processes: Annotated[int, Field(gt=0, le=4096)] = 1
    """Processes on each machine that train together."""
    hostfile: Text | None = None
    """Machines, as DeepSpeed's launcher reads them (`HOST slots=N` per line); null: this one."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What is partitioned over the processes: 1: optimiser state; 2: gradients too; 3: weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO keeps in host memory instead of the GPU's: the optimiser state, or the weights of stage 3 too."""
    optimizer: OptimizerName = "muon"
    """`muon`: orthogonalised momentum for hidden matrices, AdamW for everything else; `adamw_8bit`: moments of a byte,
    for a quarter of AdamW's memory; `adamw_schedule_free`: measures and exports an average of the weights that needs no
    decay of the rate, nor to know how long the training is."""
    learning_rate: LearningRate = 0.02
    """Peak rate (of Muon's matrices, if the optimiser is muon)."""
    adam_learning_rate: LearningRate = 0.004
    """Peak rate of the parameters that Muon leaves to AdamW; unused by the others."""
    embedding_learning_rate_ratio: PositiveNumber = 1.0
    """Rate of the embedding and the head as a multiple of what they would have."""
    router_learning_rate_ratio: PositiveNumber = 1.0
    """Rate of the routers' gates as a multiple of what they would have."""
    learning_rate_decay_by_layer: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Rate of each layer, and of the embedding, as a multiple of that of the layer above it (arXiv 2003.10555)."""
    learning_rate_groups: list[RateGroup] = []
    """Parameters with a multiple of the rate that they would have: `{pattern, multiplier}`; the first match counts."""
    weight_decay: Weight = 0.05
    """Decoupled weight decay of matrices; norms, biases and constants have none."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay per step of the first moment of AdamW, also of the parameters that Muon leaves to it."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay per step of the second moment, likewise."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay per step of Muon's momentum."""
    expert_update_interval: Positive = 1
    """Steps between Muon's updates of a stack of experts, each so many times as large; the stacks take turns. 2 halves
    what most of Muon's time goes into, at a small loss per step."""
    schedule: ScheduleName = "cosine"
    """Shape of the learning rate after warm-up. wsd: stable, then linear decay over `decay_share`; plateau: lowered
    when the validation loss stops falling; cosine_restarts: to the peak again and again (SGDR); polynomial: a straight
    line to the power of `decay_power`; inverse_sqrt: falls with the root of the steps (the Transformer's)."""
    warmup_steps: NonNegative = 20
    """Steps of warm-up."""
    warmup_shape: WarmupName = "linear"
    """How the rate gets to its peak. exponential: by the same factor at each step, from a hundredth of the peak; sqrt:
    fast at first; none: no warm-up, whatever `warmup_steps` says."""
    final_learning_rate_ratio: Fraction = 0.1
    """Rate at the last step as a share of the peak (the least rate of plateau, cosine_restarts and inverse_sqrt)."""
    restart_period: Positive = 100
    """Steps after warm-up until cosine_restarts begins anew for the first time."""
    restart_multiplier: Annotated[float, Field(ge=1.0, le=1e3)] = 2.0
    """How many times as long each of its periods is as the one before; 1: all are alike."""
    restart_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the peak that is left at each of its restarts; 1: all of it."""
    decay_power: PositiveNumber = 1.0
    """Exponent of polynomial: 1 is a straight line, 2 falls fast at first."""
    decay_share: Fraction = 0.2
    """Share of the steps, the last ones, in which wsd decays."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What plateau multiplies the rate with."""
    plateau_patience: Positive = 3
    """Evaluations without a lower validation loss before plateau lowers the rate."""
    gradient_clip: Weight = 1.0
    """Largest global norm of the gradient; 0: no clipping."""
    clip_mode: Literal["norm", "adaptive"] = "norm"
    """`adaptive`: clip what stands out of the recent norms too (ZClip, arXiv 2504.02507)."""
    gradient_surgery: bool = False
    """Project gradients of main and auxiliary losses off each other where they conflict (PCGrad, arXiv 2001.06782)."""
    precision: Precision = Field(default_factory=natural_precision)
    """Type of weights, activations and products; the optimiser works on float32 masters. fp16: with loss scaling. By
    default bf16, or fp32 on a machine without a GPU whose CPU has no AVX-512."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every layer in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the layers with torch.compile: on a GPU and in bf16. See docs/training.md."""
    memory_budget: PositiveNumber | None = None
    """GiB that a training process may take: so many layers as it needs recompute their activations. null: no bound."""
    evaluate_every: Positive = 50
    """Steps between measurements of the validation loss."""
    evaluate_sequences: Positive = 64
    """Validation sequences scored at those points; the last measurement scores the whole split."""
    early_stopping_patience: Positive | None = None
    """Evaluations without a lower validation loss after which training ends; null: it never ends early."""
    checkpoint_every: Positive = 50
    """Steps between durable checkpoints."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept on disk while training: the last ones."""
    keep_best_checkpoint: bool = False
    """Keep the checkpoint with the lowest validation loss too, also when the training has finished."""
    keep_checkpoint_every: Positive | None = None
    """Keep the checkpoints of steps that are multiples of this too, also when the training has finished."""
    keep_last_checkpoint: bool = False
    """Keep that of the last step when the training has finished: for `keep_optimizer`."""
    sample_every: Positive | None = None
    """Steps between samples of the model's writing in the log; null: none."""
    profile: Annotated[int, Field(gt=0, le=100)] | None = None
    """Steps to profile, a few after the first, into OUTPUT.profile/; null: none. It changes no result and no key."""
    tasks_every: Positive | None = None
    """Steps between benchmarks, whose figures go to the history; null: none."""
    tasks: TaskList = [TaskConfig(name=name) for name in BUILT_IN]
    """Which, by name; as evaluate.tasks, but our own are made from the validation split."""
    tasks_limit: Positive = 100
    """Questions of each task there, at most: the error of 100 is about 0.05 at an accuracy of 0.5."""
    loss: LossConfig = LossConfig()
    teacher: TeacherConfig = TeacherConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    guard: GuardConfig = GuardConfig()
    ema: EmaConfig = EmaConfig()
    adapter: AdapterConfig = AdapterConfig()

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainConfig:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size}: must be a multiple of micro_batch_size"
                f" = {self.micro_batch_size}"
            )
        if self.global_batch_size % (self.micro_batch_size * self.processes):
            raise ValueError(
                f"global_batch_size = {self.global_batch_size}: must be a multiple of micro_batch_size x processes"
                f" = {self.micro_batch_size} x {self.processes}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainConfig:
        if self.warmup_length >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps}: must be < steps = {self.steps}")
        if self.schedule == "inverse_sqrt" and not self.warmup_length:
            key = f"warmup_shape = {self.warmup_shape}" if self.warmup_steps else "warmup_steps = 0"
            raise ValueError(f"{key}: inverse_sqrt falls by the length of its warm-up: give it one")
        return self

    @model_validator(mode="after")
    def _profile_fits(self) -> TrainConfig:
        if self.profile is not None and self.profile > self.steps:
            raise ValueError(f"profile = {self.profile}: must be <= steps = {self.steps}")
        return self

    @property
    def warmup_length(self) -> int:
        """Steps of warm-up that there really are."""
        return 0 if self.warmup_shape == "none" else self.warmup_steps

    @model_validator(mode="after")
    def _tasks_have_names(self) -> TrainConfig:
        for entry in self.tasks:
            if entry.path is not None:
                raise ValueError(f"tasks: {entry.path}: files are for evaluate.tasks: name tasks here")
        return self

    @model_validator(mode="after")
    def _machines_have_one_source(self) -> TrainConfig:
        if self.launcher == "trainjob" and self.hostfile is not None:
            raise ValueError(
                f"hostfile = {self.hostfile}: launcher = trainjob has its machines from kubernetes.train_job: leave it"
                " out, or use launcher = local"
            )
        return self

    @model_validator(mode="after")
    def _curriculum_fits(self) -> TrainConfig:
        unit = self.micro_batch_size * self.processes
        self.curriculum.require_fit(self.sequence_length, self.global_batch_size, unit)
        return self

    @model_validator(mode="after")
    def _weight_decay_can_grow(self) -> TrainConfig:
        maximum = self.regularization.max_weight_decay
        if self.regularization.adaptive and maximum < self.weight_decay:
            raise ValueError(
                f"regularization.max_weight_decay = {maximum}: must be >= weight_decay = {self.weight_decay}, which it"
                " starts from"
            )
        return self

    @model_validator(mode="after")
    def _zero_fits(self) -> TrainConfig:
        stage = self.zero_stage
        if stage and (reason := OPTIMIZERS[self.optimizer].needs_whole):
            others = ", ".join(name for name, traits in OPTIMIZERS.items() if traits.needs_whole is None)
            raise ValueError(f"zero_stage = {stage}: {reason}: use stage 0, or {others}")
        if stage and self.optimizer == "muon" and self.expert_update_interval > 1:
            raise ValueError(
                f"expert_update_interval = {self.expert_update_interval}: zero_stage = {stage} cuts the stacks of"
                " experts into partitions: use 1, or zero_stage = 0"
            )
        if stage and self.gradient_surgery:
            raise ValueError(
                f"zero_stage = {stage}: gradient_surgery compares whole gradients, which ZeRO cuts up: use stage 0"
            )
        if self.offload != "none" and not stage:
            raise ValueError(f"offload = {self.offload}: needs zero_stage 1, 2 or 3")
        if self.offload == "all" and stage != 3:
            raise ValueError(f"offload = all: needs zero_stage 3, not {stage}")
        return self

    @model_validator(mode="after")
    def _weights_are_averaged_once(self) -> TrainConfig:
        if not OPTIMIZERS[self.optimizer].averages:
            return self
        if self.schedule != "constant":
            raise ValueError(
                f"schedule = {self.schedule}: {self.optimizer} averages the weights instead: use constant, with a"
                " warm-up, or another optimizer"
            )
        if self.ema.decay is not None:
            raise ValueError(
                f"ema.decay = {self.ema.decay}: {self.optimizer} averages the weights itself: leave it out, or use"
                " adamw"
            )
        if not self.adam_beta1:
            raise ValueError(f"adam_beta1 = 0: {self.optimizer} divides by it: must be > 0")
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> TrainConfig:
        require_adaptable(self)
        return self

    @model_validator(mode="after")
    def _memory_is_decided_once(self) -> TrainConfig:
        if self.gradient_checkpointing and self.memory_budget is not None:
            raise ValueError("memory_budget: decides which layers recompute, so gradient_checkpointing must be false")
        return self
