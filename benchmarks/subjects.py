"""What is measured: one training step of each model, ours and the peers', as a worker of `benchmarks.turns`.

A subject's name is that of a model with settings after it: `hf_olmoe_bf16+kept`. Settings:

    kept             freed memory stays in the process (`ava_core.training.process.prepare`); ours always has it
    eager, batched_mm, grouped_mm   how a peer evaluates its experts; grouped_mm is its default here
    eager_attention  the peer's explicit attention instead of `scaled_dot_product_attention`
    looped, dense, ... how ours evaluates its experts (`EXPERTS_IMPLEMENTATIONS`), instead of what it chooses itself
    compiled         through `torch.compile`
    layers_compiled  its decoder layers through it, each by itself, which compiles one graph for all of them; ours as
                     `train.compile` does it, so on a GPU only
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ava_core.config.train import TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM, RoutingStatistics
from ava_core.models.configuration import EXPERTS_IMPLEMENTATIONS
from ava_core.training.engine.compiled import CompiledLayers
from ava_core.training.optimizers import build_optimizer
from ava_core.training.process import prepare
from benchmarks.dense import make_dense
from benchmarks.workload import Workload

OURS = ("ours_vanilla", "ours_moepp", "ours_dense")
PEERS = ("hf_olmoe_autocast", "hf_olmoe_bf16", "hf_mixtral_bf16", "hf_qwen3_moe_bf16", "hf_llama_bf16")
PEER_EXPERTS = ("eager", "batched_mm", "grouped_mm")
OUR_EXPERTS = tuple(name for name in EXPERTS_IMPLEMENTATIONS if name != "auto")
SETTINGS = {*PEER_EXPERTS, *OUR_EXPERTS, "kept", "eager_attention", "compiled", "layers_compiled"}
LEARNING_RATE = 1e-3
BALANCE_LOSS_WEIGHT = 0.1
"""Of our mixtures: so many experts of each kind are used as `tau` asks for, as in a trained model."""


@dataclass(slots=True)
class Step:
    """A model with what one training step needs.

    Attributes:
        forward: token ids (B, S) -> the model's output, whose `loss` is differentiated.
        context: around the forward pass.
    """

    model: nn.Module
    optimizer: Optimizer
    forward: Callable[[Tensor], Any]
    context: Callable[[], AbstractContextManager] = nullcontext


class TrainingStep:
    """Worker: builds the subject `name`; a turn is some training steps on the same random tokens.

    Raises:
        ValueError: no such subject or setting.
    """

    def __init__(self, name: str, workload: dict[str, Any], threads: int):
        work = Workload(**workload)
        base, settings = parse(name)
        if base in OURS or "kept" in settings:
            prepare(threads, 0)
        else:
            torch.set_num_threads(threads)
            torch.manual_seed(0)
        self.work = work
        self.memory_before = _status_bytes("VmRSS")
        self.step = build_ours(base, settings, work) if base in OURS else build_peer(base, settings, work)
        self.generator = torch.Generator().manual_seed(0)  # all subjects see the same tokens

    def turn(self, steps: int) -> dict[str, Any]:
        """Return tokens_per_second of whole steps, the last loss, and FFN experts per token (None: not told)."""
        on_gpu = self.work.device == "cuda"
        if on_gpu:  # without time: its cache is empty, see below
            self._train(1)
            torch.cuda.synchronize()
        started = time.perf_counter()
        loss, routed = self._train(steps)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        figures = {
            "tokens_per_second": steps * self.work.tokens / seconds,
            "loss": loss.item(),
            "ffn_experts_per_token": _ffn_experts_per_token(routed),
        }
        if on_gpu:  # the others, whose turn is next, need the memory
            torch.cuda.empty_cache()
        return figures

    def _train(self, steps: int) -> tuple[Tensor, Sequence[RoutingStatistics]]:
        """The last step's loss, and its statistics by layer, none of peers'."""
        step = self.step
        for _ in range(steps):
            # New tokens for each step: a batch that comes again is learnt by heart, and the routers with it.
            shape = (self.work.batch, self.work.length)
            tokens = torch.randint(self.work.vocab_size, shape, generator=self.generator).to(self.work.device)
            with step.context():
                output = step.forward(tokens)
            loss, routed = output.loss, getattr(output, "router_statistics", None) or ()
            del output  # a peer's holds the logits, which needn't last
            loss.backward()
            step.optimizer.step()
            step.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), routed

    def finish(self) -> dict[str, Any]:
        """Return peak_bytes, peak_bytes_over_start (without libraries; on a GPU the same), parameters."""
        if self.work.device == "cuda":
            peak = over = torch.cuda.max_memory_allocated()
        else:
            peak = _status_bytes("VmHWM")
            over = peak - self.memory_before
        parameters = sum(parameter.numel() for parameter in self.step.model.parameters())
        return {"peak_bytes": peak, "peak_bytes_over_start": over, "parameters": parameters}


def parse(name: str) -> tuple[str, frozenset[str]]:
    """Model and settings of a subject's name.

    Raises:
        ValueError: no such model or setting.
    """
    base, *settings = name.split("+")
    if base not in (*OURS, *PEERS):
        raise ValueError(f"subject = {name}: must begin with one of {', '.join((*OURS, *PEERS))}")
    for setting in settings:
        if setting not in SETTINGS:
            raise ValueError(f"subject = {name}: setting {setting} must be one of {', '.join(sorted(SETTINGS))}")
    return base, frozenset(settings)


def build_ours(base: str, settings: frozenset[str], work: Workload) -> Step:
    """Our model with bf16 weights, its optimiser with float32 masters, its loss without whole logits."""
    chosen = next((name for name in OUR_EXPERTS if name in settings), "auto")
    config = our_config(work, zero_computation=base == "ours_moepp", experts_implementation=chosen)
    model: nn.Module = EnhancedMoEForCausalLM(config)
    if base == "ours_dense":
        make_dense(model, config, work.dense_size)
    model = model.to(device=work.device, dtype=torch.bfloat16).train()
    optimizer = our_optimizer(model)
    called = torch.compile(model) if "compiled" in settings else model
    context: Callable[[], AbstractContextManager] = nullcontext
    if "layers_compiled" in settings:
        model.model.auxiliary_scale = 0.0  # as `train.compile` has it: the loss contains what the routers add
        context = CompiledLayers(model, TrainConfig()).in_force
    return Step(model, optimizer, lambda ids: called(input_ids=ids, labels=ids, return_logits=False), context)


def our_optimizer(model: nn.Module) -> Optimizer:
    """The optimiser that our training uses, which knows how to treat bf16 weights."""
    return build_optimizer(model, TrainConfig(optimizer="adamw", learning_rate=LEARNING_RATE, weight_decay=0.0))


def build_peer(base: str, settings: frozenset[str], work: Workload) -> Step:
    """A model of Transformers as its users run it: its own loss, PyTorch's fused AdamW on the weights as they are."""
    autocast = base.endswith("_autocast")
    config, model_class = _peer_class(base, work)
    attention = "eager" if "eager_attention" in settings else "sdpa"
    dtype = torch.float32 if autocast else torch.bfloat16
    model = model_class._from_config(config, dtype=dtype, attn_implementation=attention)
    if base != "hf_llama_bf16":
        model.set_experts_implementation(next((name for name in PEER_EXPERTS if name in settings), "grouped_mm"))
    model = model.to(work.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    called = torch.compile(model) if "compiled" in settings else model
    if "layers_compiled" in settings:
        _compile_layers(model)

    def context() -> AbstractContextManager:
        return torch.autocast(work.device, torch.bfloat16) if autocast else nullcontext()

    return Step(model, optimizer, lambda ids: called(input_ids=ids, labels=ids), context)


def _compile_layers(model: Any) -> None:
    """Let a peer's decoder layers share one compiled graph: without a cache none of them is told its number."""
    model.config.use_cache = False
    layers = model.model.layers
    forward = torch.compile(type(layers[0]).forward, dynamic=False)
    for layer in layers:
        layer.forward = MethodType(forward, layer)


def our_config(
    work: Workload, *, zero_computation: bool = False, experts_implementation: str = "auto"
) -> EnhancedMoEConfig:
    """Our model at the workload's shapes: MoE++, or without `zero_computation` a plain mixture."""
    return EnhancedMoEConfig(
        vocab_size=work.vocab_size,
        hidden_size=work.hidden_size,
        num_layers=work.layers,
        num_attention_heads=work.heads,
        num_key_value_heads=work.key_value_heads,
        head_dim=work.head_dim,
        max_position_embeddings=work.length,
        num_ffn_experts=work.experts,
        expert_intermediate_size=work.expert_size,
        num_experts_per_token=work.experts_per_token,
        num_zero_experts=work.zero_experts if zero_computation else 0,
        num_copy_experts=work.copy_experts if zero_computation else 0,
        num_constant_experts=work.constant_experts if zero_computation else 0,
        tau=work.tau if zero_computation else 1.0,
        gating_residuals=zero_computation,
        balance_loss_weight=BALANCE_LOSS_WEIGHT,
        experts_implementation=experts_implementation,
        tie_word_embeddings=True,
    )


def _peer_class(base: str, work: Workload) -> tuple[Any, Any]:
    """Configuration and class of a peer, in the shapes of the workload, embeddings tied as ours are."""
    import transformers

    shapes: dict[str, Any] = {
        "vocab_size": work.vocab_size,
        "hidden_size": work.hidden_size,
        "num_hidden_layers": work.layers,
        "num_attention_heads": work.heads,
        "num_key_value_heads": work.key_value_heads,
        "max_position_embeddings": work.length,
        "tie_word_embeddings": True,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    experts: dict[str, Any] = {"intermediate_size": work.expert_size, "num_experts_per_tok": work.experts_per_token}
    if base.startswith("hf_olmoe"):  # its heads are always hidden_size / heads wide
        config = transformers.OlmoeConfig(**shapes, **experts, num_experts=work.experts)
        return config, transformers.OlmoeForCausalLM
    shapes["head_dim"] = work.head_dim
    if base == "hf_mixtral_bf16":
        return (
            transformers.MixtralConfig(**shapes, **experts, num_local_experts=work.experts, sliding_window=None),
            transformers.MixtralForCausalLM,
        )
    if base == "hf_qwen3_moe_bf16":
        size: dict[str, Any] = {"moe_intermediate_size": work.expert_size, "num_experts": work.experts}
        return transformers.Qwen3MoeConfig(**shapes, **experts, **size), transformers.Qwen3MoeForCausalLM
    return transformers.LlamaConfig(**shapes, intermediate_size=work.dense_size), transformers.LlamaForCausalLM


def _ffn_experts_per_token(layers: Sequence[RoutingStatistics]) -> float | None:
    if not layers:
        return None
    return sum(float(layer.ffn_experts_per_token) for layer in layers) / len(layers)


def _status_bytes(field: str) -> int:
    """A size from this process's status: VmRSS, resident now, or VmHWM, the most that ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"the kernel tells no {field} of a process")
