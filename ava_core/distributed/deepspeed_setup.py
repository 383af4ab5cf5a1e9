"""DeepSpeed's configuration and engine for a training section."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from ava_core.config.train import TrainConfig
from ava_core.distributed.deepspeed import import_deepspeed
from ava_core.distributed.ranks import Ranks
from ava_core.models.modeling import DecoderLayer

MAX_BUCKET = 500_000_000
"""DeepSpeed's default for the elements that one exchange takes; it allocates so many."""


def deepspeed_config(config: TrainConfig, ranks: Ranks, parameters: int) -> dict[str, Any]:
    """The configuration that DeepSpeed gets.

    At stage 0 it trains the weights as they are: its own `bf16` flattens all parameters into one vector, and our
    optimisers keep masters themselves. At stages 1 to 3 it casts the weights, keeps the float32 masters in partitions,
    and clips.

    The number of micro-batches isn't told to it (`managed_gradient_accumulation`): curricula change it on the way.

    Args:
        parameters: how many are trained.
    """
    passes = config.global_batch_size // (config.micro_batch_size * ranks.size)
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": passes if config.zero_stage else 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "steps_per_print": 2**31,
    }
    if not config.zero_stage:
        return result
    bucket = min(MAX_BUCKET, 2 * -(-parameters // 2))
    result["zero_optimization"] |= {
        # It would need the micro-batches counted.
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    # Our optimisers aren't among those that DeepSpeed lists; they treat every element alike, or gather what they need.
    result["zero_allow_untested_optimizer"] = True
    if config.precision == "bf16":
        # As in float32 and float16: a gradient that is not finite is left out instead of spread over the weights.
        result["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif config.precision == "fp16":
        result["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 1}
    if config.precision != "fp32":
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.offload != "none":
        result["zero_force_ds_cpu_optimizer"] = False
        result["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload == "all":
        result["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": True}
    return result


def initialize(model: PreTrainedModel, optimizer: Optimizer, config: TrainConfig, ranks: Ranks) -> Any:
    """The DeepSpeed engine around `model` and `optimizer`; the process group must be connected."""
    deepspeed = import_deepspeed()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    settings = deepspeed_config(config, ranks, trained)
    if config.zero_stage == 3:
        # A layer's weights are gathered at once, and nothing is hooked inside it: hooks don't understand our outputs.
        deepspeed.utils.set_z3_leaf_modules(model, [DecoderLayer])
        if not model.get_input_embeddings().weight.requires_grad:
            # A layer whose input has no gradient would be cut up again at the beginning of its backward pass, not at
            # its end: DeepSpeed hears of that end by the input's gradient.
            model.enable_input_require_grads()
    with _quiet():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    if config.zero_stage == 0:
        engine.enable_backward_allreduce = False  # gradients are averaged before they are judged, not in the step
    if config.zero_stage == 3 and (head := model.get_output_embeddings()) is not None:
        # The loss takes the head's weight without calling the head; the weight is the embedding's where they are tied.
        deepspeed.zero.register_external_parameter(model, head.weight)
    return engine


def exact_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and float32 masters of what is trained, gathered from the partitions of ZeRO 1 to 3; tied ones are one
    tensor.

    Collective: all ranks must exhaust it.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    gathered: dict[int, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        if id(parameter) not in gathered:
            exact = safe_get_full_fp32_param(parameter)
            gathered[id(parameter)] = parameter.detach().float() if exact is None else exact.detach()
        yield name, gathered[id(parameter)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its warning of optimisers that it doesn't know, and the memory reports that its optimiser of stage 1 in
    bfloat16 prints: each begins with a garbage collection, 2 s in all."""
    from deepspeed.runtime import bf16_optimizer

    logger = logging.getLogger("DeepSpeed")
    level, report = logger.level, bf16_optimizer.see_memory_usage
    logger.setLevel(logging.ERROR)
    bf16_optimizer.see_memory_usage = lambda *_, **__: None
    try:
        yield
    finally:
        bf16_optimizer.see_memory_usage = report
        logger.setLevel(level)
