"""Parameters and training memory of a model, from its configuration alone: nothing is built, torch isn't imported.

The counts are exact. The memory is an estimate for one process without ZeRO partitioning; what it leaves out is
what the allocator, the libraries and the data take (some 1 GiB of host memory).
"""

from __future__ import annotations

from dataclasses import dataclass

from ava_core.config.model import ModelConfig
from ava_core.config.precision import FLOAT32, WIDTHS
from ava_core.config.routing import max_slots, num_logits
from ava_core.config.train import TrainConfig

LOGITS_CHUNK = 1024
"""Tokens whose logits exist at once, as in `ava_core.losses.chunked`."""


@dataclass(frozen=True)
class Estimate:
    """Size of a model and of its training.

    Attributes:
        parameters: all of them; tied embeddings count once.
        active_parameters: those that one token passes, at most: of the FFN experts only as many as a token may have.
        weight_bytes: weights in the training precision.
        gradient_bytes: their gradients; float32 where they are accumulated over micro-batches.
        optimizer_bytes: float32 masters of weights in half precision; two moments for AdamW and Sophia, one for Lion
            and for the matrices that Muon updates, rows and columns of matrices for Adafactor; and the average of the
            weights.
        activation_bytes: the most that is temporary: what the backward pass needs of one micro-batch, or the
            optimiser's work space, whichever is more.
    """

    parameters: int
    active_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        """Memory that training takes at its peak."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


def estimate(model: ModelConfig, train: TrainConfig, vocab_size: int) -> Estimate:
    """Count parameters and estimate the memory of training.

    Args:
        model: the architecture.
        train: batch, context, precision and optimiser.
        vocab_size: entries of the tokenizer.
    """
    attention, experts, shared = _attention(model), _expert(model) * model.num_ffn_experts, _shared(model)
    hidden = model.num_layers * (attention + experts + shared)
    head = 0 if model.tie_word_embeddings else vocab_size * model.hidden_size
    parameters = vocab_size * model.hidden_size + head + hidden + _small(model)
    idle_experts = model.num_ffn_experts - _ffn_slots(model)
    # Muon updates the matrices inside the layers (ava_core.training.optimizers.is_hidden_matrix).
    with_momentum = hidden if train.optimizer == "muon" else 0
    low = WIDTHS[train.precision]
    accumulated = train.global_batch_size > train.micro_batch_size
    masters = parameters if low < FLOAT32 else 0
    average = parameters if train.ema.decay else 0
    return Estimate(
        parameters=parameters,
        active_parameters=parameters - model.num_layers * idle_experts * _expert(model),
        weight_bytes=low * parameters,
        gradient_bytes=(FLOAT32 if accumulated else low) * parameters,
        optimizer_bytes=FLOAT32
        * (masters + average + _state_entries(model, train, vocab_size, parameters, with_momentum)),
        activation_bytes=max(_backward_bytes(model, train, vocab_size), _muon_bytes(model, with_momentum)),
    )


def largest_part(model: ModelConfig, train: TrainConfig, vocab_size: int, sizes: Estimate) -> tuple[str, list[str]]:
    """What takes most of a training's memory, and the keys that decide how much, as `key = value`."""
    width = f"model.hidden_size = {model.hidden_size}"
    layers = f"model.num_layers = {model.num_layers}"
    heads = 1 if model.tie_word_embeddings else 2
    experts = (model.num_ffn_experts + model.num_shared_experts) * _expert(model) * model.num_layers
    kinds = ("num_ffn_experts", "num_zero_experts", "num_copy_experts", "num_constant_experts", "num_expert_groups")
    most = max(kinds, key=lambda kind: getattr(model, kind))
    parts = {
        "the embedding": (heads * vocab_size * model.hidden_size, [f"tokenizer.vocab_size = {vocab_size}", width]),
        "the experts": (
            experts,
            [
                f"model.num_ffn_experts = {model.num_ffn_experts}",
                f"model.expert_intermediate_size = {model.expert_intermediate_size}",
                layers,
                width,
            ],
        ),
        "attention": (
            model.num_layers * _attention(model),
            [f"model.num_attention_heads = {model.num_attention_heads}", layers, width],
        ),
        "the routers": (_small(model), [f"model.{most} = {getattr(model, most)}", layers, width]),
    }
    name, (_, keys) = max(parts.items(), key=lambda item: item[1][0])
    if sizes.activation_bytes // 2 > sizes.weight_bytes + sizes.gradient_bytes + sizes.optimizer_bytes:
        length = f"train.sequence_length = {train.sequence_length}"
        return "what one sequence needs for the backward pass", [length, *keys]
    return name, keys


def saved_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """What the layers keep of one micro-batch for the backward pass.

    As PyTorch's own operations and a fused attention keep it. The native kernels (bfloat16 on a CPU) keep less than
    half; attention by explicit products, on a CPU without the kernels, keeps the probabilities too.
    """
    tokens = train.micro_batch_size * train.sequence_length
    layer = tokens * _saved_per_token(model, train)
    if train.gradient_checkpointing:
        kept = WIDTHS[train.precision] * model.hidden_size + FLOAT32 * num_logits(model)
        return model.num_layers * tokens * kept + layer
    return model.num_layers * layer


def _head_dim(model: ModelConfig) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def _attention(model: ModelConfig) -> int:
    """Parameters of the query, key, value and output projections of a layer."""
    heads = 2 * model.num_attention_heads + 2 * model.num_key_value_heads
    return model.hidden_size * heads * _head_dim(model)


def _expert(model: ModelConfig) -> int:
    """Parameters of one SwiGLU expert: gate, up and down."""
    return 3 * model.hidden_size * model.expert_intermediate_size


def _shared(model: ModelConfig) -> int:
    return model.num_shared_experts * _expert(model)


def _small(model: ModelConfig) -> int:
    """Parameters of all norms, gates, gating residuals and constant experts."""
    heads = {"head": 2, "projection": model.num_attention_heads + model.num_key_value_heads, "none": 0}[model.qk_norm]
    norms = 2 * model.hidden_size + heads * _head_dim(model)
    logits = num_logits(model)
    gate = logits * model.hidden_size
    constants = 3 * model.num_constant_experts * model.hidden_size  # the vector v, and a row of W_c for each of a1, a2
    residuals = (model.num_layers - 1) * logits**2 if model.gating_residuals else 0
    return model.num_layers * (norms + gate + constants) + residuals + model.hidden_size


def _ffn_slots(model: ModelConfig) -> int:
    return min(max_slots(model), model.num_ffn_experts)


def _state_entries(model: ModelConfig, train: TrainConfig, vocab_size: int, parameters: int, with_momentum: int) -> int:
    """Float32 values that the optimiser keeps beside the masters."""
    if train.optimizer == "lion":
        return parameters
    if train.optimizer == "adafactor":
        return _factored(model, vocab_size)
    return with_momentum + 2 * (parameters - with_momentum)


def _factored(model: ModelConfig, vocab_size: int) -> int:
    """Adafactor's state: one value per row and one per column of every matrix (arXiv 1804.04235), all of vectors."""
    width, inner = model.hidden_size, model.expert_intermediate_size
    queries, keys = model.num_attention_heads * _head_dim(model), model.num_key_value_heads * _head_dim(model)
    attention = 4 * width + 2 * queries + 2 * keys
    expert = (2 * inner + width) + (width + inner)
    shared = model.num_shared_experts * inner
    shared_experts = (2 * shared + width) + (width + shared) if shared else 0
    constants, logits = model.num_constant_experts, num_logits(model)
    norms = 2 * width + {"head": 2, "projection": 0, "none": 0}[model.qk_norm] * _head_dim(model)
    norms += queries + keys if model.qk_norm == "projection" else 0
    gate = logits + width + ((constants + width) + (2 * constants + width) if constants else 0)
    residuals = (model.num_layers - 1) * 2 * logits if model.gating_residuals else 0
    layer = attention + model.num_ffn_experts * expert + shared_experts + norms + gate
    heads = 1 if model.tie_word_embeddings else 2
    return heads * (vocab_size + width) + model.num_layers * layer + residuals + width


def _muon_bytes(model: ModelConfig, with_momentum: int) -> int:
    """Temporaries of Muon's update: one of all its matrices in float32, and the largest stack of equal ones thrice."""
    if not with_momentum:
        return 0
    gate_up = model.num_layers * model.num_ffn_experts * 2 * model.hidden_size * model.expert_intermediate_size
    return FLOAT32 * (with_momentum + 3 * gate_up)


def _saved_per_token(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes per token and layer, as counted with `torch.autograd.graph.saved_tensors_hooks` on this model."""
    width, low = model.hidden_size, WIDTHS[train.precision]
    heads = model.num_attention_heads * _head_dim(model)
    key_values = model.num_key_value_heads * _head_dim(model)
    inner = model.expert_intermediate_size
    # Input and output of both norms, the input of the zero-computation experts; the norms of queries and keys.
    exact = FLOAT32 * (5 * width + (2 * (heads + key_values) if model.qk_norm != "none" else 0))
    # The input of each projection; heads of queries, keys, values and output.
    attention = low * (3 * width + 4 * heads)
    # Rows in and out, gate and up, silu(gate), and their product.
    experts = low * max_slots(model) * (2 * width + 4 * inner) + low * model.num_shared_experts * 4 * inner
    return exact + attention + experts


def _backward_bytes(model: ModelConfig, train: TrainConfig, vocab_size: int) -> int:
    """Peak of temporaries: what the layers saved, the gradients inside one layer, the head's logits and gradients."""
    tokens = train.micro_batch_size * train.sequence_length
    inside_layer = tokens * _saved_per_token(model, train)
    logits = 4 * FLOAT32 * min(tokens, LOGITS_CHUNK) * vocab_size
    head = FLOAT32 * model.hidden_size * (2 * tokens + vocab_size)
    return saved_bytes(model, train) + max(inside_layer, logits) + head
